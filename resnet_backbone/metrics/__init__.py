"""Accuracy of detectors and classifiers: COCO and VOC AP, classification errors, result files, and pictures."""
