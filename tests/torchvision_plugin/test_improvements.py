"""Refinement, multi-scale testing, ensemble and global context on this engine, against loops and the detector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from resnet_backbone.data.transforms import test_transforms
from resnet_backbone.torchvision_plugin.detector import Detector, build_detector
from resnet_backbone.torchvision_plugin.improvements import Improved, TwoStage
from resnet_backbone.torchvision_plugin.inference import rescale
from resnet_backbone.torchvision_plugin.roi_heads import MIN_SIDE
from tests.engine.improvements import reference
from tests.helpers import photograph

CONTEXT = ["MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "True"]
SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.ARCH", "resnet18", "MODEL.RESNET_BACKBONE.NORM", "GN"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1", "MODEL.RPN.NMS_THRESH", "0.9"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
]
KINDS = {
    "fpn": ("Base-RCNN-FPN.yaml", ["MODEL.FPN.OUT_CHANNELS", "16"]),
    "c4": ("Base-RCNN-C4.yaml", []),
    "vgg_c5": ("Base-RCNN-VGG-C5.yaml", ["MODEL.RESNET_BACKBONE.ARCH", "vgg16", "MODEL.RESNET_BACKBONE.NORM", ""]),
    "bgr_fpn": ("Base-RCNN-FPN.yaml", ["INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "80", *CONTEXT]),
}
REFINEMENT = ["TEST.BOX_REFINEMENT.ENABLED", "True"]
MULTI_SCALE = [
    *("TEST.MULTI_SCALE.ENABLED", "True", "TEST.MULTI_SCALE.SIZES", "[48, 120, 250, 280]"),
    *("TEST.MULTI_SCALE.MAX_SIZE", "300"),
]


@pytest.fixture
def build(tiny):
    """``build("fpn", "KEY", "VALUE", ...)``: a config and its detector, whose random weights tell classes apart."""

    def build_kind(kind: str, *overrides: str):
        torch.manual_seed(1)
        config, keys = KINDS[kind]
        cfg = tiny(config, *SMALL, *keys, *overrides)
        detector = build_detector(cfg).eval()
        predictor = detector.roi_heads.box_predictor
        with torch.no_grad():
            vectors = _vectors(cfg, detector, photograph(70, 101))
        for layer, spread in ((predictor.cls_score, 1.5), (predictor.bbox_pred, 0.7)):
            layer.weight.data.normal_()
            # Of differences between vectors, not of what they have in common, and as large as a trained layer's.
            outputs = vectors @ layer.weight.T
            layer.weight.data *= spread / outputs.std(dim=0).mean()
            layer.bias.data = -(vectors @ layer.weight.T).mean(dim=0)
        return cfg, detector

    return build_kind


def _vectors(cfg, detector: Detector, image: Tensor) -> Tensor:
    stages = TwoStage(cfg, detector)
    scale = stages.scale(image, *image.shape[1:])
    return stages.region_vectors(scale, stages.propose(scale))


def plain(cfg, detector: Detector, image: Tensor) -> dict[str, Tensor]:
    """What the engine's usual evaluation finds."""
    resized = test_transforms(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)(image)
    resized = resized.flip(0) if cfg.INPUT.FORMAT == "BGR" else resized
    return rescale(detector([resized])[0], tuple(resized.shape[1:]), tuple(image.shape[1:]))


def improved(cfg, detector: Detector, image: Tensor, members=()) -> dict[str, Tensor]:
    image = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
    size = tuple(image.shape[1:])
    return rescale(Improved(cfg, detector, members).eval()([image])[0], size, size)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "context"),
    [("fpn", []), ("fpn", CONTEXT), ("c4", []), ("c4", CONTEXT), ("vgg_c5", CONTEXT), ("bgr_fpn", [])],
    ids=["fpn", "fpn context", "c4", "c4 context", "vgg_c5 context", "bgr_fpn context"],
)
def test_with_nothing_enabled_it_is_the_detector_to_the_bit(build, kind, context):
    cfg, detector = build(kind, *context)
    labels = set()
    for size in [(90, 131), (131, 90), (64, 64), (40, 200)]:
        expected, found = (detect(cfg, detector, photograph(*size)) for detect in (plain, improved))
        assert len(expected["boxes"]) >= 5
        labels |= set(expected["labels"].tolist())
        for name, value in expected.items():
            assert torch.equal(found[name], value), (size, name)
    assert labels == {0, 1, 2}


COMBINATIONS = {
    "refinement": (REFINEMENT, []),
    "multi_scale": (MULTI_SCALE, []),
    "ensemble": ([], ["c4", "bgr_fpn"]),
    "context_refinement": ([*CONTEXT, *REFINEMENT], []),
    "context_multi_scale": ([*CONTEXT, *MULTI_SCALE], []),
    "everything": ([*CONTEXT, *REFINEMENT, *MULTI_SCALE], ["c4", "bgr_fpn"]),
    "one_size": ([*MULTI_SCALE, "TEST.MULTI_SCALE.SIZES", "[100]"], []),
    "one_class": ([*REFINEMENT, *MULTI_SCALE, "MODEL.ROI_HEADS.NUM_CLASSES", "1"], []),
}


