"""Detectors of the real Detectron2, with random weights, on the torchvision engine: same boxes, and the way back."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from resnet_backbone.torchvision_plugin.checkpoint import load_trained, read_detector
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.run import Run
from resnet_backbone.weights import detectors
from resnet_backbone.weights.detectors import coco_classes, from_detectron2, published_detectors, to_detectron2
from tests.helpers import assert_same_tensors

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
}


def theirs(zoo: str):
    """The model of Detectron2's zoo with random weights that find something: scores and boxes vary."""
    pytest.importorskip("detectron2.modeling", reason="Detectron2 is not installed")
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(zoo)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    torch.manual_seed(len(zoo))
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm.weight", "running_var")):
                tensor.uniform_(0.4, 0.8)
            elif name.endswith(("cls_score.weight", "predictor.weight", "objectness_logits.weight")):
                tensor.normal_(std=0.005)
            elif name.endswith(("bbox_pred.weight", "anchor_deltas.weight")):  # no box gets empty: it would be dropped
                tensor.normal_(std=0.0003)
            elif name == "head.cls_score.bias":
                tensor.fill_(-2)
    return model


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


def _with_label(boxes: torch.Tensor, labels: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
    return torch.cat([boxes, 1e4 * labels[:, None]], dim=1)


@pytest.mark.parametrize(
    ("config", "zoo"),
    [pytest.param(*pair, marks=() if pair[0] == "faster/r50_fpn.yaml" else pytest.mark.slow) for pair in KINDS.items()],
)
def test_the_same_detections_and_the_way_back_to_the_bit(config, zoo, published):
    model = theirs(zoo)
    path = published(config, model)
    cfg = load_config(
        ROOT / "configs" / config, ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
    )
    cfg, ours, class_names = load_trained(cfg)
    assert (class_names, cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == (
        coco_classes(),
        "BGR",
        "x101" not in config,
    )
    images = [
        (255 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(width))).floor()
        for height, width in ((128, 192), (95, 129))
    ]
    with torch.no_grad():
        expected = model([{"image": image} for image in images])
        found = ours(images)
    for a, b in zip(found, expected, strict=True):
        instances = b["instances"]
        assert len(instances) > 20
        torch.testing.assert_close(a["scores"], instances.scores, rtol=0, atol=1e-4)
        # Scores that are equal but for rounding may come in another order, and the last of them may be cut off.
        sure = instances.scores > instances.scores[-1] + 1e-4
        places = torch.cdist(_with_label(instances.pred_boxes.tensor, instances.pred_classes)[sure], _with_label(**a))
        assert sure.sum() > 10 and places.min(dim=1).values.max() < 1e-3 * 2
    state = read_detector(str(path))["model"]
    assert_same_tensors(to_detectron2(state), dict(model.state_dict()))


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
        assert f"ARCH: {entry.arch}\n" in text and len(entry.sha256) == 6
        assert 30 < entry.box_ap < 50 and (entry.mask_ap is not None) == entry.config.startswith("mask/")


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
