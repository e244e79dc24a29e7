"""Image files: reading, listing, checking, videos, and images in class folders."""

from resnet_backbone.data.images.read import read_image

__all__ = ["read_image"]