@torch.inference_mode()
@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("size", [pytest.param((90, 131), marks=pytest.mark.slow), (40, 200)], ids=str)
def test_it_is_what_loops_over_boxes_find(build, combination, size):
    keys, others = COMBINATIONS[combination]
    cfg, detector = build("fpn", *keys, "TEST.DETECTIONS_PER_IMAGE", "12")
    members = [build(kind) for kind in others]
    image = photograph(*size)
    found = improved(cfg, detector, image, members)
    expected = reference.detect_by(cfg, [TwoStage(*part) for part in [(cfg, detector), *members]], image)
    assert len(expected) >= 3
    assert found["labels"].tolist() == [label for label, _, _ in expected]
    assert found["scores"].tolist() == pytest.approx([score for _, score, _ in expected], abs=1e-4)
    torch.testing.assert_close(found["boxes"], torch.tensor([box for _, _, box in expected]), rtol=0, atol=0.02)
    without = plain(cfg, detector, image)["scores"]
    assert without.shape != found["scores"].shape or not torch.allclose(without, found["scores"], atol=1e-3)


@torch.inference_mode()
def test_features_outlast_the_next_pass_of_a_cuda_graph(build):
    """Of which the next pass overwrites what this one returned."""
    cfg, detector = build("fpn", *REFINEMENT, *MULTI_SCALE)
    member = build("c4")
    image = photograph(90, 131)
    expected = improved(cfg, detector, image, [member])
    written: list[Tensor] = []

    def overwrite(backbone, images, features):
        for feature in written:
            feature.fill_(torch.nan)
        written[:] = features.values()

    for backbone in (detector.backbone, member[1].backbone):
        backbone.acceleration = replace(backbone.acceleration, compile_mode="reduce-overhead")
        backbone.register_forward_hook(overwrite)
    found = improved(cfg, detector, image, [member])
    assert len(expected["boxes"]) >= 5
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@torch.inference_mode()
def test_an_ensemble_of_the_same_detector_twice_finds_the_same(build):
    """Each proposal comes twice, and the second time is suppressed."""
    cfg, detector = build("fpn")
    image = photograph(90, 131)
    once, twice = improved(cfg, detector, image), improved(cfg, detector, image, [(cfg, detector)])
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, atol=1e-4, rtol=1e-5)  # a larger batch rounds otherwise


@torch.inference_mode()
def test_boxes_too_thin_are_those_that_torchvision_drops(build):
    _, detector = build("fpn")
    proposals = torch.tensor([[10.0, 10, 10 + width, 20] for width in (0.9 * MIN_SIDE, 1.1 * MIN_SIDE)])
    logits, deltas = torch.zeros(2, 4), torch.zeros(2, 16)  # equally sure of three classes and the background
    (boxes,), _, (labels,) = detector.roi_heads.postprocess_detections(logits, deltas, [proposals], [(64, 64)])
    assert sorted(labels.tolist()) == [1, 2, 3] and torch.equal(boxes, proposals[1:].expand(3, 4))


