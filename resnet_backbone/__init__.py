"""ImageNet classifiers as detection backbones, for Detectron2 and torchvision.

Importing this package imports neither detectron2 nor torchvision's detectors.
"""

from resnet_backbone.models.registry import create_model, list_models
from resnet_backbone.version import __version__
from resnet_backbone.weights import list_weights, load_weights

__all__ = ["__version__", "create_model", "list_models", "list_weights", "load_weights"]
