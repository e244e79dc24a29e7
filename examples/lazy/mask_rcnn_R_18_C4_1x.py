# Detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py, with ResNet-18: res5, of basic blocks, is the head.
from resnet_backbone.detectron2_plugin.lazy import (
    res5_node,
    rpn_channels_node,
    stock_config,
    trunk_node,
    use_weights,
)

_stock = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py")
model, train, dataloader = _stock.model, _stock.train, _stock.dataloader
optimizer, lr_multiplier = _stock.optimizer, _stock.lr_multiplier

model.backbone = trunk_node("resnet18", ["res4"])
model.proposal_generator.head.in_channels = rpn_channels_node()
model.roi_heads.res5 = res5_node()
use_weights("imagenet://resnet18/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
