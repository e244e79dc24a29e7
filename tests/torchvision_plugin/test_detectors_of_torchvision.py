"""torchvision's own detectors on this engine: the same detections and losses, and what happens to COCO's 91 ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from resnet_backbone.config import config_folder
from resnet_backbone.config.reader import value_of
from resnet_backbone.config.weights_input import input_of
from resnet_backbone.torchvision_plugin.checkpoint import load_detector, load_trained, read_detector
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.run import Run
from resnet_backbone.weights import WeightsError, detectors
from resnet_backbone.weights.detectors import DetectorEntry, coco_classes
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

BUILDERS = [f"{kind}_resnet50_fpn{v2}" for kind in ("fasterrcnn", "maskrcnn", "retinanet") for v2 in ("", "_v2")]
CATEGORIES = torchvision.models.get_model_weights(BUILDERS[0])["COCO_V1"].meta["categories"]
OF_NO_CLASS = [index for index, name in enumerate(CATEGORIES) if name == "N/A"]


def theirs(builder: str, targets: list[dict[str, Tensor]] | None = None) -> nn.Module:
    """torchvision's model with random weights; ids of no class have scores of about 0, as after a training.

    With ``targets``, of the two images, its layers vary in training.
    """
    torch.manual_seed(len(builder))
    model = getattr(torchvision.models.detection, builder)(weights=None, weights_backbone=None).eval()
    # The images are of the size that they should have, and masks stay the probabilities inside each box.
    part = model if "retinanet" in builder else model.roi_heads
    part.detections_per_img = FEW_DETECTIONS
    if part is not model:
        model.rpn._post_nms_top_n["testing"] = FEW_REGIONS
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda found, sizes, original: found
    vary(model, lambda: model.train(targets is not None)([image / 255 for image in generated()], targets))
    model.eval()
    predictor = model.head.classification_head.cls_logits if "retinanet" in builder else model.roi_heads.box_predictor
    with torch.no_grad():
        if "retinanet" in builder:
            predictor.bias.view(-1, 91)[:, [0, *OF_NO_CLASS]] = -30
        else:
            predictor.cls_score.bias[OF_NO_CLASS] = -30
    return model


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """``write(builder, model)``: the file, of a detector that is published or (``known=False``) somebody's own."""

    def to_file(builder: str, tensors: dict[str, Tensor], *, known: bool = True) -> Path:
        path = tmp_path / f"{builder}.pth"
        torch.save(tensors, path)
        digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        entry = DetectorEntry(f"https://example.org/{builder}_coco-{digits}.pth", f"torchvision/{builder}.yaml", 1.0)
        monkeypatch.setattr(detectors, "published_detectors", lambda: (entry,) if known else ())
        return path

    return to_file


def as_first_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that torchvision's first releases gave, which the files of 2019 to 2021 have."""
    old = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if name.endswith("num_batches_tracked"):
            continue
        if "inner_blocks" in name or "layer_blocks" in name:
            del parts[4]
        elif name.startswith("rpn.head.conv."):
            del parts[3:5]
        elif name.startswith("roi_heads.mask_head."):
            parts[2:4] = [f"mask_fcn{int(parts[2]) + 1}"]
        elif "_head.conv." in name:
            parts[3:5] = [str(2 * int(parts[3]))]
        old[".".join(parts)] = tensor
    return old


@pytest.mark.parametrize("builder", BUILDERS[::2])
def test_the_names_of_the_first_files_are_torchvisions(builder, write):
    """Its own model reads them, and so do we."""
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, builder)(weights=None, weights_backbone=None)
    tensors = {name: torch.ones(()).expand(t.shape) for name, t in model.state_dict().items()}
    old = as_first_published(tensors)
    assert old.keys() != tensors.keys()
    missing, unexpected = model.load_state_dict(old, strict=False, assign=True)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    today, then = (detectors.from_torchvision(t, None)[0] for t in (tensors, old))
    assert {name for name in today if not name.endswith("num_batches_tracked")} == then.keys()


def compare(builder: str, write: Write, images: Iterable[Tensor], keys: Sequence[str] = (), share: float = 0.0) -> None:
    model = theirs(builder)
    first = not builder.endswith("_v2")
    tensors = dict(model.state_dict())
    path = write(builder, as_first_published(tensors) if first else tensors)
    for norm in model.modules():
        if first and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            norm.eps = 0.0  # as torchvision does for the published ones
    cfg = load_config(config_folder() / f"torchvision/{builder}.yaml", ["MODEL.WEIGHTS", str(path), *CPU, *keys])
    written = str(cfg)
    cfg, ours, class_names = load_trained(cfg)
    assert str(cfg) == written, "the config has what the weights need"
    assert class_names == coco_classes()
    ids = torch.tensor([coco_classes().index(name) if name in coco_classes() else -1 for name in CATEGORIES])
    comparison = Comparison()
    for image in images:
        with torch.no_grad():
            (expected,), (found,) = model([image / 255]), ours([image])
        comparison.add(found, {**expected, "labels": ids[expected["labels"]]})
    comparison.check(share=share)


