"""What a detector is worth: COCO average precision, result files, and pictures beside the ground truth."""
