"""Whether the detector holds the tensors of the file, all of them and nothing else."""

from __future__ import annotations

import copy

import torch

from resnet_backbone.diagnosis.checkpoint import DETECTOR, Checkpoint
from resnet_backbone.diagnosis.engine import DetectorParts
from resnet_backbone.diagnosis.report import Section
from resnet_backbone.weights import WeightsError, load_weights
from resnet_backbone.weights.errors import shorten

_COUNTER = ".num_batches_tracked"


def check_tensors(section: Section, parts: DetectorParts, checkpoint: Checkpoint, *, strict: bool) -> None:
    """Load the file anew into a copy of the trunk, and compare the detector with that, tensor by tensor.

    Args:
        section: gets the report of the loading and the findings.
        parts: the detector, filled by its engine, with a trunk.
        checkpoint: what it was filled from.
        strict: MODEL.RESNET_BACKBONE.STRICT_WEIGHTS; without it a file that fits in part is a warning.
    """
    if parts.trunk is None:
        raise ValueError("the detector's backbone is not one of this package")
    anew = copy.deepcopy(parts.trunk)
    weights = checkpoint.weights
    try:
        report = load_weights(anew, weights)
    except WeightsError as error:
        (section.wrong if strict else section.warning)(str(error))
        return
    section.facts["load"] = report.to_dict()
    expected = {name: tensor for name, tensor in anew.state_dict().items() if not name.endswith(_COUNTER)}
    found = parts.trunk.state_dict()
    for part, module in parts.head_parts.items():
        for name, tensor in module.state_dict().items():
            full_name = f"{part}.{name}"
            if full_name in weights.state_dict and not name.endswith(_COUNTER):
                expected[full_name] = weights.state_dict[full_name]
                found[full_name] = tensor
    differ = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    if differ:
        section.wrong(f"{len(differ)} of {len(expected)} tensors of the detector are not the file's: {shorten(differ)}")
        return
    heads = f" and of {', '.join(parts.head_parts)} in the head" if parts.head_parts else ""
    section.ok(f"{len(expected)} tensors of the trunk{heads} are the file's")
    if checkpoint.kind == DETECTOR:  # the rest of the file is the rest of the detector
        return
    for why, names in report.ignored.items():
        unused = [name for name in names if name not in expected and not name.endswith(_COUNTER)]
        if unused:
            section.ok(f"{len(unused)} tensors of the file are not used: {why}")
