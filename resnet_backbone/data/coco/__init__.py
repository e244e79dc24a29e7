"""COCO-format files: reading, checking, masks, and the torch data set over them."""
