"""The config node of the backbones in Detectron2's tree."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from resnet_backbone.config import add_backbone_keys


def add_resnet_backbone_config(cfg: CfgNode) -> None:
    """Add MODEL.RESNET_BACKBONE and MODEL.ROI_BOX_HEAD.DROPOUT, with their defaults, to Detectron2's config, in place.

    Call it before ``merge_from_file``. A config that has the node already stays as it is.
    """
    if "RESNET_BACKBONE" not in cfg.MODEL:
        add_backbone_keys(cfg)
