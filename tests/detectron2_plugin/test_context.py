"""Global context on Detectron2: against one box after another, the torchvision engine, and the detector without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.modeling.roi_heads import StandardROIHeads  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from resnet_backbone.detectron2_plugin import ContextROIHeads, add_resnet_backbone_config  # noqa: E402
from resnet_backbone.detectron2_plugin.roi_heads import region_vectors  # noqa: E402

CONTEXT = ("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "True")
KINDS = ("fpn", "c4", "vgg_c5")
SIZES = [(64, 93), (70, 48), (50, 50)]
PADDED = [(64, 96), (96, 64)]  # sizes that both engines pad to the same batch
# Every region counts in the losses, so that both engines sample the same.
ALL_REGIONS = [
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"),
]


@pytest.fixture
def batch(pixels) -> list[dict]:
    """Two images of unequal sizes with what to learn from them."""
    records = []
    boxes = [torch.tensor([[5.0, 6, 50, 50], [20, 20, 66, 57]]), torch.tensor([[3.0, 4, 40, 60]])]
    for (height, width), own in zip(PADDED, boxes, strict=True):
        masks = torch.zeros(len(own), height, width, dtype=torch.bool)
        masks[:, 10:40, 20:30] = True
        truth = Instances((height, width), gt_boxes=Boxes(own), gt_classes=torch.arange(len(own)))
        truth.gt_masks = BitMasks(masks)
        records.append({"image": pixels(height, width), "instances": truth, "height": height, "width": width})
    return records


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_image_is_one_more_region(faster_rcnn, pixels, kind):
    """Box by box, each beside its own image, one of them without a box; a pooler for each box alone."""
    _, model = faster_rcnn(kind, *CONTEXT)
    heads = model.roi_heads
    images = model.preprocess_image([{"image": pixels(*size)} for size in SIZES])
    features = model.backbone(images.tensor)
    boxes = [torch.tensor([[3.0, 4, 40, 50], [10, 10, 90, 60]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 9, 9]])]
    _, found = region_vectors(heads, features, [Boxes(own) for own in boxes], SIZES)

    def vector(image: int, box: Tensor) -> Tensor:
        maps = [features[name][image : image + 1] for name in heads.in_features]
        if kind == "c4":
            return heads._shared_roi_transform(maps, [Boxes(box[None])])[0].mean(dim=(1, 2))
        return heads.box_head(heads.box_pooler(maps, [Boxes(box[None])]))[0]

    expected = [
        torch.cat([vector(index, box), vector(index, torch.tensor([0.0, 0, width, height]))])
        for index, ((height, width), own) in enumerate(zip(SIZES, boxes, strict=True))
        for box in own
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert heads.box_predictor.cls_score.in_features == found.shape[1]


@pytest.mark.parametrize("context", [(), CONTEXT], ids=["without", "context"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_detections_are_the_torchvision_engines(faster_rcnn, as_torchvision, batch, kind, context):
    cfg, model = faster_rcnn(kind, *ALL_REGIONS, *context)
    other = as_torchvision(cfg, model)
    images = [record["image"] for record in batch]
    targets = [
        {"boxes": record["instances"].gt_boxes.tensor, "labels": record["instances"].gt_classes} for record in batch
    ]
    with EventStorage(), torch.no_grad():
        ours, theirs = model.train()(batch), other.train()(images, targets)
    assert ours["loss_cls"].item() == pytest.approx(theirs["loss_classifier"].item(), rel=1e-4)
    assert ours["loss_box_reg"].item() == pytest.approx(theirs["loss_box_reg"].item(), rel=1e-4)
    with torch.inference_mode():
        for record, theirs in zip(model.eval()(batch), other.eval()(images), strict=True):
            found = record["instances"]
            assert len(found) >= 5
            torch.testing.assert_close(found.pred_boxes.tensor, theirs["boxes"], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found.scores, theirs["scores"], rtol=1e-4, atol=1e-4)
            assert found.pred_classes.tolist() == theirs["labels"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_context_learns_end_to_end(faster_rcnn, batch, kind):
    """Every trained parameter gets a gradient; the box head also where the predictor reads the context alone."""
    _, model = faster_rcnn(kind, *CONTEXT, "MODEL.BACKBONE.FREEZE_AT", "0")
    heads = model.roi_heads.train()
    for layer in (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
        layer.weight.data[:, : layer.in_features // 2] = 0
    with EventStorage():
        losses = model.train()(batch)
        (losses["loss_cls"] + losses["loss_box_reg"]).backward(retain_graph=True)
        parts = heads.res5 if kind == "c4" else heads.box_head
        assert all(p.grad.abs().sum() > 0 for p in parts.parameters() if p.ndim > 1)
        sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_masks_are_those_without_context(faster_rcnn, batch, kind):
    """On C4 they share the crops with the box head, without the whole images that came with them."""
    keys = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    keys += ["MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "INPUT.MASK_FORMAT", "bitmask", *ALL_REGIONS]
    _, plain = faster_rcnn(kind, *keys)
    _, context = faster_rcnn(kind, *keys, *CONTEXT)
    state = {name: t for name, t in plain.state_dict().items() if "box_predictor" not in name}
    assert set(context.load_state_dict(state, strict=False).missing_keys) == {
        f"roi_heads.box_predictor.{layer}.{what}" for layer in ("cls_score", "bbox_pred") for what in ("weight", "bias")
    }
    with EventStorage(), torch.no_grad():
        losses = [model.train()(batch) for model in (plain, context)]
    assert losses[0]["loss_mask"].item() == pytest.approx(losses[1]["loss_mask"].item(), rel=1e-5)
    assert losses[0]["loss_cls"].item() != pytest.approx(losses[1]["loss_cls"].item(), rel=1e-3)
    with torch.inference_mode():
        found = context.eval()(batch)[0]["instances"]
    assert found.pred_masks.shape == (len(found), *PADDED[0]) and len(found) > 0


def test_with_context_off_nothing_has_changed(faster_rcnn):
    """The parameters and their names; and StandardROIHeads are Detectron2's own."""
    (_, off), (_, on) = faster_rcnn("fpn"), faster_rcnn("fpn", *CONTEXT)
    assert type(off.roi_heads) is StandardROIHeads and type(on.roi_heads) is ContextROIHeads
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (off, on)]
    assert list(shapes[0]) == list(shapes[1])
    assert {name for name in shapes[0] if shapes[0][name] != shapes[1][name]} == {
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.bbox_pred.weight",
    }


