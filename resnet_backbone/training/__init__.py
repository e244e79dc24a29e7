"""What the training loops of detectors on torchvision and of classifiers share."""
