"""The earlier place of COCO evaluation, for scripts that import it from here; it is in :mod:`resnet_backbone.metrics`."""
