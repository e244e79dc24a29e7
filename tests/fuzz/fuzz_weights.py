"""Fuzz the readers of weight files: ``python -m tests.fuzz.fuzz_weights -max_total_time=600``.

The first byte of an input says which kind of file the others are.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path

import atheris
import torchvision.models.detection  # noqa: F401  # before the block below, which would take a minute for it

with atheris.instrument_imports(include=["resnet_backbone"]):
    from resnet_backbone.weights.source import read_weights

import safetensors.torch

from tests.fuzz.fuzzing import fuzz
from tests.hostile.weights import PICKLES, TENSORS, rebuilt, torch_bytes, zipped_pickle

SUFFIXES = (".pth", ".pkl", ".safetensors")


def read(folder: Path, data: bytes) -> None:
    path = folder / f"w{SUFFIXES[data[0] % len(SUFFIXES)] if data else '.pth'}"
    path.write_bytes(data[1:])
    read_weights(path)


def seeds() -> list[bytes]:
    arrays = {"model": {name: tensor.numpy() for name, tensor in TENSORS.items()}, "note": [1]}
    return [
        b"\0" + torch_bytes(TENSORS),
        b"\0" + torch_bytes(TENSORS, zipped=False),
        b"\0" + zipped_pickle(rebuilt(b"K\x04\x85", b"K\x01\x85")),
        *(b"\1" + pickle.dumps(arrays, protocol) for protocol in range(6)),
        *(b"\1" + content for content in PICKLES.values() if len(content) < 1000),
        b"\2" + safetensors.torch.save(TENSORS),
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz("weights", read, seeds(), sys.argv[1:])
