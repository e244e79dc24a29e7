#!/usr/bin/env python
"""Every network of timm with four levels at strides 4 to 32 and at most 60 million parameters, as a detector's trunk.

Example: python -m benchmarks.timm_sweep --output timm.jsonl --shard 0/2

Each is built once, with random weights, and must compute what timm's own features_only does, on an even and on an odd
size of images; carry a pyramid on both engines (on torchvision alone where Detectron2 is absent); give every parameter
a gradient; and freeze what it says. One line of JSON a network; those that are in the file are not done again. Beside
the file stands a table of all shards that wrote into its folder, as Markdown.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from resnet_backbone.models.registry import create_model, load_weights
from resnet_backbone.models.timm_trunk import TimmTrunk
from resnet_backbone.models.trunk import OptionError
from resnet_backbone.torchvision_plugin.detector import FPNBackbone
from resnet_backbone.weights.timm_files import timm_network

LEVELS = ["res2", "res3", "res4", "res5"]
MOST_PARAMETERS = 60_000_000
TOLERANCE = 1e-6  # of the largest value
PASSED, REFUSED, FAILED, OTHER = "passed", "refused", "failed", "not asked for"


@dataclass(frozen=True)
class Row:
    """What was found of one network."""

    name: str
    status: str
    reason: str = ""
    millions: float = 0.0  # parameters, with its classifier
    multiple: int = 0  # pixels that images are padded to multiples of
    odd: str = ""  # how an odd size went
    frozen: int = 0  # stages that FREEZE_AT can count
    difference: float = 0.0  # largest from timm's own maps, relative to their largest value
    seconds: float = 0.0


def check(name: str) -> Row:
    """Check one network, see above."""
    start = time.perf_counter()
    millions = 0.0
    try:
        network = timm_network(name)
        millions = sum(parameter.numel() for parameter in network.model.parameters()) / 1e6
        strides = {info["reduction"] for info in _infos(network.model)}
        if millions * 1e6 > MOST_PARAMETERS:
            return Row(name, OTHER, "more than 60 million parameters", millions)
        if not {4, 8, 16, 32} <= strides:
            return Row(name, OTHER, f"no maps at strides 4 to 32: {sorted(strides)}", millions)
        try:
            trunk: Any = create_model(f"timm/{name}", num_classes=0, out_features=LEVELS)
        except ValueError as error:
            return Row(name, REFUSED, str(error), millions, seconds=time.perf_counter() - start)
        found = _check_trunk(name, trunk)
    except Exception as error:  # noqa: BLE001  whatever it is, the others are still checked
        reason = f"{type(error).__name__}: {error} ({traceback.format_exc().splitlines()[-3].strip()})"
        return Row(name, FAILED, reason[:1000], millions, seconds=time.perf_counter() - start)
    status = FAILED if found["reason"] else PASSED
    return Row(name, status, millions=millions, seconds=time.perf_counter() - start, **found)


def _infos(model: Any) -> Sequence[Any]:
    return getattr(model.feature_info, "info", model.feature_info)


def _check_trunk(name: str, trunk: TimmTrunk) -> dict[str, Any]:
    torch.manual_seed(0)
    theirs: Any = timm.create_model(
        name, features_only=True, out_indices=trunk.indices, **timm_network(name).options
    ).eval()
    unlike_their_start(theirs)
    load_weights(trunk.eval(), theirs.state_dict())
    m = trunk.multiple
    difference = _difference(trunk, theirs, (64, 96) if m <= 32 else (m, 2 * m))
    faults = [] if difference <= TOLERANCE else [f"maps differ by {difference:.1e}"]
    try:
        odd = _difference(trunk, theirs, (2 * m + 11, 3 * m + 5))
        faults += [] if odd <= TOLERANCE else [f"maps of an odd size differ by {odd:.1e}"]
        how = "equal"
    except (AssertionError, RuntimeError) as error:  # timm's own
        how = f"refused: {error}"[:200]
    del theirs
    if find_spec("detectron2") is not None:
        faults += _detectron2_faults(trunk)
    faults += _training_faults(trunk)
    frozen, fault = _freezing(trunk)
    faults += fault
    return {
        "reason": "; ".join(faults),
        "multiple": m,
        "odd": how,
        "frozen": frozen,
        "difference": difference,
    }


@torch.no_grad()
def unlike_their_start(net: nn.Module) -> None:
    """Give norms statistics unlike the identity, and layers that start at nearly nothing a part in what is computed."""
    for name, tensor in net.state_dict(keep_vars=True).items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.abs().max() < 1e-3:
            tensor.uniform_(0.05, 0.2)


@torch.no_grad()
def _difference(trunk: TimmTrunk, theirs: Any, size: tuple[int, int]) -> float:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    ours = trunk(images)
    worst = 0.0
    for (name, found), expected in zip(ours.items(), theirs(images), strict=True):
        expected = expected.permute(0, 3, 1, 2) if str(getattr(theirs, "output_fmt", "")).endswith("NHWC") else expected
        channels, stride = trunk.feature_info[name]
        if size[0] % trunk.multiple == size[1] % trunk.multiple == 0:
            shape = (1, channels, size[0] // stride, size[1] // stride)
            if tuple(found.shape) != shape:
                raise ValueError(f"{name} has the shape {tuple(found.shape)}, expected {shape}")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def _images(trunk: TimmTrunk) -> Tensor:
    m = trunk.multiple
    return torch.randn(2, 3, *((64, 96) if m <= 32 else (m, m)), generator=torch.Generator().manual_seed(2))


def _detectron2_faults(trunk: TimmTrunk) -> list[str]:
    from resnet_backbone.detectron2_plugin.backbone import build_fpn, to_backbone

    pyramid = build_fpn(to_backbone(trunk), LEVELS, 8).eval()
    images = _images(trunk)[:1]
    with torch.no_grad():
        levels = pyramid(images)
    shapes = {name: images.shape[-1] / level.shape[-1] for name, level in levels.items()}
    strides = {name: shape.stride for name, shape in pyramid.output_shape().items()}
    names = {name.removeprefix("bottom_up.") for name in pyramid.state_dict() if name.startswith("bottom_up.")}
    faults = [] if {**shapes, "p6": 64} == strides else [f"Detectron2's levels have strides {shapes}, not {strides}"]
    return faults + ([] if names == trunk.state_dict().keys() else ["names differ in Detectron2"])


def _training_faults(trunk: TimmTrunk) -> list[str]:
    pyramid = FPNBackbone(trunk.train(), LEVELS, 8).train()
    torch.stack([level.square().mean() for level in pyramid(_images(trunk)).values()]).sum().backward()
    bad = [name for name, one in pyramid.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    pyramid.zero_grad()
    return [f"{len(bad)} parameters without a finite gradient, {bad[:3]}"] if bad else []


def _parameters(trunk: TimmTrunk, stage: str) -> list[nn.Parameter]:
    modules = map(trunk.get_submodule, trunk.stage_modules[stage])
    return [one for module in modules for one in module.parameters(recurse=False)]


def _freezing(trunk: TimmTrunk) -> tuple[int, list[str]]:
    """Return how many stages can be frozen, and what is wrong: a stage is what its map needs beyond those before it."""
    faults: list[str] = []
    names = {id(parameter): name for name, parameter in trunk.named_parameters()}
    counted: set[int] = set()
    features = trunk.train()(_images(trunk)[:, :, :, :])
    for stage in trunk.stage_names:
        counted |= {id(parameter) for parameter in _parameters(trunk, stage)}
        if stage not in features:
            continue
        used = torch.autograd.grad(
            features[stage].square().mean(), [*trunk.parameters()], retain_graph=True, allow_unused=True
        )
        needed = {
            id(parameter) for parameter, gradient in zip(trunk.parameters(), used, strict=True) if gradient is not None
        }
        if counted and needed != counted:
            wrong = sorted(names[one] for one in needed ^ counted)
            faults.append(f"{stage} is not what its map needs: {wrong[:3]}")
    if not counted:
        return 0, faults
    frozen, count = _frozen(trunk)
    if not count:
        return 0, faults
    rest = {name for name, one in frozen.named_parameters() if one.requires_grad}
    expected = {names[id(one)] for stage in trunk.stage_names[count:] for one in _parameters(trunk, stage)}
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    frozen.train()(_images(trunk))
    moved = [n for n, b in frozen.named_buffers() if b is not None and not torch.equal(b, before[n])]
    last = {name.rpartition(".")[0] for name in expected}
    if rest != expected:
        faults.append(f"frozen up to {frozen.stage_names[count - 1]}, trained are {sorted(rest ^ expected)[:3]}")
    if wrong := [name for name in moved if name.rpartition(".")[0] not in last]:
        faults.append(f"frozen statistics moved: {wrong[:3]}")
    return count + 1, faults


def _frozen(trunk: TimmTrunk) -> tuple[TimmTrunk, int]:
    """Freeze a copy as far as it says that it can, but for its last stage."""
    for count in range(len(trunk.stage_names) - 1, 0, -1):
        frozen = copy.deepcopy(trunk)
        try:
            frozen.freeze_stages(count)
        except OptionError:
            continue
        return frozen, count
    return trunk, 0


def table(rows: Sequence[Row]) -> str:
    """Return the counts, and every network that did not pass, as Markdown."""
    asked = [row for row in rows if row.status != OTHER]
    passed = [row for row in asked if row.status == PASSED]
    counts = Counter(row.status for row in asked)
    lines = [
        f"timm {timm.__version__}: of {len(rows)} networks {len(asked)} have maps at strides 4 to 32 and at most 60 "
        f"million parameters: {counts[PASSED]} passed, {counts[REFUSED]} refused, {counts[FAILED]} failed.",
        f"Of those that passed, {sum(row.odd == 'equal' for row in passed)} take odd sizes as they are, and "
        f"{sum(row.frozen > 0 for row in passed)} have stages to freeze.",
        "",
        "Without stages to freeze: " + ", ".join(sorted(row.name for row in passed if not row.frozen)) + ".",
        "",
        "Images are padded to multiples of more than 32 pixels for "
        + ", ".join(sorted(f"{row.name} ({row.multiple})" for row in passed if row.multiple > 32))
        + ".",
        "",
        "| network | M parameters | | why |",
        "|---|---:|---|---|",
    ]
    for row in sorted(asked, key=lambda row: (row.status, row.name)):
        if row.status != PASSED:
            reason = row.reason.replace("|", "/").replace("\n", " ")
            lines.append(f"| {row.name} | {row.millions:.1f} | {row.status} | {reason} |")
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """Return the rows of a file of this script; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Row(**json.loads(line)) for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .jsonl file, of this shard alone")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th network, from the I-th on")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="only these")
    args = parser.parse_args(argv)
    index, count = map(int, args.shard.split("/"))
    done = {row.name for row in read(args.output)}
    for name in (args.names or timm.list_models())[index::count]:
        if name not in done:
            row = check(name)
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            print(f"{row.name}: {row.status} {row.reason} {row.seconds:.1f} s", flush=True)
            timm_network.cache_clear()
    rows = [row for path in sorted(args.output.parent.glob("*.jsonl")) for row in read(path)]
    args.output.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
