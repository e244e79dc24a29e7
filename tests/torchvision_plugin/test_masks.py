"""The mask branch against Detectron2's and pycocotools': targets, loss, network, masks in the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.transforms import train_transforms
from resnet_backbone.torchvision_plugin.mask_heads import MaskHead, crop_masks, mask_loss, masks_of, paste_masks

HEIGHT, WIDTH = 90, 120


def star(x: float, y: float, radius: float) -> np.ndarray:
    angles = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2, 0.5, 1) * radius
    return np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1).reshape(-1)


INSTANCES = [[star(30, 40, 25)], [star(80, 30, 20), star(100, 70, 15)], [star(60, 60, 55)]]
BOXES = torch.tensor([[3.0, 12, 58, 70], [50.5, 8.25, 119, 90], [70, 15, 95, 45], [0, 0, 120, 90], [20, 30, 20, 35]])
MATCHES = torch.tensor([0, 1, 1, 2, 0])
LABELS = torch.tensor([2, 1, 3, 3, 1])


def bitmasks() -> torch.Tensor:
    masks = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(p, HEIGHT, WIDTH))) for p in INSTANCES]
    return torch.from_numpy(np.stack(masks))


def truth(kind: str):
    return bitmasks() if kind == "bitmask" else INSTANCES


def detectron2_masks(kind: str):
    structures = pytest.importorskip("detectron2.structures", reason="Detectron2 is not installed")
    return structures.BitMasks(bitmasks()) if kind == "bitmask" else structures.PolygonMasks(INSTANCES)


@pytest.mark.parametrize("size", [14, 28])
@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_targets_are_detectron2s(kind, size):
    theirs = detectron2_masks(kind)[MATCHES].crop_and_resize(BOXES, size)
    assert torch.equal(crop_masks(truth(kind), BOXES, MATCHES, size).bool(), theirs.bool())


def test_both_forms_of_a_mask_give_nearly_the_same_target():
    large = [[polygon * 8 for polygon in polygons] for polygons in INSTANCES]
    drawn = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(p, HEIGHT * 8, WIDTH * 8))) for p in large]
    a = crop_masks(large, BOXES[:4] * 8, MATCHES[:4], 28)
    b = crop_masks(torch.from_numpy(np.stack(drawn)), BOXES[:4] * 8, MATCHES[:4], 28)
    assert 0.1 < a.mean() < 0.9
    assert (a != b).float().mean() < 0.03


def test_both_forms_of_real_masks_give_nearly_the_same_target(coco_mini):
    """Through the training's resizing and flipping, at the resolution of a mask head."""
    files = (coco_mini / "annotations/instances_train2017.json", coco_mini / "train2017")
    transforms = train_transforms((600, 800), 1333)
    forms = [CocoDataset(*files, transforms, with_masks=True, mask_format=form) for form in ("polygon", "bitmask")]
    differing = []
    for index in range(0, 40, 4):
        found = []
        for dataset, key in zip(forms, ("polygons", "masks"), strict=True):
            torch.manual_seed(index)
            _, target = dataset[index]
            boxes = target["boxes"].as_subclass(torch.Tensor)
            large = torch.where((boxes[:, 2:] - boxes[:, :2]).min(dim=1).values > 60)[0]
            masks = target[key] if key == "polygons" else target[key].as_subclass(torch.Tensor)
            found.append(crop_masks(masks, boxes[large], large, 28))
        assert len(found[0]) == len(found[1])
        differing += (found[0] != found[1]).flatten(1).float().mean(dim=1).tolist()
    assert len(differing) > 15 and np.mean(differing) < 0.03 and max(differing) < 0.15


