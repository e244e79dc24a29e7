# Detectron2's COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py, with ResNet-34.
from resnet_backbone.detectron2_plugin.lazy import fpn_node, stock_config, trunk_node, use_weights

_stock = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, train, dataloader = _stock.model, _stock.train, _stock.dataloader
optimizer, lr_multiplier = _stock.optimizer, _stock.lr_multiplier

model.backbone = fpn_node(trunk_node("resnet34", ["res2", "res3", "res4", "res5"]))
use_weights("imagenet://resnet34/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