@pytest.mark.parametrize(
    "builder",
    [pytest.param(name, marks=() if "maskrcnn_resnet50_fpn_v2" == name else pytest.mark.slow) for name in BUILDERS],
)
def test_the_same_detections(builder, write):
    compare(builder, write, generated())


@pytest.mark.slow
@pytest.mark.parametrize("builder", BUILDERS)
def test_the_same_detections_in_photographs(builder, write, coco_mini):
    compare(builder, write, photographs(coco_mini / "val2017"), UNFOLDED, TIES)


@pytest.mark.parametrize("builder", BUILDERS)
def test_names_and_shapes_are_those_of_the_config(builder):
    """With as many outputs as classes and a background; RetinaNet has a running mean, and biases before norms, too."""
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, builder)(weights=None, weights_backbone=None, num_classes=81)
        ours = build_detector(load_config(f"torchvision/{builder}.yaml", CPU)).state_dict()
    tensors, class_names = detectors.from_torchvision(model.state_dict(), None)
    if "retinanet" in builder:
        tensors["loss_normalizer"] = tensors["loss_normalizer"].to("meta")
    assert class_names == ()
    assert {name: t.shape for name, t in tensors.items() if not name.endswith("tracked")} == {
        name: t.shape for name, t in ours.items() if not name.endswith("tracked")
    }
    assert detectors.torchvision_config(model.state_dict()) == f"torchvision/{builder}.yaml"


@pytest.mark.parametrize("builder", BUILDERS)
def test_numbers_are_those_of_the_config(builder):
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, builder)(weights=None, weights_backbone=None)
    cfg = load_config(f"torchvision/{builder}.yaml", CPU[:2])
    assert (list(model.transform.min_size), model.transform.max_size) == (
        [cfg.INPUT.MIN_SIZE_TEST],
        cfg.INPUT.MAX_SIZE_TEST,
    )
    if "retinanet" in builder:
        part, node = model, cfg.MODEL.RETINANET
        assert model.topk_candidates == node.TOPK_CANDIDATES_TEST and model.anchor_generator.sizes == tuple(
            map(tuple, cfg.MODEL.ANCHOR_GENERATOR.SIZES)
        )
    else:
        part, node, rpn = model.roi_heads, cfg.MODEL.ROI_HEADS, cfg.MODEL.RPN
        assert model.rpn._pre_nms_top_n == {"training": rpn.PRE_NMS_TOPK_TRAIN, "testing": rpn.PRE_NMS_TOPK_TEST}
        assert model.rpn._post_nms_top_n == {"training": rpn.POST_NMS_TOPK_TRAIN, "testing": rpn.POST_NMS_TOPK_TEST}
        assert model.rpn.nms_thresh == rpn.NMS_THRESH
        assert part.box_coder.weights == tuple(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
    found = (part.score_thresh, part.nms_thresh, part.detections_per_img)
    assert found == (node.SCORE_THRESH_TEST, node.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)


@pytest.mark.parametrize(
    "builder", ["fasterrcnn_resnet50_fpn_v2", pytest.param("maskrcnn_resnet50_fpn", marks=pytest.mark.slow)]
)
def test_the_first_losses(builder, write):
    """Each stage gets what torchvision's gets, and draws alike: in training, norms of few cells make noise of rounding,
    by which proposals change places. Masks are another loss: torchvision's targets are not 0 or 1.
    """
    boxes = [torch.tensor([[20.0, 30, 120, 140], [100, 50, 230, 180]]), torch.tensor([[10.0, 8, 80, 110]])]
    names, sizes = (["cat", "zebra"], ["person"]), [image.shape[1:] for image in generated()]
    targets = [
        {
            "boxes": one,
            "labels": torch.tensor([CATEGORIES.index(name) for name in row]),
            "masks": torch.ones(len(one), *size),
        }
        for one, row, size in zip(boxes, names, sizes, strict=True)
    ]
    model = theirs(builder, targets)
    path = write(builder, dict(model.state_dict()), known=False)
    keys = ["MODEL.WEIGHTS", str(path), "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNET_BACKBONE.NORM", "BN", *CPU]
    ours = build_detector(load_config(f"torchvision/{builder}.yaml", keys))
    load_detector(ours, read_detector(str(path))["model"], "it", new_classes=False)
    got = {}
    for stage in (model.rpn, model.roi_heads):
        stage.register_forward_pre_hook(lambda stage, inputs: got.update({stage: (torch.get_rng_state(), inputs)}))
    expected = model.train()([image / 255 for image in generated()], targets)
    ours.train()
    state, (padded, features, _) = got[model.rpn]
    torch.set_rng_state(state)
    found = ours.rpn(padded, _named(features), targets)[1]
    state, (features, proposals, sizes, _) = got[model.roi_heads]
    torch.set_rng_state(state)
    for target, row in zip(targets, names, strict=True):
        target["labels"] = torch.tensor([coco_classes().index(name) + 1 for name in row])
    found |= ours.roi_heads(_named(features), proposals, sizes, targets)[1]
    assert expected.keys() == found.keys()
    for name in found.keys() - {"loss_mask"}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5, msg=name)


