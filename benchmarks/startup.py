#!/usr/bin/env python
"""Time until something can run: importing the package, ``--help`` of the tools, building a model, reading its weights.

Example: python -m benchmarks.startup

Every call starts a fresh interpreter; or it builds a model and loads its weights in one that has torch loaded:
ResNet-101 from a file of torchvision's, and Detectron2's own network from one of its own, with the same tensors.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Cases, Contender, measure, save, table
from benchmarks.peers import peer
from benchmarks.pyramids import classifier_state
from resnet_backbone import create_model, load_weights

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {
    "torch": "import torch",
    "torch, resnet_backbone": "import torch, resnet_backbone",
    "torchvision's detectors": "import torchvision.models.detection",
    "timm": "import timm",
    "Detectron2's models": "import detectron2.modeling",
}
TOOLS = ("tools/train_net.py", "tools/demo.py", "tools/compare.py", "tools/reproduce.py")
WEIGHTS = "building ResNet-101 and reading its weights"
OURS, DETECTRON2 = "ours", "Detectron2"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet101.pth"
        torch.save(classifier_state("resnet101"), path)
        parts = {
            "importing": ("torch", [Contender(n, partial(python, "-c", code)) for n, code in IMPORTS.items()]),
            "tools, --help": (TOOLS[0], [Contender(t, partial(python, str(ROOT / t), "--help")) for t in TOOLS]),
            WEIGHTS: (
                OURS,
                [
                    Contender(OURS, partial(build_and_read, path)),
                    Contender("torchvision", partial(peer, "torchvision_weights", "build_and_read", path)),
                    Contender(DETECTRON2, partial(peer, "detectron2_weights", "build_and_read", path)),
                ],
            ),
        }
        cases: Cases = {}
        for title, (baseline, contenders) in parts.items():
            found = measure(contenders, rounds=args.rounds, threads=1)
            if title != WEIGHTS:  # the memory would be that of who starts the interpreter
                found = [replace(measurement, resident_mib=None, peak_mib=None) for measurement in found]
            print(f"\n{title}\n{table(found, baseline)}\n", flush=True)
            cases[title] = (baseline, found, {})
    save(args.output, "How long does it take until something can run?", cases, threads=1)
    return 0


def python(*arguments: str) -> Callable[[], None]:
    """Return a call of a fresh interpreter.

    Raises:
        ImportError: it fails: what it imports is not there.
    """

    def call() -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)

    try:
        call()
    except subprocess.CalledProcessError as error:
        raise ImportError(error.stderr.decode().strip().splitlines()[-1]) from error
    return call


def build_and_read(path: Path) -> Callable[[], None]:
    """Return a call that builds our ResNet-101 and fills it from torchvision's file, every tensor accounted for."""

    def call() -> None:
        load_weights(create_model("resnet101"), path)

    return call


if __name__ == "__main__":
    raise SystemExit(main())
