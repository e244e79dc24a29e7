# Detectron2's COCO-Detection/retinanet_R_50_FPN_1x.py, with VGG-16.
from resnet_backbone.detectron2_plugin.lazy import retinanet_fpn_node, stock_config, trunk_node, use_weights

_stock = stock_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
model, train, dataloader = _stock.model, _stock.train, _stock.dataloader
optimizer, lr_multiplier = _stock.optimizer, _stock.lr_multiplier

model.backbone = retinanet_fpn_node(trunk_node("vgg16", ["conv4", "conv5", "pool5"], norm=""))
use_weights("imagenet://vgg16/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
