"""Fuzz the reading of configs: ``python -m tests.fuzz.fuzz_config -max_total_time=600``.

An input is a YAML file; after a NUL come words of a command line, each after another NUL.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris
import torchvision.models.detection  # noqa: F401  # before the block below, which would take a minute for it

with atheris.instrument_imports(include=["resnet_backbone", "yaml", "yacs"]):
    from resnet_backbone.config.merge import read_run_config
    from resnet_backbone.config.reader import read_settings as read_over_bases
    from resnet_backbone.torchvision_plugin.config import load_config

from tests.fuzz.fuzzing import OURS, fuzz
from tests.hostile.configs import GOOD, MERGED, YAML

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read(folder: Path, data: bytes) -> None:
    content, *words = data.split(b"\0")
    path = folder / "c.yaml"
    path.write_bytes(content)
    try:
        read_over_bases(path)  # in front, since making the defaults takes longer
        load_config(path, [word.decode(errors="surrogateescape") for word in words])
    except Exception as error:
        # What is wrong with a word, with a _BASE_ elsewhere or with a value (then it names the key) names no file.
        if type(error).__name__ not in OURS:
            raise
    read_run_config(path)


def seeds() -> list[bytes]:
    found = [path.read_bytes() for path in sorted(CONFIGS.rglob("*.yaml"))]
    words = GOOD + b"\0SOLVER.STEPS\0[1, 2]\0MODEL.DEVICE\0cpu"
    return [words, *found, *(content for content in [*YAML.values(), *MERGED.values()] if len(content) < 2000)]


if __name__ == "__main__":
    fuzz("config", read, seeds(), sys.argv[1:])
