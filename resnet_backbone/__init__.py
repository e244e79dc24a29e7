"""ImageNet classifiers as detection backbones, for Detectron2 and torchvision.

Importing this package imports neither torch nor anything else that is heavy; its functions do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resnet_backbone.version import __version__

if TYPE_CHECKING:
    from resnet_backbone.api import load_detector, train
    from resnet_backbone.models.registry import create_model, list_models
    from resnet_backbone.weights import list_weights, load_weights

_PLACES = {
    "create_model": "models.registry",
    "list_models": "models.registry",
    "list_weights": "weights",
    "load_detector": "api",
    "load_weights": "weights",
    "train": "api",
}
__all__ = ["__version__", "create_model", "list_models", "list_weights", "load_detector", "load_weights", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
