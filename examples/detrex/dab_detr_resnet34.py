"""detrex's DAB-DETR (``dab_detr_r50_50ep.py``) with ResNet-34."""

from resnet_backbone.detectron2_plugin.lazy import feature_channels, trunk_node, use_weights

from .dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401 detrex reads them

model.backbone = trunk_node("resnet34", ["res5"], freeze_at=1)
model.in_channels = feature_channels("resnet34", "res5")
use_weights("imagenet://resnet34/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
train.output_dir = "./output/dab_detr_resnet34"
