"""From a config to a detector."""

from __future__ import annotations

from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.detectron2_plugin.config import as_built
from resnet_backbone.detectron2_plugin.host_config import check_context
from resnet_backbone.models.acceleration import accelerate_heads


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the detector that ``cfg`` describes, on MODEL.DEVICE, with random weights; see ``as_built``.

    Raises:
        ValueError: parts that do not fit each other; Detectron2 itself asserts, or fails on the way, and is quoted.
    """
    cfg = as_built(cfg)
    check_context(cfg)
    try:
        model = build_model(cfg)
        accelerate_heads(model, acceleration_of(cfg))
        return model
    except ValueError:
        raise
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"Detectron2 cannot build what the config describes: {type(error).__name__}: {error}"
        ) from error
