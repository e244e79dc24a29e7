"""``mask_rcnn_BNhead.py``, which this file stands beside, on ResNet-34 with torchvision's weights."""

from resnet_backbone.detectron2_plugin.lazy import fpn_node, trunk_node, use_weights

from .mask_rcnn_BNhead import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401 Detectron2 reads them

model.backbone = fpn_node(trunk_node("resnet34", ["res2", "res3", "res4", "res5"]))
use_weights("imagenet://resnet34/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
