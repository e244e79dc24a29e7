"""detrex's DINO (``dino_r50_4scale_12ep.py``) with ResNet-34."""

from detectron2.layers import ShapeSpec

from resnet_backbone.detectron2_plugin.lazy import feature_channels, trunk_node, use_weights

from .dino_r50_4scale_12ep import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401 detrex reads them

model.backbone = trunk_node("resnet34", ["res3", "res4", "res5"], freeze_at=1)
model.neck.input_shapes = {
    name: ShapeSpec(channels=feature_channels("resnet34", name)) for name in model.backbone.out_features
}
use_weights("imagenet://resnet34/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)
train.output_dir = "./output/dino_resnet34"
