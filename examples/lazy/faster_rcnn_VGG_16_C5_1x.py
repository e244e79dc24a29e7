# Faster R-CNN on conv5 of VGG-16, with fc6 and fc7 of the classifier as the head: the RPN of Detectron2's C4 model, the
# box head's surroundings of its FPN model.
from detectron2.config import LazyCall
from detectron2.layers import ShapeSpec

from resnet_backbone.detectron2_plugin.lazy import (
    rpn_channels_node,
    stock_config,
    trunk_node,
    use_weights,
    vgg_box_head_node,
)

_stock = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, train, dataloader = _stock.model, _stock.train, _stock.dataloader
optimizer, lr_multiplier = _stock.optimizer, _stock.lr_multiplier

model.backbone = trunk_node("vgg16", ["conv5"], norm="")
model.proposal_generator = stock_config("common/models/mask_rcnn_c4.py").model.proposal_generator
model.proposal_generator.in_features = ["conv5"]
model.proposal_generator.head.in_channels = rpn_channels_node()
model.roi_heads.box_in_features = ["conv5"]
model.roi_heads.box_pooler.scales = [1 / 16]
model.roi_heads.box_head = vgg_box_head_node(dropout=0.5)
model.roi_heads.box_predictor.input_shape = LazyCall(ShapeSpec)(channels=4096)
for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[_key]
dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
use_weights("imagenet://vgg16/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