@pytest.mark.parametrize("num_masks", [1, 3])
@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_the_loss_is_detectron2s(kind, num_masks):
    """Of two images, the second of which has no instance."""
    mask_head = pytest.importorskip("detectron2.modeling.roi_heads.mask_head", reason="Detectron2 is not installed")
    structures = pytest.importorskip("detectron2.structures")
    events = pytest.importorskip("detectron2.utils.events")
    torch.manual_seed(0)
    logits = torch.randn(5, num_masks, 28, 28)
    none = torch.zeros(0, dtype=torch.int64)
    empty = torch.zeros(0, HEIGHT, WIDTH, dtype=torch.uint8) if kind == "bitmask" else []
    ours = mask_loss(logits, [BOXES, torch.zeros(0, 4)], [LABELS, none], [MATCHES, none], [truth(kind), empty])
    fields = {"proposal_boxes": structures.Boxes(BOXES), "gt_classes": LABELS - 1}
    instances = structures.Instances((HEIGHT, WIDTH), **fields, gt_masks=detectron2_masks(kind)[MATCHES])
    with events.EventStorage():
        theirs = mask_head.mask_rcnn_loss(logits, [instances, instances[:0]])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("empty", [torch.zeros(0, 4, 4, dtype=torch.uint8), []], ids=["bitmask", "polygon"])
def test_without_regions_the_loss_is_zero_and_reaches_every_parameter(empty):
    head = MaskHead(8, num_conv=2, conv_dim=8, num_masks=3)
    none = torch.zeros(0, dtype=torch.int64)
    loss = mask_loss(head(torch.zeros(0, 8, 14, 14)), [torch.zeros(0, 4)], [none], [none], [empty])
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("num_conv", [0, 4])
@pytest.mark.parametrize("agnostic", [False, True])
def test_the_network_is_detectron2s(num_conv, agnostic):
    mask_head = pytest.importorskip("detectron2.modeling.roi_heads.mask_head", reason="Detectron2 is not installed")
    layers = pytest.importorskip("detectron2.layers")
    structures = pytest.importorskip("detectron2.structures")
    torch.manual_seed(0)
    num_masks = 1 if agnostic else 3
    ours = MaskHead(8, num_conv, 16, num_masks)
    theirs = mask_head.MaskRCNNConvUpsampleHead(
        layers.ShapeSpec(channels=8, height=14, width=14), num_classes=num_masks, conv_dims=[16] * (num_conv + 1)
    ).eval()
    parameters = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    for a, b in parameters:
        assert a.shape == b.shape
        if a.ndim > 1 and a.numel() > 500:
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.15)  # the initialisation
        else:
            assert a.abs().max() < 0.01 and b.abs().max() < 0.01
        b.data.copy_(a.data.normal_(std=0.1))
    x, labels = torch.randn(5, 8, 14, 14), torch.tensor([1, 2, 3, 1, 2])
    instances = structures.Instances((9, 9), pred_classes=labels - 1)
    expected = theirs(x, [instances])[0].pred_masks[:, 0]
    torch.testing.assert_close(masks_of(ours(x), labels).sigmoid(), expected, rtol=1e-5, atol=1e-6)


def random_boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT]) * 0.9
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * 60 + 0.1], dim=1)
    return torch.minimum(boxes, torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))


@pytest.mark.parametrize("size", [14, 28])
def test_pasted_masks_are_detectron2s(size):
    mask_ops = pytest.importorskip("detectron2.layers.mask_ops", reason="Detectron2 is not installed")
    torch.manual_seed(0)
    masks, boxes = torch.rand(40, size, size), random_boxes(40)
    ours = paste_masks(masks, boxes, HEIGHT, WIDTH)
    assert torch.equal(ours, mask_ops.paste_masks_in_image(masks, boxes, (HEIGHT, WIDTH)))


def test_a_full_mask_covers_its_box():
    pasted = paste_masks(torch.ones(2, 28, 28), torch.tensor([[10.0, 20, 50, 40], [0, 0, 120, 90]]), HEIGHT, WIDTH)
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[20:40, 10:50] = True
    assert torch.equal(pasted[0], expected)
    assert (~pasted[1]).sum() <= 4  # corners, half of which lies outside the mask in both directions
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 7).shape == (0, 5, 7)


def test_what_was_cropped_comes_back_where_it_was():
    boxes = torch.tensor([[5.0, 15, 55, 65], [60, 10, 120, 86], [4, 3, 118, 88]])
    masks = bitmasks()
    back = paste_masks(crop_masks(masks, boxes, torch.arange(3), 56), boxes, HEIGHT, WIDTH)
    for found, mask in zip(back, masks.bool(), strict=True):
        assert (found & mask).sum() / (found | mask).sum() > 0.93
