"""The networks: ImageNet classifiers whose feature maps are public. Plain torch.nn."""
