"""What is exported, what the file says of itself, and what is asked of it: to run and to agree with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

from torch import Tensor, nn

from resnet_backbone.export.compare import Agreement

FACTS_KEY = "resnet_backbone"  # of the entry in metadata_props of ONNX; in a .pt2, the file FACTS_KEY.json


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


@dataclass(frozen=True)
class Subject:
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
