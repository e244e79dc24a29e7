#!/usr/bin/env python
"""What each switch does by itself, and all together: inference and a training step of ResNet-50 with its pyramid.

Example: python -m benchmarks.switches

The baseline has every switch off. ``as configured`` is what a config that says nothing of them gives on the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Cases, Contender, measure, save, table
from benchmarks.pyramids import build_ours, inference, training
from benchmarks.training_step import keeping, sgd
from resnet_backbone.models.acceleration import Acceleration

ARCH, OFF = "resnet50", "all off"
BF16 = torch.bfloat16
SWITCHES = {
    "FOLD_NORMS": Acceleration(scale_weights=True),
    "MEMORY_FORMAT channels_last": Acceleration(channels_last=True),
    "PRECISION bfloat16": Acceleration(precision=BF16),
    "COMPILE default": Acceleration(compile_mode="default"),
    "COMPILE default, PAD_TO 128": Acceleration(compile_mode="default", pad_to=128),
}
CONFIGURED = Acceleration(scale_weights=True, channels_last=True)
HALF = Acceleration(scale_weights=True, channels_last=True, precision=BF16)
TOGETHER = {
    "as configured": CONFIGURED,
    "as configured, COMPILE default": Acceleration(scale_weights=True, channels_last=True, compile_mode="default"),
    "as configured, PRECISION bfloat16": HALF,
    "as configured, PRECISION bfloat16, COMPILE default": Acceleration(True, True, BF16, "default"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("inference", "training"), default=["inference", "training"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    cases: Cases = {}
    for part, (title, make) in PARTS.items():
        if part not in args.part:
            continue
        compared = make(args.device)
        found = measure(compared, rounds=args.rounds, warmup=2, threads=args.threads, device=args.device)
        print(f"\n{title}\n{table(found, OFF)}\n", flush=True)
        cases[title] = (OFF, found, {})
    save(args.output, "What does each switch do by itself?", cases, threads=args.threads, device=args.device)
    return 0


def inference_contenders(device: str) -> list[Contender]:
    """Return one for each switch; folding is also shown as it is once a detector is finished for inference."""
    run = partial(inference, size=(1, 800, 1088), device=device)
    found = [Contender(OFF, partial(run, partial(build_ours, ARCH, Acceleration())))]
    for name, how in {**SWITCHES, **TOGETHER}.items():
        finished = name != "FOLD_NORMS"
        found.append(Contender(name, partial(run, partial(build_ours, ARCH, how, finish=finished))))
    finished_alone = partial(build_ours, ARCH, SWITCHES["FOLD_NORMS"], finish=True)
    return [*found, Contender("FOLD_NORMS, finished for inference", partial(run, finished_alone))]


def training_contenders(device: str) -> list[Contender]:
    """Return one for each switch, keeping freed memory among them."""
    plain = partial(training, size=(2, 480, 640), make_optimizer=sgd, device=device)
    nothing = partial(build_ours, ARCH, Acceleration())
    stages = Acceleration(checkpoint_stages=("res3", "res4", "res5"))
    found = [
        Contender(OFF, partial(plain, nothing)),
        Contender("KEEP_FREED_MEMORY", partial(keeping, nothing, make=plain)),
        Contender("CHECKPOINT_STAGES res3 to res5", partial(plain, partial(build_ours, ARCH, stages))),
    ]
    found += [Contender(name, partial(plain, partial(build_ours, ARCH, how))) for name, how in SWITCHES.items()]
    for name, how in TOGETHER.items():
        found.append(Contender(name, partial(keeping, partial(build_ours, ARCH, how), make=plain)))
    return found


PARTS: dict[str, tuple[str, Callable[[str], list[Contender]]]] = {
    "inference": (f"inference of {ARCH} with pyramid, 1 x 800 x 1088", inference_contenders),
    "training": (f"training step of {ARCH} with pyramid, 2 x 480 x 640", training_contenders),
}


if __name__ == "__main__":
    raise SystemExit(main())
