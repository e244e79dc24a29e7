"""What is exported, and the two things that are asked of a file: run, and agree with what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from resnet_backbone.export.compare import Agreement
from resnet_backbone.export.facts import Facts


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
