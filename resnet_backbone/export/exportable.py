"""What is exported, what its file says of itself, and how the file's outputs are compared with those of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

FACTS_KEY = "resnet_backbone"  # of the entry in metadata_props of ONNX; in a .pt2, the file FACTS_KEY.json


# Largest differences that pass. Sums in another order explain far less: 1e-3 pixels, 1e-5 of a score.
TOLERANCES = {"boxes": 0.05, "scores": 5e-4, "masks": 5e-3}  # pixels, and probabilities
RELATIVE_TOLERANCE = 1e-4  # of feature maps and logits, to the largest value

# Beyond these, two detections are not the same one.
_SAME_BOX = 1.0  # pixels
_SAME_SCORE = 0.01
_EXCEPTIONS = 100  # one detection in so many may be decided otherwise, where it is within rounding of a threshold


@dataclass(frozen=True)
class Facts:
    """Plain values, kept as JSON.

    Attributes:
        task: ``features``, ``classification``, ``detection`` or ``segmentation``.
        architecture: of the trunk, as in ``resnet50``; of a detector after its meta-architecture.
        source: name of the file that the weights are from.
        input: name, shape and type of the only input.
        channel_order: ``RGB`` or ``BGR``.
        value_range: of the pixels, before ``mean`` and ``std`` where these are applied outside.
        mean: for each channel, in ``channel_order``, on the scale of ``value_range``.
        std: likewise; ``(pixel - mean) / std``.
        normalises: whether the file does that itself; if not, it is done before.
        resize: what is done to an image before; empty where nothing is known.
        smallest_side: pixels, the least height and width for which the file is promised to work.
        outputs: names, in their order, to shapes and meaning.
        class_names: in the order of the labels or logits; empty where nobody said.
        score_threshold: of a detector, in the tensor ``score_threshold`` of the file.
        package_version: of resnet_backbone.
        torch_version: of torch.
    """

    task: str
    architecture: str
    source: str
    input: str
    channel_order: str
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalises: bool
    resize: str
    smallest_side: int
    outputs: dict[str, str]
    class_names: tuple[str, ...]
    package_version: str
    torch_version: str
    score_threshold: float | None = field(default=None)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


class ExportedFile(Protocol):
    """A file that was read back."""

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return its outputs, on the CPU."""
        ...

    def set_score_threshold(self, threshold: float) -> None:
        """Run with another value in the tensor ``score_threshold`` from now on; the file stays as it is."""
        ...


@dataclass
class Agreement:
    """What was compared, image after image.

    Attributes:
        images: shapes of what was run.
        detections: how many were compared; of a trunk 0.
        unmatched: detections that only one side has.
        largest: differences by output; of feature maps and logits relative to the largest value.
    """

    images: list[tuple[int, ...]] = field(default_factory=list)
    detections: int = 0
    unmatched: int = 0
    largest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, difference: float) -> None:
        """Note a difference; NaN counts as infinite."""
        difference = difference if difference == difference else float("inf")
        self.largest[name] = max(self.largest.get(name, 0.0), difference)

    def problems(self) -> list[str]:
        """Return what speaks against the file; empty where it agrees."""
        found = [
            f"{name} differ by {value:.3g}, more than {TOLERANCES.get(name, RELATIVE_TOLERANCE)}"
            for name, value in self.largest.items()
            if value > TOLERANCES.get(name, RELATIVE_TOLERANCE)
        ]
        if self.unmatched > self.detections // _EXCEPTIONS:
            found.append(f"{self.unmatched} of {self.detections} detections have no counterpart")
        if not self.largest:
            found.append("nothing was found on any image, so nothing was compared: name images with objects")
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Exportable:
    """A network with all that exporting it takes.

    Attributes:
        module: in eval mode; takes one tensor and returns a tuple of them.
        input_name: of that tensor.
        example: it is traced with; no size in it is one that the network handles otherwise than others.
        axes: of the input, those whose size varies, by name.
        output_axes: likewise of every output.
        facts: for the file.
        check: compares a file with the network in PyTorch, see :class:`Agreement`.
    """

    module: nn.Module
    input_name: str
    example: Tensor
    axes: dict[int, str]
    output_axes: dict[int, str]
    facts: Facts
    check: Callable[[ExportedFile], Agreement]


def compare_tensors(agreement: Agreement, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Compare feature maps or logits of the same names."""
    for name, want in expected.items():
        have = actual[name]
        if have.shape != want.shape:
            agreement.add(name, float("inf"))
        else:
            agreement.add(name, float((have - want).abs().max() / want.abs().max().clamp(min=1e-12)))


def compare_detections(
    agreement: Agreement, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], threshold: float
) -> None:
    """Compare the detections of one image, each with the one of its label whose box is the nearest.

    Args:
        agreement: gets the result.
        expected: ``boxes`` (R, 4) in pixels, ``labels`` (R,), ``scores`` (R,), and where there are any ``masks``, best
            first.
        actual: likewise.
        threshold: a detection that close to this score may be missing on either side.
    """
    free = torch.ones(len(actual["labels"]), dtype=torch.bool)
    unmatched = []
    for index, (box, label, score) in enumerate(
        zip(expected["boxes"], expected["labels"], expected["scores"], strict=True)
    ):
        alike = free & (actual["labels"] == label) & ((actual["scores"] - score).abs() <= _SAME_SCORE)
        distances = (actual["boxes"] - box).abs().amax(dim=1).masked_fill(~alike, float("inf"))
        if not len(distances) or not distances.min() <= _SAME_BOX:
            unmatched.append(float(score))
            continue
        match = int(distances.argmin())
        free[match] = False
        agreement.detections += 1
        for name in expected.keys() - {"labels"}:
            agreement.add(name, float((actual[name][match] - expected[name][index]).abs().max()))
    unmatched += actual["scores"][free].tolist()
    missing = [score for score in unmatched if not abs(score - threshold) <= TOLERANCES["scores"]]
    agreement.unmatched += len(missing)
    agreement.detections += len(missing)