def project_cfg(*overrides):
    """A config of somebody else's project, which is built by Detectron2's own ``build_model``."""
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    fpn = ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "meta", "MODEL.BACKBONE.NAME", "build_imagenet_fpn_backbone"),
            *("MODEL.RESNET_BACKBONE.ARCH", "resnet18", "MODEL.FPN.IN_FEATURES", fpn),
            *("MODEL.RPN.IN_FEATURES", ["p2"], "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3"]),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            *overrides,
        ]
    )
    return cfg


def test_another_project_names_the_heads_itself():
    cfg = project_cfg("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", True, "MODEL.ROI_HEADS.NAME", "ContextROIHeads")
    with torch.device("meta"):
        heads = build_model(cfg).roi_heads
    assert type(heads) is ContextROIHeads and heads.box_predictor.bbox_pred.in_features == 2 * 1024
    assert not {"BOX_REFINEMENT", "MULTI_SCALE", "ENSEMBLE"} & set(cfg.TEST)  # its tools would not obey them


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL.ROI_HEADS.NAME", "StandardROIHeads"), "StandardROIHeads knows of none; write .*NAME: ContextROIHeads"),
        (("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), "knows of none; write MODEL.ROI_HEADS.NAME: ImageNetRes5ROIHeads"),
        (("MODEL.ROI_HEADS.NAME", "CascadeROIHeads"), "CascadeROIHeads knows of none; write GLOBAL_CONTEXT: False"),
        (
            ("MODEL.ROI_HEADS.NAME", "ContextROIHeads", "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True),
            "TRAIN_ON_PRED_BOXES does not go with GLOBAL_CONTEXT",
        ),
        (
            ("MODEL.ROI_HEADS.NAME", "ContextROIHeads", "MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", False),
            "ContextROIHeads needs MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT: True; without context write",
        ),
    ],
)
def test_heads_that_do_not_read_it_are_refused(words, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_model(project_cfg("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", True, *words))
