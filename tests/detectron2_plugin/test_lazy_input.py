"""A lazy config gets the input that its weights need, and is refused where it says another one."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed: it comes from its own repository")
pytest.importorskip("omegaconf", reason="omegaconf, which Detectron2's LazyConfig needs, is not installed")

from detectron2.config import LazyCall, LazyConfig, instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from resnet_backbone.detectron2_plugin.lazy import (  # noqa: E402
    build_trunk_backbone,
    fpn_node,
    res5_node,
    stock_config,
    trunk_node,
    use_weights,
)
from resnet_backbone.models.registry import create_model  # noqa: E402
from resnet_backbone.weights import InputFormat, WeightsError, package_weights  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "lazy"
RESNET = ["res2", "res3", "res4", "res5"]
V1 = "imagenet://resnet50/IMAGENET1K_V1"
MSRA = "imagenet://resnet50/MSRA"
LOGGER = "resnet_backbone.detectron2_plugin.lazy"


def resnet50(weights=V1):
    """Detectron2's Mask R-CNN with our ResNet-50, started from ``weights``."""
    cfg = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    cfg.model.backbone = fpn_node(trunk_node("resnet50", RESNET))
    use_weights(weights, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    return cfg


def build(node):
    """Build what a node describes, without memory."""
    with torch.device("meta"):
        return instantiate(node)


def mappers(cfg):
    return [cfg.dataloader[name].mapper.image_format for name in ("train", "test")]


def test_weights_set_every_place():
    cfg = resnet50(V1)
    assert cfg.train.init_checkpoint == V1
    assert mappers(cfg) == ["RGB", "RGB"] and cfg.model.input_format == "RGB"
    assert list(cfg.model.pixel_mean) == [123.675, 116.28, 103.53]
    assert list(cfg.model.pixel_std) == [58.395, 57.12, 57.375]
    assert cfg.model.backbone.bottom_up.stride_in_1x1 is False
    assert OmegaConf.is_interpolation(cfg.dataloader.test.mapper, "image_format")  # still follows the train mapper
    use_weights(MSRA, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    assert mappers(cfg) == ["BGR", "BGR"] and cfg.model.input_format == "BGR"
    assert list(cfg.model.pixel_mean) == [103.53, 116.28, 123.675] and list(cfg.model.pixel_std) == [1, 1, 1]
    trunk = build(cfg.model.backbone).bottom_up
    assert trunk.stride_in_1x1 is True and trunk.res3[0].conv1.stride == (2, 2)


def test_the_res5_head_has_the_stride_of_the_weights():
    cfg = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py")
    cfg.model.backbone = trunk_node("resnet50", ["res4"])
    cfg.model.roi_heads.res5 = res5_node()
    for weights, strides in ((MSRA, [(2, 2), (1, 1)]), (V1, [(1, 1), (2, 2)])):
        use_weights(weights, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
        block = build(cfg.model.roi_heads.res5)[0]
        assert [block.conv1.stride, block.conv2.stride] == strides


def test_a_packaged_file_says_its_input(tmp_path):
    torch.save(create_model("resnet18", num_classes=0).state_dict(), tmp_path / "raw.pth")
    half = InputFormat("BGR", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
    package_weights(tmp_path / "raw.pth", tmp_path / "weights.pth", arch="resnet18", input_format=half)
    cfg = stock_config("COCO-Detection/fcos_R_50_FPN_1x.py")  # whose model has no input_format
    cfg.model.backbone.bottom_up = trunk_node("resnet18", RESNET[1:])
    use_weights(str(tmp_path / "weights.pth"), model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    assert mappers(cfg) == ["BGR", "BGR"] and "input_format" not in cfg.model
    assert list(cfg.model.pixel_mean) == list(cfg.model.pixel_std) == [127.5] * 3
    build(cfg.model.backbone)
    cfg.model.pixel_std = [58.395, 57.12, 57.375]
    with pytest.raises(ValueError, match=r"weights.pth.*\n  model.pixel_std = \[127.5, 127.5, 127.5\]"):
        build(cfg.model.backbone)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.pixel_mean=[103.53,116.28,123.675]", r"model.pixel_mean = \[123.675, 116.28, 103.53\]"),
        ("model.pixel_std=[1.0,1.0,1.0]", r"model.pixel_std = \[58.395, 57.12, 57.375\]"),
        ("model.input_format=BGR", "model.input_format = 'RGB'   # the config has 'BGR'"),
        ("dataloader.train.mapper.image_format=BGR", "dataloader.train.mapper.image_format = 'RGB'"),
        ("dataloader.test.mapper.image_format=BGR", "dataloader.test.mapper.image_format = 'RGB'"),
        ("model.backbone.bottom_up.stride_in_1x1=true", "stride_in_1x1 = False   # the config has True"),
        (f"train.init_checkpoint='{MSRA}'", "dataloader.train.mapper.image_format = 'BGR'"),
        ("train.init_checkpoint='detectron2://ImageNetPretrained/MSRA/R-50.pkl'", "stride_in_1x1 = True"),
    ],
)
def test_another_input_is_refused_when_the_model_is_built(override, line, tmp_path):
    cfg = resnet50()
    build(cfg.model.backbone)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for config in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
        LazyConfig.apply_overrides(config, [override])
        with pytest.raises(ValueError, match=rf"(?s)the input does not match the weights.*write\n.*{line}"):
            build(config.model.backbone)


def test_weights_of_another_network_are_refused():
    cfg = resnet50()
    with pytest.raises(WeightsError, match="is of resnet101, .* is resnet50"):
        use_weights("imagenet://resnet101/IMAGENET1K_V1", model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    assert cfg.train.init_checkpoint == V1
    LazyConfig.apply_overrides(cfg, ["model.backbone.bottom_up.arch=resnet101"])
    with pytest.raises(WeightsError, match="is of resnet50, .* is resnet101"):
        build(cfg.model.backbone)


def test_what_cannot_be_set_is_refused():
    cfg = resnet50()
    with pytest.raises(ValueError, match="my.pth does not say which input it was trained on. Package it"):
        use_weights("my.pth", model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    stock = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    with pytest.raises(ValueError, match=r"still Detectron2's own; first write model.backbone = trunk_node"):
        use_weights(V1, model=stock.model, train=stock.train, dataloader=stock.dataloader)


@pytest.mark.parametrize(
    ("options", "frozen"),
    [(("FrozenBN", 0), True), (("BN", 2), True), (("BN", 0), False), (("FrozenBN", 2), True)],
)
def test_random_layers_that_never_train_are_told(options, frozen, caplog):
    norm, freeze_at = options
    cfg = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    cfg.model.backbone = fpn_node(trunk_node("resnet18", RESNET, norm=norm, freeze_at=freeze_at))
    cfg.train.init_checkpoint = ""
    with caplog.at_level(logging.WARNING, LOGGER):
        build(cfg.model.backbone)
    assert ("layers stay random and never train" in caplog.text) is frozen


class DetrMapper:
    """Takes what the mappers of detrex take."""

    def __init__(self, augmentation, is_train=True, img_format="RGB"):
        raise NotImplementedError("no test reads images")


def detr(weights=V1, **mapper):
    """A config as those of detrex are: another argument of the mapper, a trunk without a pyramid, no input_format."""
    cfg = stock_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    cfg.model.backbone = trunk_node("resnet50", RESNET[1:], freeze_at=1)
    cfg.model.input_format = None
    cfg.dataloader.train.mapper = LazyCall(DetrMapper)(augmentation=[], **mapper)
    cfg.dataloader.test.mapper = LazyCall(DetrMapper)(augmentation=[], is_train=False, **mapper)
    use_weights(weights, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    return cfg


@pytest.mark.parametrize("mapper", [{"img_format": "BGR"}, {}], ids=["written", "a default"])
def test_weights_set_the_mappers_of_detrex(mapper, tmp_path):
    cfg = detr(MSRA, **mapper)
    assert [cfg.dataloader[name].mapper.img_format for name in ("train", "test")] == ["BGR", "BGR"]
    build(cfg.model.backbone)
    cfg = detr(V1, **mapper)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for config in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
        build(config.model.backbone)
        config.dataloader.test.mapper.img_format = "BGR"
        with pytest.raises(
            ValueError, match="write\n  dataloader.test.mapper.img_format = 'RGB'   # the config has 'BGR'"
        ):
            build(config.model.backbone)


def test_the_default_of_a_mapper_counts():
    cfg = detr(MSRA)
    del cfg.dataloader.train.mapper.img_format
    with pytest.raises(
        ValueError, match="write\n  dataloader.train.mapper.img_format = 'BGR'   # the config has 'RGB'"
    ):
        build(cfg.model.backbone)


def test_an_argument_without_a_default_is_written():
    cfg = resnet50()
    del cfg.dataloader.train.mapper.image_format, cfg.dataloader.test.mapper.image_format
    with pytest.raises(ValueError, match="dataloader.train.mapper.image_format = 'RGB'   # the config has None"):
        build(cfg.model.backbone)
    use_weights(V1, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    assert mappers(cfg) == ["RGB", "RGB"]


def test_every_place_counts(caplog):
    """Augmentations of MaskDINO's say the colours, too; a config may have several loaders."""
    cfg = detr()
    augmentation = LazyCall(DetrMapper)(augmentation=[], img_format="BGR")
    cfg.dataloader.train.mapper.augmentation = [augmentation]
    cfg.dataloader.test = [cfg.dataloader.test, cfg.dataloader.test.copy()]
    cfg.dataloader.test[1].mapper.img_format = "BGR"
    with pytest.raises(ValueError) as refused:
        build(cfg.model.backbone)
    for place in ("train.mapper.augmentation[0].img_format", "test[1].mapper.img_format"):
        assert f"  dataloader.{place} = 'RGB'   # the config has 'BGR'" in str(refused.value)
    assert str(refused.value).count("\n") == 2
    use_weights(V1, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    with caplog.at_level(logging.WARNING, LOGGER):
        build(cfg.model.backbone)
    assert not caplog.records


def test_a_mapper_that_says_no_colours_is_told(caplog):
    cfg = detr()
    augmentation = LazyCall(DetrMapper)(augmentation=[], img_format="RGB")
    cfg.dataloader.test.mapper = LazyCall(SimpleNamespace)(augmentations=[augmentation], img_format="jpg")
    with caplog.at_level(logging.WARNING, LOGGER):
        use_weights(V1, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
        build(cfg.model.backbone)
    assert [record.getMessage() for record in caplog.records] == 2 * [
        f"cannot see in which order of colours dataloader.test.mapper reads images, which {V1} needs to be RGB: it has "
        "none of image_format, img_format, input_format"
    ]


def test_a_trunk_is_found_where_a_project_has_it():
    cfg = resnet50()
    cfg.model.backbone = LazyCall(SimpleNamespace)(
        joined=LazyCall(SimpleNamespace)(net=trunk_node("resnet50", RESNET[1:], stride_in_1x1=True))
    )
    use_weights(V1, model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    assert cfg.model.backbone.joined.net.stride_in_1x1 is False


def test_a_mapper_out_of_sight_is_told(caplog):
    cfg = resnet50()
    del cfg.dataloader, cfg.model.input_format
    with caplog.at_level(logging.WARNING, LOGGER):
        build(cfg.model.backbone)
    assert f"cannot see whether the input is that of {V1}, which needs INPUT.FORMAT: RGB" in caplog.text


def test_without_a_config_around_it_a_trunk_is_built_as_it_is(caplog):
    with torch.device("meta"), caplog.at_level(logging.WARNING, LOGGER):
        alone = instantiate(trunk_node("resnet18", ["res4"], in_channels=4, strict_weights=False))
        called = build_trunk_backbone("resnet18", ["res4"], in_channels=4, strict_weights=False)
    assert repr(alone) == repr(called) and alone.strict_weights is False
    assert alone.stem.conv1.in_channels == 4 and alone.output_shape()["res4"].channels == 256
    assert not caplog.records


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*1x.py")), ids=lambda path: path.stem)
def test_examples_are_consistent(path):
    cfg = LazyConfig.load(str(path))
    assert set(cfg) == {"model", "train", "dataloader", "optimizer", "lr_multiplier"}
    assert cfg.train.init_checkpoint.startswith("imagenet://") and mappers(cfg) == ["RGB", "RGB"]
    build(cfg.model.backbone)
    LazyConfig.apply_overrides(cfg, ["dataloader.train.mapper.image_format=BGR"])
    with pytest.raises(ValueError, match="dataloader.train.mapper.image_format = 'RGB'"):
        build(cfg.model.backbone)
