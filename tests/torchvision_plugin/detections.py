"""Comparing this engine's detectors with others': images, random weights that find something, the same detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from tests.helpers import photograph

SHORTER_SIDE = 256  # pixels
# The heads of a thousand regions, and a hundred masks, would take most of the time.
FEW_REGIONS, FEW_DETECTIONS = 100, 30
CPU = [
    *("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False", "MODEL.RESNET_BACKBONE.MEMORY_FORMAT", "contiguous"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", str(FEW_REGIONS), "TEST.DETECTIONS_PER_IMAGE", str(FEW_DETECTIONS)),
]
# Among thousands of proposals some have scores, or overlaps, so near to each other that rounding decides.
UNFOLDED = ["MODEL.RESNET_BACKBONE.FOLD_NORMS", "False"]
TIES = 0.01


def generated() -> list[Tensor]:
    """Return two images, float32 (3, H, W) from 0 to 255, no side a multiple of a stride."""
    return [photograph(190, 250).float(), photograph(129, 95).float()]


def photographs(folder: Path, count: int = 20) -> Iterator[Tensor]:
    """Yield the first images of a folder, scaled down, float32 (3, H, W), whole numbers from 0 to 255."""
    for path in sorted(folder.glob("*.jpg"))[:count]:
        yield resize(decode_image(str(path), ImageReadMode.RGB), [SHORTER_SIDE], antialias=True).float()


# Layers by the ends of their names, and how far their outputs vary: no box gets empty, since it would be dropped.
_SCORES = {
    **dict.fromkeys(("box_predictor.cls_score", "mask_head.predictor", "mask_predictor.mask_fcn_logits"), 1.5),
    **dict.fromkeys(("rpn.head.cls_logits", "objectness_logits", "head.cls_score", "n_head.cls_logits"), 1.0),
}
_DELTAS = dict.fromkeys(("bbox_pred", "bbox_reg", "anchor_deltas"), 0.05)


@torch.no_grad()
def vary(model: nn.Module, detect: Callable[[], object]) -> None:
    """Let a detector with random weights find something, in place: norms get statistics, scores and boxes vary.

    ``detect`` runs it on an image, on whose first call each last layer is scaled to what comes in.
    """
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.4, 0.8)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.05)
    handles = []
    for name, layer in model.named_modules():
        for end, spread in (_SCORES | _DELTAS).items():
            if name.endswith(end):
                handles.append(layer.register_forward_pre_hook(_scaling(spread, centred=end in _SCORES)))
                break
    detect()
    for handle in handles:
        handle.remove()
    for name, tensor in model.state_dict().items():
        if name in ("head.cls_score.bias", "head.classification_head.cls_logits.bias"):
            tensor.sub_(3)  # of RetinaNet


def _scaling(spread: float, *, centred: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    seen = []

    def scale(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        if seen or not inputs[0].numel():
            return
        seen.append(layer)
        layer.bias.zero_()
        layer.weight.normal_(std=0.01)
        outputs = layer.forward(inputs[0]).transpose(0, 1).flatten(1)  # (channels, places)
        factor = spread / (outputs.std(dim=1).mean() if centred else outputs.std())
        layer.weight.mul_(factor)
        if centred:
            layer.bias.sub_(outputs.mean(dim=1) * factor)

    return scale


class Comparison:
    """Detections that are the same on both sides: boxes within 1e-3 pixel, scores and masks within 1e-4."""

    def __init__(self) -> None:
        self.same = self.others = 0

    def add(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        """Compare those of one image; scores that are equal but for rounding may come in another order.

        Below the last expected score others may have been cut off. Masks of the same detections must be the same.
        """
        sure = expected["scores"] > expected["scores"][-1] + 1e-4
        distances = torch.cdist(_places(expected)[sure], _places(found), p=torch.inf)
        nearest, partners = distances.min(dim=1)
        same = nearest < 1
        self.same, self.others = self.same + int(same.sum()), self.others + int((~same).sum())
        if "masks" in expected:
            masks = expected["masks"].reshape(-1, *found["masks"].shape[1:])[sure]
            torch.testing.assert_close(found["masks"][partners[same]], masks[same], rtol=0, atol=1e-4)

    def check(self, *, share: float = 0.0) -> None:
        """Demand that at most this share of the detections are others: those where rounding decides, see UNFOLDED."""
        assert self.same > 20 and self.others <= share * self.same, (self.same, self.others)


def _places(detections: Mapping[str, Tensor]) -> Tensor:
    """In units of what may differ."""
    columns = (detections["boxes"] / 1e-3, detections["scores"][:, None] / 1e-4, detections["labels"][:, None] * 1e9)
    return torch.cat([column.double() for column in columns], dim=1)
