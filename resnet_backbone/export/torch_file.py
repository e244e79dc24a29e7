"""torch.export's .pt2: writing a captured program, and running the file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from resnet_backbone.export.facts import FACTS_KEY
from resnet_backbone.export.subject import Subject

_FACTS_FILE = f"{FACTS_KEY}.json"


def write_torch(program: ExportedProgram, subject: Subject, path: Path) -> None:
    """Write what ``torch.export.load`` reads, after ``import torchvision`` for a detector."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the paths of this machine's source files
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_FACTS_FILE: subject.facts.to_json()})


class TorchFile:
    """See :class:`~resnet_backbone.export.subject.ExportedFile`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._module = torch.export.load(file).module()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._module(images))

    def set_score_threshold(self, threshold: float) -> None:
        self._module.get_buffer("score_threshold").fill_(threshold)


def read_torch_facts(path: Path) -> str:
    """Return the JSON of :class:`~resnet_backbone.export.facts.Facts` in a file."""
    files = {_FACTS_FILE: ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=files)
    return files[_FACTS_FILE]
