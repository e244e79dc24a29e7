#!/usr/bin/env python
"""One training step of trunk and feature pyramid: ours beside Detectron2's and torchvision's, on equal weights.

Example: python -m benchmarks.training_step --arch resnet101

A step is: forward, mean square of all levels, backward, SGD with momentum. Frozen norms, stem and res2 frozen. Ours
runs as tools/train_net.py runs it, keeping freed memory; peers as they are used, and one of them once more with that
setting, which is none of the backbone's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Cases, Contender, measure, save, table
from benchmarks.peers import peer
from benchmarks.pyramids import build_ours, training
from benchmarks.trunk_inference import DETECTRON2, FAST, HALF, TORCHVISION, baseline_of
from resnet_backbone.config.acceleration import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "resnet101", "vgg16"])
    parser.add_argument("--size", nargs=3, type=int, default=(2, 480, 640), metavar=("N", "HEIGHT", "WIDTH"))
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
        further = {f"first loss of {m.name}": m.outcome for m in found if not m.problem}
        number, height, width = args.size
        title = f"training step of {arch} with pyramid, {number} x {height} x {width}"
        print(f"\n{title}\n{table(found, baseline)}\n{further}\n", flush=True)
        cases[title] = (baseline, found, further)
    question = "How long does a training step of backbone and pyramid take, and in how much memory?"
    save(args.output, question, cases, threads=args.threads, device=args.device)
    return 0


def contenders(arch: str, size: tuple[int, int, int], device: str) -> list[Contender]:
    """Return those that know ``arch``."""
    ours = partial(keeping, make=partial(training, size=size, make_optimizer=sgd, device=device))
    theirs = partial(training, size=size, make_optimizer=sgd, device=device)
    torchvision = partial(peer, "torchvision_pyramid", "build_pyramid", arch)
    found = [
        Contender("ours", partial(ours, partial(build_ours, arch, FAST))),
        Contender("ours, bfloat16", partial(ours, partial(build_ours, arch, HALF))),
        Contender(TORCHVISION, partial(theirs, torchvision)),
    ]
    if not arch.startswith("vgg"):
        detectron2 = partial(peer, "detectron2_pyramid", "build_pyramid", arch)
        found += [
            Contender(DETECTRON2, partial(theirs, detectron2)),
            Contender(f"{DETECTRON2}, keeping freed memory", partial(keeping, detectron2, make=theirs)),
            Contender(f"{DETECTRON2}, autocast", partial(theirs, detectron2, autocast=True)),
        ]
    return found


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """As all of them make it."""
    return torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)


def keeping(build: Callable[[], nn.Module], make: Callable[..., Callable[[], float]]) -> Callable[[], float]:
    """Return what ``make`` makes of ``build``, in a process that keeps freed memory."""
    keep_freed_memory()
    return make(build)


if __name__ == "__main__":
    raise SystemExit(main())
