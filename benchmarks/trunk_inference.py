#!/usr/bin/env python
"""Inference of trunk and feature pyramid: ours beside Detectron2's, torchvision's and timm's, on equal weights.

Example: python -m benchmarks.trunk_inference --arch resnet50 resnet101 vgg16 timm/convnext_tiny

Every contender maps the same random image to the levels of its pyramid. Its norms have statistics unlike the identity;
the outputs are compared with those of the baseline: greatest difference over greatest value, in the worst level.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Cases, Contender, Measurement, measure, save, table
from benchmarks.peers import peer
from benchmarks.pyramids import build_ours, inference
from resnet_backbone.models.acceleration import Acceleration

DETECTRON2, TORCHVISION, TIMM = "Detectron2", "torchvision", "timm"
FAST = Acceleration(scale_weights=True, channels_last=True)
HALF = Acceleration(scale_weights=True, channels_last=True, precision=torch.bfloat16)
COMPILED = replace(HALF, compile_mode="default")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "resnet101", "resnext50_32x4d", "vgg16"])
    parser.add_argument("--size", nargs=3, type=int, default=(1, 800, 1088), metavar=("N", "HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    cases: Cases = {}
    for arch in args.arch:
        compared = contenders(arch, tuple(args.size), args.device)
        found = measure(compared, rounds=args.rounds, warmup=2, threads=args.threads, device=args.device)
        baseline = baseline_of(found)
        further = {f"difference of {m.name}": e for m, e in zip(found, errors(found, baseline), strict=True) if e}
        number, height, width = args.size
        title = f"{arch} with pyramid, {number} x {height} x {width}"
        print(f"\n{title}\n{table(found, baseline)}\n{further}\n", flush=True)
        cases[title] = (baseline, found, further)
    question = "How fast does a backbone map an image to its feature pyramid?"
    save(args.output, question, cases, threads=args.threads, device=args.device)
    return 0


def contenders(arch: str, size: tuple[int, int, int], device: str) -> list[Contender]:
    """Return those that know ``arch``."""
    run = partial(inference, size=size, device=device)
    half = partial(run, autocast=True)
    theirs = partial(peer, "torchvision_pyramid", "build_pyramid", arch)
    found = [
        Contender("ours", partial(run, partial(build_ours, arch, FAST, finish=True))),
        Contender("ours, bfloat16", partial(run, partial(build_ours, arch, HALF, finish=True))),
        Contender("ours, bfloat16, compiled", partial(run, partial(build_ours, arch, COMPILED, finish=True))),
    ]
    timm = partial(peer, "timm_pyramid", "build_pyramid", arch)
    if arch.startswith("timm/"):
        return [*found, Contender(TIMM, partial(run, timm)), Contender(f"{TIMM}, autocast", partial(half, timm))]
    found += [
        Contender(TORCHVISION, partial(run, theirs)),
        Contender(f"{TORCHVISION}, autocast", partial(half, theirs)),
    ]
    if not arch.startswith("vgg"):
        detectron2 = partial(peer, "detectron2_pyramid", "build_pyramid", arch)
        found += [
            Contender(DETECTRON2, partial(run, detectron2)),
            Contender(f"{DETECTRON2}, autocast", partial(half, detectron2)),
            Contender("ours in Detectron2", partial(run, partial(detectron2, ours=True, finish=True))),
            Contender(TIMM, partial(run, timm)),
        ]
    return found


def baseline_of(measurements: Sequence[Measurement]) -> str:
    """Return Detectron2, or torchvision where there is none of it; of a network of timm's, timm."""
    there = {m.name for m in measurements if not m.problem}
    return next((name for name in (DETECTRON2, TORCHVISION) if name in there), TIMM)


def errors(measurements: Sequence[Measurement], baseline: str) -> list[float | None]:
    """Return the greatest difference from the baseline's outputs, relative to their greatest value."""
    expected: list[Any] = next(m.outcome for m in measurements if m.name == baseline)
    return [
        None
        if m.problem or m.name == baseline
        else max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(m.outcome, expected, strict=False))
        for m in measurements
    ]


if __name__ == "__main__":
    raise SystemExit(main())
