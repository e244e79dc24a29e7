"""Detectors of the real Detectron2, with random weights, on the torchvision engine: same boxes, and the way back."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import pytest
import torch

from resnet_backbone.torchvision_plugin.checkpoint import load_trained, read_detector
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.inference import rescale
from resnet_backbone.torchvision_plugin.run import Run
from resnet_backbone.weights import detectors
from resnet_backbone.weights.detectors import coco_classes, from_detectron2, published_detectors, to_detectron2
from tests.helpers import assert_same_tensors
from tests.torchvision_plugin.detections import (
    CPU,
    FEW_DETECTIONS,
    FEW_REGIONS,
    TIES,
    UNFOLDED,
    Comparison,
    generated,
    photographs,
    vary,
)

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "faster/r50_c4.yaml": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "faster/r50_dc5.yaml": "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "faster/r50_fpn.yaml": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster/r101_fpn.yaml": "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
    "faster/x101_fpn.yaml": "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
    "retinanet/r50_fpn.yaml": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "mask/r50_fpn.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "mask/r50_c4.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "mask/r101_fpn.yaml": "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
    "faster/r101_c4.yaml": "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml",
    "faster/r101_dc5.yaml": "COCO-Detection/faster_rcnn_R_101_DC5_3x.yaml",
    "retinanet/r101_fpn.yaml": "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
}


def theirs(zoo: str, keys: Sequence[str] = ()):
    """The model of Detectron2's zoo with random weights that find something: scores and boxes vary."""
    pytest.importorskip("detectron2.modeling", reason="Detectron2 is not installed")
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(zoo)
    cfg.merge_from_list([*keys, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = FEW_REGIONS, FEW_DETECTIONS
    torch.manual_seed(len(zoo))
    model = build_model(cfg).eval()
    vary(model, lambda: model([{"image": generated()[0]}]))
    return model


def detections(model, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model of Detectron2's finds in an image, in the torchvision engine's form."""
    with torch.no_grad():
        batch = [{"image": image}]
        two_stages = hasattr(model, "inference")
        found = model.inference(batch, do_postprocess=False)[0] if two_stages else model(batch)[0]["instances"]
    masks = {"masks": found.pred_masks} if found.has("pred_masks") else {}
    return {"boxes": found.pred_boxes.tensor, "scores": found.scores, "labels": found.pred_classes, **masks}


@pytest.fixture
def published(monkeypatch, tmp_path):
    """``published(config, model)``: the file that Detectron2 would publish, by whose digits it is known."""

    def write(config: str, model) -> Path:
        path = tmp_path / "model_final.pkl"
        tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        tensors["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4).numpy()
        path.write_bytes(pickle.dumps({"model": tensors, "__author__": "Detectron2 Model Zoo"}, 2))
        digits = hashlib.sha256(path.read_bytes()).hexdigest()[:6]
        entry = detectors.DetectorEntry(f"https://example.org/model_final_{digits}.pkl", config, 1.0)
        monkeypatch.setattr(detectors, "published_detectors", lambda: (entry,))
        return path

    return write


def compare(
    config: str,
    zoo: str,
    published,
    images: Iterable[torch.Tensor],
    keys: Sequence[str] = (),
    own_keys: Sequence[str] = (),
    share: float = 0.0,
) -> None:
    """``keys`` are Detectron2's and ours; the way back is to the bit."""
    model = theirs(zoo, keys)
    path = published(config, model)
    cfg = load_config(ROOT / "configs" / config, [*keys, *CPU, *own_keys, "MODEL.WEIGHTS", str(path)])
    cfg, ours, class_names = load_trained(cfg)
    assert (class_names, cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == (
        coco_classes(),
        "BGR",
        "x101" not in config,
    )
    comparison = Comparison()
    for image in images:
        with torch.no_grad():
            (found,) = ours([image])
        if "masks" not in found:  # a box without area is left out, as Detectron2 does
            found = rescale(found, image.shape[1:], image.shape[1:])
        comparison.add(found, detections(model, image))
    comparison.check(share=share)
    state = read_detector(str(path))["model"]
    assert_same_tensors(to_detectron2(state), dict(model.state_dict()))


def _pairs(quick: Collection[str]) -> list:
    return [pytest.param(*pair, marks=() if pair[0] in quick else pytest.mark.slow) for pair in KINDS.items()]


@pytest.mark.parametrize(("config", "zoo"), _pairs({"faster/r50_fpn.yaml"}))
def test_the_same_detections_and_the_way_back_to_the_bit(config, zoo, published):
    compare(config, zoo, published, generated())


@pytest.mark.parametrize(("config", "zoo"), _pairs(()))
def test_the_same_detections_in_photographs(config, zoo, published, coco_mini):
    compare(config, zoo, published, photographs(coco_mini / "val2017"), own_keys=UNFOLDED, share=TIES)


# The keys of heads, each with another value than its default.
HEADS = [
    *(
        "MODEL.FPN.NORM",
        "GN",
        "MODEL.RPN.CONV_DIMS",
        "[64, -1, 32]",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "True",
    ),
    *("MODEL.ROI_BOX_HEAD.NUM_CONV", "2", "MODEL.ROI_BOX_HEAD.CONV_DIM", "64", "MODEL.ROI_BOX_HEAD.NORM", "GN"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", "1", "MODEL.ROI_BOX_HEAD.FC_DIM", "128", "MODEL.ROI_MASK_HEAD.NORM", "GN"),
]
CONVOLUTIONS_ALONE = [
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "1",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "0",
    "MODEL.ROI_BOX_HEAD.NORM",
    "BN",
]
RETINANET_HEADS = ["MODEL.RETINANET.NORM", "GN", "MODEL.RETINANET.NUM_CONVS", "3", "MODEL.FPN.NORM", "BN"]


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("mask/r50_fpn.yaml", HEADS),
        pytest.param("mask/r50_fpn.yaml", CONVOLUTIONS_ALONE, marks=pytest.mark.slow),
        pytest.param("retinanet/r50_fpn.yaml", RETINANET_HEADS, marks=pytest.mark.slow),
    ],
)
def test_the_keys_of_heads_and_pyramids(config, keys, published):
    compare(config, KINDS[config], published, generated(), keys)


@pytest.mark.parametrize(
    ("config", "keys"),
    [("mask/r50_fpn.yaml", HEADS), pytest.param("retinanet/r50_fpn.yaml", RETINANET_HEADS, marks=pytest.mark.slow)],
)
def test_the_losses_with_these_keys(config, keys, published):
    """All anchors and proposals are samples, so that none are drawn."""
    samples = ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE")
    fractions = ("MODEL.RPN.POSITIVE_FRACTION", "MODEL.ROI_HEADS.POSITIVE_FRACTION")
    keys = [*keys, *(x for key in samples for x in (key, "1000000")), *(x for key in fractions for x in (key, "1.0"))]
    keys += ["MODEL.FPN.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", "5"]
    model = theirs(KINDS[config], keys)
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = load_config(ROOT / "configs" / config, [*keys, "MODEL.WEIGHTS", str(published(config, model)), *CPU])
    cfg, ours, _ = load_trained(cfg)
    image = generated()[0]
    boxes, labels = torch.tensor([[20.0, 30, 120, 140], [100, 50, 230, 180]]), torch.tensor([3, 70])
    masks = torch.zeros(2, *image.shape[1:], dtype=torch.bool)
    masks[0, 40:120, 30:100], masks[1, 60:150, 120:200] = True, True
    truth = Instances(tuple(image.shape[1:]), gt_boxes=Boxes(boxes), gt_classes=labels, gt_masks=BitMasks(masks))
    with EventStorage():
        expected = model.train()([{"image": image, "instances": truth}])
    found = ours.train()([image], [{"boxes": boxes, "labels": labels, "masks": masks.float()}])
    names = {"loss_classifier": "loss_cls", "loss_objectness": "loss_rpn_cls", "loss_rpn_box_reg": "loss_rpn_loc"}
    assert len(found) == len(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[names.get(name, name)], rtol=1e-4, atol=1e-5, msg=name)


def test_names_of_every_kind_there_and_back():
    """Numbers of levels and layers, without Detectron2 at hand."""
    names = [f"backbone.fpn_{kind}{n}.bias" for kind in ("lateral", "output") for n in (3, 4, 5)]
    names += ["backbone.top_block.p6.bias", "backbone.bottom_up.res5.0.conv1.weight", "head.cls_score.bias"]
    names += [f"head.{kind}_subnet.{n}.bias" for kind in ("cls", "bbox") for n in (0, 2, 4, 6)]
    tensors = {name: torch.tensor([float(number)]) for number, name in enumerate(names)}
    ours = from_detectron2(tensors)
    assert ours["backbone.fpn.inner_blocks.0.0.bias"] == tensors["backbone.fpn_lateral3.bias"]
    assert ours["head.regression_head.conv.3.0.bias"] == tensors["head.bbox_subnet.6.bias"]
    assert_same_tensors(to_detectron2(ours), tensors)


def test_the_background_changes_its_place():
    scores, deltas = torch.arange(3.0), torch.arange(8.0)
    tensors = {"roi_heads.box_predictor.cls_score.bias": scores, "roi_heads.box_predictor.bbox_pred.bias": deltas}
    ours = from_detectron2(tensors)
    assert ours["roi_heads.box_predictor.cls_score.bias"].tolist() == [2, 0, 1]
    assert ours["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0, 0, 0, 0, *range(8)]
    assert_same_tensors(to_detectron2(ours), tensors)


def test_every_published_detector_has_its_config():
    for entry in published_detectors():
        text = (ROOT / "configs" / entry.config).read_text()
        assert f"ARCH: {entry.arch}\n" in text and len(entry.sha256) == (8 if entry.is_of_torchvision else 6)
        assert 30 < entry.box_ap < 50 and (entry.mask_ap is not None) == ("mask" in entry.config)


def test_another_config_is_named_by_the_error(published):
    pytest.importorskip("detectron2.modeling", reason="Detectron2 is not installed")
    path = published("faster/r50_fpn.yaml", theirs(KINDS["faster/r50_fpn.yaml"]))
    cfg = load_config(ROOT / "configs/retinanet/r50_fpn.yaml", ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu"])
    with pytest.raises(ValueError, match=r"of configs/faster/r50_fpn\.yaml\) is of another detector than the config"):
        load_trained(cfg)


def test_a_detector_of_the_torchvision_engine_on_detectron2(tiny, tmp_path):
    """Trained here, evaluated there: the same detections."""
    pytest.importorskip("detectron2.modeling", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.checkpoint import load_trained as load_on_detectron2
    from resnet_backbone.detectron2_plugin.config import load_config as load_config_of_detectron2

    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "[]")
    Run(cfg).start()
    keys = ["MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / "model_final.pth"), "MODEL.DEVICE", "cpu"]
    keys += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    _, ours, names = load_trained(load_config(ROOT / "configs/quickstart.yaml", keys))
    _, there, names_there = load_on_detectron2(load_config_of_detectron2(ROOT / "configs/quickstart.yaml", keys))
    assert names == names_there
    image = (255 * torch.rand(3, 128, 160, generator=torch.Generator().manual_seed(0))).floor()
    with torch.no_grad():
        found, expected = ours([image])[0], there([{"image": image}])[0]["instances"]
    torch.testing.assert_close(found["scores"], expected.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, rtol=0, atol=1e-2)