def _named(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"p{level}": feature for level, feature in enumerate(features.values(), 2)}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of torchvision's, behind which random weights lie in the cache."""
    name = f"{detectors.TORCHVISION}{BUILDERS[0]}/COCO_V1"
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path))
    path = tmp_path / "weights" / detectors.named_detector(name).file_name
    path.parent.mkdir()
    torch.save(theirs(BUILDERS[0]).state_dict(), path)
    return name


def test_a_name_of_torchvisions_in_every_tool(cached, load_script, shapes, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    photo = next((shapes / "shapes/val").iterdir())
    small = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96"]
    words = ["--weights", cached, "--input", str(photo), "--output", str(tmp_path), "--score", "0", "--json", "--"]
    assert load_script("tools/demo.py").main([*words, *small]) == 0
    line = json.loads(capfd.readouterr().out)
    assert line["labels"] and set(line["labels"]) <= set(coco_classes())

    # Arithmetic that the weights need and another config has not; other classes; and the error for another detector.
    keys = [*small, "MODEL.WEIGHTS", cached, "DATASETS.TEST", "[]", "DATASETS.TRAIN", "['shapes_train']"]
    run = Run(load_config("faster/r50_fpn.yaml", [*keys, "OUTPUT_DIR", str(tmp_path / "run")]))
    assert {key: value_of(run.cfg, key) for key in detectors.torchvision_keys("torchvision/fasterrcnn_.yaml")} == {
        "MODEL.ANCHOR_GENERATOR.NAME": "AnchorGenerator",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    }
    assert input_of(run.cfg).keys() > detectors.torchvision_keys("torchvision/fasterrcnn_.yaml").keys()
    log = "".join(capfd.readouterr())
    assert "roi_heads.box_predictor.cls_score.weight" in log and "start from scratch" in log
    with pytest.raises(ValueError, match=r"\(of configs/torchvision/fasterrcnn_resnet50_fpn\.yaml\) is of another"):
        load_trained(load_config("faster/r101_fpn.yaml", keys))
    doctor = load_script("tools/doctor.py").main
    assert doctor(["--engine", "torchvision", "--config-file", f"torchvision/{BUILDERS[0]}.yaml", *keys]) == 0
    assert "detects 80 classes" in capfd.readouterr().out
    with pytest.raises(WeightsError, match="write one of torchvision://fasterrcnn_resnet50_fpn/COCO_V1"):
        detectors.named_detector("torchvision://fasterrcnn_resnet50_fpn/COCO_V2")


def test_somebodys_own_detector_and_damaged_ones(write):
    """Of other numbers of classes nobody knows the names; missing layers are told."""
    with torch.device("meta"):
        meta = getattr(torchvision.models.detection, BUILDERS[0])(weights=None, weights_backbone=None, num_classes=4)
    tensors = {name: torch.ones(()).expand(t.shape) for name, t in meta.state_dict().items()}
    path = write(BUILDERS[0], tensors, known=False)
    cfg = load_config(f"torchvision/{BUILDERS[0]}.yaml", ["MODEL.WEIGHTS", str(path), *CPU])
    assert len(read_detector(str(path))["model"]["roi_heads.box_predictor.cls_score.bias"]) == 4
    with pytest.raises(ValueError, match="does not name its classes"):
        load_trained(cfg)
    del tensors["roi_heads.box_predictor.cls_score.bias"]
    with pytest.raises(WeightsError, match="is no complete detector of torchvision's.*cls_score"):
        read_detector(str(write(BUILDERS[0], tensors, known=False)))


def test_published_figures_are_torchvisions():
    for name, entry in detectors.torchvision_detectors().items():
        assert (config_folder() / entry.config).is_file() and len(entry.sha256) == 8, name
        assert f"box AP {entry.box_ap}" in (config_folder() / entry.config).read_text()
        assert (entry.mask_ap is not None) == ("maskrcnn" in name)
