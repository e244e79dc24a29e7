# Detectron2's new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py on our ResNet-50, from random weights as there.
from resnet_backbone.detectron2_plugin.lazy import fpn_node, stock_config, trunk_node

_stock = stock_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
model, train, dataloader = _stock.model, _stock.train, _stock.dataloader
optimizer, lr_multiplier = _stock.optimizer, _stock.lr_multiplier

_trunk = trunk_node("resnet50", ["res2", "res3", "res4", "res5"], norm="SyncBN", freeze_at=0, stride_in_1x1=True)
model.backbone = fpn_node(_trunk, norm="SyncBN")
# By name what the stock config has as functions, which a dumped config cannot hold.
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "naiveSyncBN_N"
