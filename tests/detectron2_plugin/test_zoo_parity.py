"""Detectron2's own configs with our builder in place of theirs: the same names, and on the same weights the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, build_model  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from fvcore.common.config import CfgNode  # noqa: E402

from resnet_backbone.models.acceleration import Acceleration, accelerate, finish_for_inference  # noqa: E402

CONFIGS = [
    *("COCO-Detection/faster_rcnn_R_50_C4_1x", "COCO-Detection/faster_rcnn_R_101_C4_3x"),
    *("COCO-Detection/faster_rcnn_R_50_DC5_1x", "COCO-Detection/faster_rcnn_R_101_DC5_3x"),
    *("COCO-Detection/faster_rcnn_R_50_FPN_1x", "COCO-Detection/faster_rcnn_R_101_FPN_3x"),
    *("COCO-Detection/retinanet_R_50_FPN_1x", "COCO-Detection/retinanet_R_101_FPN_3x"),
    *("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x"),
    *("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x"),
    *("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", "Misc/cascade_mask_rcnn_R_50_FPN_1x"),
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
]
FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints", "COCO-PanopticSegmentation", "Misc")


class Pair(NamedTuple):
    theirs: nn.Module
    ours: nn.Module
    config: str


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return request.param


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.split("/")[1])
def pair(
    request: pytest.FixtureRequest,
    device: str,
    stock_config: Callable[..., CfgNode],
    in_place: Callable[[CfgNode], CfgNode],
    randomised: Callable[..., nn.Module],
) -> Iterator[Pair]:
    cfg = stock_config(request.param, "MODEL.DEVICE", device)
    theirs = randomised(build_model(cfg))
    ours_cfg = in_place(cfg)
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads" and not cfg.MODEL.MASK_ON:  # with masks, Detectron2's own head
        ours_cfg.MODEL.ROI_HEADS.NAME = "ImageNetRes5ROIHeads"
    ours = build_model(ours_cfg)
    assert "resnet_backbone" in type(getattr(ours.backbone, "bottom_up", ours.backbone)).__module__
    yield Pair(theirs, ours, request.param)


def same_results(ours: Any, theirs: Any) -> None:
    """Compare what a detector returns: dicts, lists, Instances and tensors; classes exactly, the rest to 1e-5."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same_results(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same_results(a, b)
    elif hasattr(theirs, "get_fields"):
        same_results(ours.get_fields(), theirs.get_fields())
    elif isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    elif hasattr(theirs, "tensor"):
        same_results(ours.tensor, theirs.tensor)
    else:
        assert ours == theirs


def test_zoo_names_and_shapes_are_the_same(pair):
    theirs = {name: tensor.shape for name, tensor in pair.theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in pair.ours.state_dict().items()} == theirs
    assert {n for n, p in pair.ours.named_parameters() if p.requires_grad} == {
        n for n, p in pair.theirs.named_parameters() if p.requires_grad
    }


def test_zoo_features_are_the_same_to_the_bit(pair, same_tensors):
    pair.ours.load_state_dict(pair.theirs.state_dict())
    constraints = [(m.backbone.size_divisibility, m.backbone.output_shape()) for m in pair[:2]]
    assert constraints[0] == constraints[1]
    multiple = pair.theirs.backbone.size_divisibility or 1
    height, width = (-(-side // multiple) * multiple for side in (65, 99))
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(pair.theirs.device)
    with torch.no_grad():
        theirs, ours = (model.eval().backbone(images) for model in pair[:2])
    assert all(feature.std() > 0.01 for feature in theirs.values())
    same_tensors(ours, theirs)


def test_zoo_features_are_the_same_but_for_rounding_as_the_backbone_comes(pair):
    pair.ours.load_state_dict(pair.theirs.state_dict())
    ours = copy.deepcopy(pair.ours.backbone).eval()
    accelerate(ours, Acceleration(scale_weights=True, channels_last=True), needed=ours.size_divisibility)
    finished = copy.deepcopy(ours)
    finish_for_inference(finished)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(pair.theirs.device)
    with torch.no_grad():
        expected, *found = (backbone(images) for backbone in (pair.theirs.eval().backbone, ours, finished))
    for features in found:
        assert list(features) == list(expected)
        for name, feature in expected.items():
            assert (features[name] - feature).abs().max() < 1e-5 * feature.abs().max(), name


def test_zoo_detections_are_the_same(pair, images):
    pair.ours.load_state_dict(pair.theirs.state_dict())
    inputs = [{key: value for key, value in image.items() if key in ("image", "height", "width")} for image in images]
    with torch.no_grad():
        theirs, ours = (model.eval()(inputs) for model in pair[:2])
    for result in theirs:
        instances = result["instances"]
        assert len(instances) >= 5 and len(instances.scores.unique()) >= 5
        assert instances.pred_boxes.tensor.std(0).max() > 5
    same_results(ours, theirs)


def test_zoo_first_training_step_is_the_same(pair, images):
    pair.ours.load_state_dict(pair.theirs.state_dict())
    losses = []
    for model in pair[:2]:
        torch.manual_seed(3)
        model.train().zero_grad()
        with EventStorage():
            losses.append(model(copy.deepcopy(images)))
    theirs, ours = losses
    assert theirs.keys() == ours.keys()
    assert all(torch.isfinite(loss) and loss > 0 for loss in theirs.values())
    assert {name: loss.item() for name, loss in ours.items()} == {name: loss.item() for name, loss in theirs.items()}
    if pair.config not in (CONFIGS[0], CONFIGS[4]):
        return  # the backward pass is dear, and the trunks of the others are these
    for loss in losses:
        sum(loss.values()).backward()
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    for name, parameter in pair.ours.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6, msg=name)


def test_zoo_every_config_has_the_same_names(stock_folder, stock_config, in_place):
    """ResNeXt, deformable stages, group norm, SyncBN, Keypoint, Panoptic, RPN alone, precomputed proposals."""
    built = set()
    for path in sorted(path for folder in FOLDERS for path in (stock_folder / folder).glob("*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        cfg = stock_config(name)
        resnets = cfg.MODEL.RESNETS
        backbone = f"{cfg.MODEL.BACKBONE} {cfg.MODEL.FPN} {resnets}"
        if backbone in built:
            continue
        builder = BACKBONE_REGISTRY.get(in_place(cfg).MODEL.BACKBONE.NAME)
        with torch.device("meta"):
            theirs = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))
            ours = builder(in_place(cfg))
        shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
        own = {key: tensor.shape for key, tensor in ours.state_dict().items()}
        assert shapes.items() <= own.items(), name
        # v0.6 throws away the counters of the batch norms that it freezes, later ones keep them.
        assert all(key.endswith("num_batches_tracked") for key in own.keys() - shapes), name
        assert ours.output_shape() == theirs.output_shape(), name
        built.add(backbone)
    assert len(built) > 8 and {"32", "8"} <= {*re.findall(r"_GROUPS?: (\d+)", " ".join(built))}, len(built)
