"""The stem, the dilations and the multi grid of DeepLab's ResNets, against the builder in Detectron2's projects."""

from __future__ import annotations

import re

import pytest
import torch

from resnet_backbone.models.registry import create_model, list_models

NOT_VGG = [name for name in list_models() if re.fullmatch(r"(plain|resnet)\d+|resnext50_32x4d", name)]
DEPTHS = {"resnet50": 50, "resnet101": 101}

# Keys of MODEL.RESNETS in the stock configs that DeepLab's and Panoptic-DeepLab's READMEs name, and variations on them.
OS16 = {"NORM": "SyncBN", "STRIDE_IN_1X1": False, "STEM_OUT_CHANNELS": 128, "RES5_DILATION": 2}
PANOPTIC = {**OS16, "OUT_FEATURES": ["res2", "res3", "res5"]}
OS8 = {**OS16, "RES4_DILATION": 2, "RES5_DILATION": 4, "OUT_FEATURES": ["res3", "res4", "res5"]}
SETTINGS = [
    pytest.param("resnet101", {**OS16, "OUT_FEATURES": ["res5"]}, 0, id="deeplab_v3_R_103_os16_mg124"),
    pytest.param("resnet101", {**OS16, "OUT_FEATURES": ["res2", "res5"]}, 0, id="deeplab_v3_plus_R_103_os16_mg124"),
    pytest.param("resnet50", PANOPTIC, 0, id="panoptic_deeplab_R_52_os16_mg124"),
    pytest.param("resnet50", {**PANOPTIC, "STRIDE_IN_1X1": True, "NORM": "GN"}, 2, id="stride_in_1x1-GN-freeze2"),
    pytest.param("resnet50", {**PANOPTIC, "NORM": "FrozenBN", "RES5_DILATION": 1}, 5, id="os32-FrozenBN-freeze5"),
    pytest.param("resnet50", {**PANOPTIC, "RES5_DILATION": 4, "RES5_MULTI_GRID": [1, 1, 1]}, 0, id="os16-res5x4"),
    pytest.param("resnet50", {**OS16, "OUT_FEATURES": ["res3", "res4"]}, 1, id="no-res5-freeze1"),
    pytest.param("resnet50", OS8, 2, id="os8-freeze2"),
    pytest.param("resnet101", {**OS8, "RES5_MULTI_GRID": [4, 2, 1]}, 0, id="R_103_os8_mg421"),
    pytest.param("resnet50", {**OS8, "NORM": "BN"}, 3, id="os8-BN-freeze3"),
    pytest.param(
        "resnet50", {**OS8, "STEM_TYPE": "basic", "STEM_OUT_CHANNELS": 64, "NORM": "BN"}, 1, id="basic_stem-os8-freeze1"
    ),
]


@pytest.mark.parametrize(("arch", "keys", "freeze_at"), SETTINGS)
def test_features_are_those_of_deeplabs_builder_to_the_bit(arch, keys, freeze_at):
    """Same names in the same order, same parameters frozen, same channels and strides, same arithmetic."""
    config = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    deeplab = pytest.importorskip("detectron2.projects.deeplab", reason="this Detectron2 comes without its projects")
    layers = pytest.importorskip("detectron2.layers")
    cfg = config.get_cfg()
    deeplab.add_deeplab_config(cfg)
    cfg.MODEL.RESNETS.update(keys, DEPTH=DEPTHS[arch])
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    torch.manual_seed(0)
    theirs = deeplab.build_resnet_deeplab_backbone(cfg, layers.ShapeSpec(channels=3)).eval()
    for name, value in theirs.state_dict().items():
        if name.endswith(("norm.weight", "running_var")):
            value.uniform_(0.3, 0.6)
        elif name.endswith(("norm.bias", "running_mean")):
            value.normal_(std=0.1)

    node = cfg.MODEL.RESNETS
    ours = create_model(
        arch,
        num_classes=0,
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        freeze_at=freeze_at,
        stride_in_1x1=node.STRIDE_IN_1X1,
        stem=node.STEM_TYPE,
        res4_dilation=node.RES4_DILATION,
        res5_dilation=node.RES5_DILATION,
        res5_multi_grid=node.RES5_MULTI_GRID,
    ).eval()
    names = list(ours.state_dict())
    if not hasattr(layers.FrozenBatchNorm2d(1), "num_batches_tracked"):  # v0.6 drops the counters of what it freezes
        names = [name for name in names if name in theirs.state_dict() or not name.endswith("num_batches_tracked")]
    assert names == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=names == list(ours.state_dict()))
    trained = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (ours, theirs)]
    assert trained[0] == trained[1]
    shapes = {name: (shape.channels, shape.stride) for name, shape in theirs.output_shape().items()}
    assert ours.feature_info == shapes
    for size, grad in (((64, 96), False), ((65, 97), False), ((65, 97), True)):
        images = torch.randn(1, 3, *size)
        with torch.set_grad_enabled(grad):
            features, expected = ours(images), theirs(images)
        assert list(features) == list(expected)
        for name, x in features.items():
            assert x.shape[-2:] == tuple(-(-side // shapes[name][1]) for side in size)
            torch.testing.assert_close(x, expected[name], rtol=0, atol=0, msg=name)


def dilations(stage: torch.nn.Module) -> list[int]:
    """The dilation of every 3x3 convolution of a stage, in order, after a look at its padding."""
    convolutions = [m for m in stage.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(m.padding == m.dilation and m.dilation[0] == m.dilation[1] for m in convolutions)
    return [m.dilation[0] for m in convolutions]


@pytest.mark.parametrize(
    ("res4", "res5", "strides"), [(1, 1, (16, 32)), (1, 2, (16, 16)), (1, 4, (16, 16)), (2, 4, (8, 8))]
)
@pytest.mark.parametrize("arch", NOT_VGG)
def test_every_network_takes_deeplabs_options(arch, res4, res5, strides):
    grid = (1, 2) if arch.endswith("18") else (1, 2, 4)
    with torch.device("meta"):
        model = create_model(
            arch, num_classes=0, stem="deeplab", res4_dilation=res4, res5_dilation=res5, res5_multi_grid=grid
        )
        features = model(torch.zeros(1, 3, 65, 97))
    a_block = 1 if hasattr(model.res5[0], "conv3") else 2
    assert set(dilations(model.res2) + dilations(model.res3)) == {1}
    assert set(dilations(model.res4)) == {res4}
    assert dilations(model.res5) == [res5 * factor for factor in grid for _ in range(a_block)]
    assert (model.feature_info["res4"].stride, model.feature_info["res5"].stride) == strides
    for name, (channels, stride) in model.feature_info.items():
        assert features[name].shape == (1, channels, -(-65 // stride), -(-97 // stride)), name


@pytest.mark.parametrize("arch", NOT_VGG)
def test_no_multi_grid_is_written_alike_for_every_depth(arch):
    with torch.device("meta"):
        model = create_model(arch, num_classes=0, res5_dilation=2, res5_multi_grid=[1, 1, 1])
    assert set(dilations(model.res5)) == {2}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_dilated_classifier_has_the_weights_of_one_that_is_not(arch):
    """Its logits are the head's, on the mean of a larger feature map."""
    torch.manual_seed(0)
    plain = create_model(arch, num_classes=7).eval()
    dilated = create_model(arch, weights=plain.state_dict(), num_classes=7, res4_dilation=2, res5_dilation=4).eval()
    images = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        logits = dilated(images)
        mean = dilated.forward_features(images)["res5"].mean(dim=(2, 3))
        torch.testing.assert_close(logits, dilated.linear(mean))
        assert not torch.allclose(logits, plain(images))