@torch.inference_mode()
@pytest.mark.parametrize("keys", [[], [*REFINEMENT, *MULTI_SCALE, *CONTEXT]], ids=["plain", "everything"])
def test_an_image_without_proposals_or_detections(build, keys):
    cfg, detector = build("fpn", *keys)
    detector.rpn.score_thresh = 2.0
    assert not len(TwoStage(cfg, detector).propose(TwoStage(cfg, detector).scale(photograph(64, 64), 64, 64)))
    found = improved(cfg, detector, photograph(90, 131))
    assert found["boxes"].shape == (0, 4) and found["scores"].shape == found["labels"].shape == (0,)
    cfg, detector = build("fpn", *keys, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert improved(cfg, detector, photograph(90, 131))["boxes"].shape == (0, 4)


@torch.inference_mode()
@pytest.mark.parametrize("classes", [1, 3])
def test_predictions_that_overflowed_are_no_detections(build, classes):
    """The last class, or the only one, has boxes without a place in x: they are dropped, nothing is pooled there."""
    cfg, detector = build("vgg_c5", *REFINEMENT, *MULTI_SCALE, "MODEL.ROI_HEADS.NUM_CLASSES", str(classes))
    assert classes - 1 in improved(cfg, detector, photograph(90, 131))["labels"]
    detector.roi_heads.box_predictor.bbox_pred.bias.data[-4] = torch.nan
    labels = improved(cfg, detector, photograph(90, 131))["labels"]
    assert set(labels.tolist()) == set(range(classes - 1))


@torch.inference_mode()
def test_mixed_precision_does_not_round_the_boxes(build):
    """A vote among boxes far right: bfloat16 knows every second pixel there only."""
    cfg, detector = build("fpn", *REFINEMENT, "INPUT.MIN_SIZE_TEST", "0")
    image = photograph(40, 500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = improved(cfg, detector, image)["boxes"]
    far = found[found > 256]
    assert len(far) > 3 and (far[far < 500] != far[far < 500].bfloat16().float()).any()


@pytest.mark.parametrize("kind", ["fpn", "c4", "vgg_c5"])
def test_context_is_the_whole_image_as_one_more_region(build, kind):
    """Box by box, each beside its own image: two images of different sizes, one without a box."""
    cfg, detector = build(kind, *CONTEXT)
    heads = detector.roi_heads
    sizes = [(64, 93), (70, 48), (50, 50)]
    batch, _ = detector.transform([photograph(*size) for size in sizes])
    boxes = [torch.tensor([[3.0, 4, 40, 50], [10, 10, 90, 60]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 9, 9]])]
    with torch.inference_mode():
        features = detector.backbone(batch.tensors)
        regions, vectors = heads.region_vectors(features, boxes, sizes)
        expected = []
        for index, ((height, width), own) in enumerate(zip(sizes, boxes, strict=True)):
            maps = {name: value[index : index + 1] for name, value in features.items()}
            for box in own:
                pair = [box, torch.tensor([0.0, 0, width, height])]
                crops = [heads.box_roi_pool(maps, [one[None]], [(height, width)]) for one in pair]
                expected.append(torch.cat([heads.box_head(crop)[0] for crop in crops]))
    torch.testing.assert_close(vectors, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert len(regions) == 3
    assert heads.box_predictor.cls_score.in_features == vectors.shape[1] == 2 * heads.box_head.out_channels


@torch.inference_mode()
def test_context_of_a_pyramid_comes_from_the_level_of_its_size(build):
    """An image of 64 x 93 pixels is a region of 77 x 77, for p2; one of 448 x 448, for p5."""
    cfg, detector = build("fpn", *CONTEXT)
    heads = detector.roi_heads
    for size, level, stride in [((64, 93), "p2", 4), ((448, 448), "p5", 32)]:
        batch, _ = detector.transform([photograph(*size)])
        features = detector.backbone(batch.tensors)
        whole = torch.tensor([[0, 0.0, 0, size[1], size[0]]])
        crop = roi_align(features[level], whole, 7, 1 / stride, aligned=True)
        _, vectors = heads.region_vectors(features, [torch.tensor([[1.0, 1, 30, 30]])], [size])
        torch.testing.assert_close(vectors[:, 16:], heads.box_head(crop))


@pytest.mark.parametrize(("kind", "masks"), [("fpn", False), ("fpn", True), ("c4", True)])
def test_context_learns_end_to_end(build, kind, masks):
    """Its loss reaches every parameter, and the box head through the half of the context, too."""
    keys = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"] if masks else []
    _, detector = build(kind, *CONTEXT, *keys)
    images = [photograph(57, 70), photograph(64, 48)]
    targets = [
        {"boxes": torch.tensor([[5.0, 6, 50, 50], [20, 20, 66, 57]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    for target, size in zip(targets, [(57, 70), (64, 48)], strict=True):
        target["masks"] = torch.ones(len(target["boxes"]), *size, dtype=torch.uint8)
    sum(detector.train()(images, targets).values()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    heads = detector.roi_heads
    detector.zero_grad()
    for layer in (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
        layer.weight.data[:, : heads.box_head.out_channels] = 0
    _, losses = heads(
        detector.backbone(detector.transform(images[:1])[0].tensors),
        [targets[0]["boxes"]],
        [(57, 70)],
        targets[:1],
    )
    (losses["loss_classifier"] + losses["loss_box_reg"]).backward()
    assert all(p.grad.abs().sum() > 0 for p in heads.box_head.parameters() if p.ndim > 1)


def test_with_context_off_nothing_has_changed(build):
    """The parameters and their order, hence the random numbers of a new detector."""
    (_, off), (_, on) = build("fpn"), build("fpn", *CONTEXT)
    differ = {
        name
        for (name, a), (_, b) in zip(off.named_parameters(), on.named_parameters(), strict=True)
        if a.shape != b.shape
    }
    assert differ == {"roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@torch.inference_mode()
def test_a_gpu_finds_the_same(build):
    keys, others = COMBINATIONS["everything"]
    cfg, detector = build("fpn", *keys)
    members = [build(kind) for kind in others]
    image = photograph(90, 131)
    expected = improved(cfg, detector, image, members)["scores"][:3]
    on_gpu = Improved(cfg, detector, members).eval().cuda()
    for dtype, tolerance in ((torch.float32, 0.02), (torch.float16, 0.1)):  # convolutions round to TF32
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            found = on_gpu([image.cuda()])[0]
        torch.testing.assert_close(found["scores"][:3].cpu(), expected, rtol=0, atol=tolerance)
