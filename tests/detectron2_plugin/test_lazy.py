"""Lazy configs build the models of the yaml configs, and, with the same network, those of Detectron2's lazy configs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed: it comes from its own repository")
pytest.importorskip("omegaconf", reason="omegaconf, which Detectron2's LazyConfig needs, is not installed")

from detectron2.config import LazyConfig, get_cfg, instantiate  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402

from resnet_backbone.config import config_folder  # noqa: E402
from resnet_backbone.detectron2_plugin import add_resnet_backbone_config  # noqa: E402
from resnet_backbone.detectron2_plugin.lazy import (  # noqa: E402
    build_res5,
    fcos_fpn_node,
    feature_channels,
    fpn_node,
    res5_node,
    retinanet_fpn_node,
    rpn_channels_node,
    stock_config,
    trunk_node,
    vgg_box_head_node,
)
from resnet_backbone.models.registry import create_model  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "lazy"
RESNET = ("res2", "res3", "res4", "res5")
VGG = ("conv3", "conv4", "conv5", "pool5")


def outputs(model, images):
    """Feature maps and detections, as one dict of tensors; there are always some detections."""
    model.eval()
    if hasattr(model, "roi_heads"):
        model.roi_heads.box_predictor.test_score_thresh = 0.0
        model.roi_heads.box_predictor.test_topk_per_image = 10
        model.proposal_generator.pre_nms_topk = {False: 50}
        model.proposal_generator.post_nms_topk = {False: 20}
    else:
        model.test_score_thresh, model.test_topk_candidates = 0.0, 40
    found = {}
    with torch.inference_mode():
        for index, result in enumerate(model([{"image": row["image"]} for row in images])):
            assert len(result["instances"]) > 0
            for name, value in result["instances"].get_fields().items():
                found[f"{index}.{name}"] = getattr(value, "tensor", value)
        for name, feature in model.backbone(model.preprocess_image(images).tensor).items():
            found[name] = feature
    return found


@pytest.fixture
def same_models(randomised, images, same_tensors):
    """Two models must have the same tensors by name, and the same outputs when these are filled alike."""

    def check(ours, theirs):
        state = randomised(theirs).state_dict()
        assert {name: t.shape for name, t in ours.state_dict().items()} == {n: t.shape for n, t in state.items()}
        ours.load_state_dict(state)
        same_tensors(outputs(ours, images), outputs(theirs, images))

    return check


def from_yaml(config, *overrides):
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.merge_from_file(str(config_folder() / config))
    # Nodes of lazy configs are not accelerated, and these are compared to the bit.
    plain = ["MODEL.RESNET_BACKBONE.FOLD_NORMS", False, "MODEL.RESNET_BACKBONE.MEMORY_FORMAT", "contiguous"]
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *plain, *overrides])
    return build_model(cfg)


def example(name, *overrides):
    """An example without weights."""
    cfg = LazyConfig.load(str(EXAMPLES / f"{name}.py"))
    return LazyConfig.apply_overrides(cfg, ["train.init_checkpoint=''", *overrides])


def as_key(values):
    return f"[{','.join(values)}]"


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "vgg16"])
def test_pyramid_is_the_yaml_one(arch, same_models):
    features, norm = (VGG, "") if arch == "vgg16" else (RESNET, "FrozenBN")
    cfg = example(
        "mask_rcnn_R_34_FPN_1x",
        f"model.backbone.bottom_up.arch={arch}",
        f"model.backbone.bottom_up.norm='{norm}'",
        f"model.backbone.bottom_up.out_features={as_key(features)}",
    )
    node = ["MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.NORM", norm]
    levels = ["MODEL.RESNET_BACKBONE.OUT_FEATURES", list(features), "MODEL.FPN.IN_FEATURES", list(features)]
    mask = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    mask += ["MODEL.ROI_MASK_HEAD.NUM_CONV", 4]
    same_models(instantiate(cfg.model), from_yaml("Base-RCNN-FPN.yaml", *node, *levels, *mask))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "vgg16"])
def test_retinanet_is_the_yaml_one(arch, same_models):
    features, norm = (VGG[1:], "") if arch == "vgg16" else (RESNET[1:], "FrozenBN")
    cfg = example(
        "retinanet_VGG_16_FPN_1x",
        f"model.backbone.bottom_up.arch={arch}",
        f"model.backbone.bottom_up.norm='{norm}'",
        f"model.backbone.bottom_up.out_features={as_key(features)}",
    )
    node = ["MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.NORM", norm]
    levels = ["MODEL.RESNET_BACKBONE.OUT_FEATURES", list(features), "MODEL.FPN.IN_FEATURES", list(features)]
    same_models(instantiate(cfg.model), from_yaml("Base-RetinaNet.yaml", *node, *levels))


def test_pyramids_with_p7_differ_in_what_p6_is_made_of():
    trunk = trunk_node("resnet18", RESNET[1:])
    with torch.device("meta"):
        tops = [instantiate(node(trunk, out_channels=8)).top_block for node in (retinanet_fpn_node, fcos_fpn_node)]
    assert [(top.in_feature, top.p6.in_channels) for top in tops] == [("res5", 512), ("p5", 8)]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_c4_is_the_yaml_one(arch, same_models):
    cfg = example("mask_rcnn_R_18_C4_1x", f"model.backbone.arch={arch}")
    mask = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    yaml = from_yaml("Base-RCNN-C4.yaml", "MODEL.RESNET_BACKBONE.ARCH", arch, *mask)
    same_models(instantiate(cfg.model), yaml)


def test_vgg_c5_is_the_yaml_one(same_models):
    cfg = example("faster_rcnn_VGG_16_C5_1x")
    same_models(instantiate(cfg.model), from_yaml("Base-RCNN-VGG-C5.yaml", "MODEL.ROI_BOX_HEAD.DROPOUT", 0.5))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_mask_rcnn_r50_fpn_is_detectron2s(stride_in_1x1, same_models):
    stock, ours = (stock_config("common/models/mask_rcnn_fpn.py").model for _ in range(2))
    stock.backbone.bottom_up.freeze_at = 2
    stock.backbone.bottom_up.stages.stride_in_1x1 = stride_in_1x1
    ours.backbone = fpn_node(trunk_node("resnet50", RESNET, stride_in_1x1=stride_in_1x1))
    ours, stock = instantiate(ours), instantiate(stock)
    trainable = [[name for name, p in model.named_parameters() if p.requires_grad] for model in (ours, stock)]
    assert sorted(trainable[0]) == sorted(trainable[1])
    same_models(ours, stock)


def test_the_new_baseline_is_detectron2s(same_models):
    """Its norms learn, and everything is trained, from random weights."""
    stock, cfg = stock_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"), example("mask_rcnn_R_50_FPN_100ep_LSJ")
    ours, theirs = instantiate(cfg.model), instantiate(stock.model)
    assert all(p.requires_grad for p in ours.parameters())
    norms = [Counter(type(m) for m in model.modules() if isinstance(m, _BatchNorm)) for model in (ours, theirs)]
    assert norms[0] == norms[1] and len(norms[0]) == 2
    same_models(ours, theirs)
    for key in ("train", "dataloader", "optimizer", "lr_multiplier"):
        assert cfg[key] == stock[key], key


def test_mask_rcnn_r50_c4_is_detectron2s(same_models):
    stock, ours = (stock_config("common/models/mask_rcnn_c4.py").model for _ in range(2))
    ours.backbone = trunk_node("resnet50", ["res4"], stride_in_1x1=True)
    ours.proposal_generator.head.in_channels = rpn_channels_node()
    ours.roi_heads.res5 = res5_node()
    same_models(instantiate(ours), instantiate(stock))


def test_retinanet_r50_is_detectron2s(same_models):
    stock, ours = (stock_config("common/models/retinanet.py").model for _ in range(2))
    ours.backbone = retinanet_fpn_node(trunk_node("resnet50", RESNET[1:], stride_in_1x1=True))
    same_models(instantiate(ours), instantiate(stock))


def test_fcos_keeps_its_own_pyramid(same_models):
    stock, ours = (stock_config("COCO-Detection/fcos_R_50_FPN_1x.py").model for _ in range(2))
    ours.backbone.bottom_up = trunk_node("resnet50", RESNET[1:], stride_in_1x1=True)
    same_models(instantiate(ours), instantiate(stock))


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_saved_and_loaded_it_is_the_same_config(name, tmp_path):
    cfg = LazyConfig.load(str(EXAMPLES / f"{name}.py"))
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    LazyConfig.save(loaded, str(tmp_path / "again.yaml"))
    assert (tmp_path / "config.yaml").read_text() == (tmp_path / "again.yaml").read_text()
    assert not list(tmp_path.glob("*.pkl"))
    with torch.device("meta"):
        first, second = instantiate(cfg.model.backbone), instantiate(loaded.model.backbone)
    assert repr(first) == repr(second) and first.output_shape() == second.output_shape()


OPTIONS = {
    "norm": "GN",
    "freeze_at": 1,
    "stride_in_1x1": True,
    "stem": "deeplab",
    "res4_dilation": 2,
    "res5_dilation": 4,
    "res5_multi_grid": (1, 2, 4),
    "deform_on_per_stage": (False, False, True, True),
    "deform_modulated": True,
    "deform_num_groups": 2,
    "in_channels": 4,
}


def test_every_option_of_a_trunk_arrives():
    model = OmegaConf.create(flags={"allow_objects": True})
    model.backbone = trunk_node("resnet50", ["res4", "res5"], **OPTIONS)
    model.roi_heads = {"res5": res5_node()}
    with torch.device("meta"):
        expected = create_model("resnet50", num_classes=0, out_features=["res4", "res5"], **OPTIONS)
        trunk, res5 = instantiate(model.backbone), instantiate(model.roi_heads.res5)
    assert trunk.feature_info == expected.feature_info
    assert [(n, p.requires_grad) for n, p in trunk.named_parameters()] == [
        (n, p.requires_grad) for n, p in expected.named_parameters()
    ]
    assert [*map(repr, trunk.children())] == [*map(repr, expected.children())]
    assert [*map(repr, res5.children())] == [*map(repr, expected.res5.children())]
    assert trunk.strict_weights and res5.strict_weights
    model.backbone.strict_weights = False
    with torch.device("meta"):
        assert not instantiate(model.backbone).strict_weights
        assert not instantiate(model.roi_heads.res5).strict_weights
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        trunk_node("resnet50", ["res4"], depth=50)


@pytest.mark.parametrize("node", [fpn_node, retinanet_fpn_node])
def test_every_option_of_a_pyramid_arrives(node):
    with torch.device("meta"):
        pyramid = instantiate(node(trunk_node("resnet18", RESNET[1:]), out_channels=64, norm="GN", fuse_type="avg"))
    assert {shape.channels for shape in pyramid.output_shape().values()} == {64}
    assert type(pyramid.fpn_lateral4.norm).__name__ == "GroupNorm" and pyramid._fuse_type == "avg"


def test_channels_follow_an_override():
    cfg = example("mask_rcnn_R_18_C4_1x", "model.backbone.arch=resnet101", "model.backbone.norm=GN")
    with torch.device("meta"):
        rpn_head = instantiate(cfg.model.proposal_generator.head)
        res5 = instantiate(cfg.model.roi_heads.res5)
        predictor = instantiate(cfg.model.roi_heads.box_predictor)
    assert rpn_head.conv.in_channels == 1024
    assert type(res5[0].conv3.norm).__name__ == "GroupNorm" and res5[-1].conv3.out_channels == 2048
    assert predictor.cls_score.in_features == 2048


@pytest.mark.parametrize(
    ("arch", "feature", "channels"),
    [("plain34", "res4", 256), ("resnet18", "res5", 512), ("resnet152", "res4", 1024), ("vgg19_bn", "pool5", 512)],
)
def test_channels_of_a_feature(arch, feature, channels):
    before = torch.get_rng_state()
    assert feature_channels(arch, feature) == channels
    assert torch.equal(torch.get_rng_state(), before)


def test_heads_refuse_another_trunk():
    c4 = stock_config("common/models/mask_rcnn_c4.py").model
    c4.backbone = trunk_node("vgg16", ["conv5"], norm="")
    c4.roi_heads.res5 = res5_node()
    with pytest.raises(ValueError, match="res5.*must name one or more of .*conv5"):
        instantiate(c4.roi_heads.res5)
    vgg = example("faster_rcnn_VGG_16_C5_1x", "model.backbone.arch=resnet18", "model.roi_heads.box_in_features=[res4]")
    vgg.model.roi_heads.box_head = vgg_box_head_node()
    with pytest.raises(ValueError, match="needs a VGG"):
        instantiate(vgg.model.roi_heads.box_head)
    with pytest.raises(ValueError, match="out_channels is 2048, res5 of resnet18 has 512; write .*res5_node"):
        build_res5("resnet18", "BN", 0, False, 1, 1, (1, 1, 1), True, 2048)


def test_a_pyramid_needs_the_last_feature_map():
    node = fpn_node(trunk_node("resnet18", RESNET))
    node.in_features = ["res2", "res3"]
    with pytest.raises(ValueError, match="leave res5 unused"):
        instantiate(node)


def test_stock_configs_by_name():
    with pytest.raises(FileNotFoundError, match="no config common/models/mask_rcnn.py; write a path below"):
        stock_config("common/models/mask_rcnn.py")
