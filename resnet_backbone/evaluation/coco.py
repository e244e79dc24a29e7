"""The earlier place of :func:`resnet_backbone.metrics.coco.evaluate_coco`, for scripts that import it from here."""

from resnet_backbone.metrics.coco import evaluate_coco

__all__ = ["evaluate_coco"]
