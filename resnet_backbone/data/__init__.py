"""COCO-format detection data: reading, checking, transforms, VOC conversion and the generated "shapes" set."""
