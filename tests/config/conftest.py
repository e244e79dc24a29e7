"""Both engines' ``load_config``, and files to load."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from resnet_backbone.config import find_config_file

Load = Callable[..., CfgNode]


@pytest.fixture
def load_on() -> Callable[[str], Load]:
    def find(engine: str) -> Load:
        if engine == "detectron2":
            pytest.importorskip("detectron2", reason="Detectron2 is not installed")
        return importlib.import_module(f"resnet_backbone.{engine}_plugin.config").load_config

    return find


@pytest.fixture(params=["torchvision", "detectron2"])
def load(request, load_on) -> Load:
    return load_on(request.param)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """``refused(load, "SOLVER: {...}")``: the message that a file ends with: line 1 is its base, then the text."""

    def run(load: Load, text: str, *overrides: str, base: str = "quickstart.yaml") -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(f"_BASE_: {find_config_file(base)}\n{text}\n")
        with pytest.raises(ValueError) as caught:
            load(path, ["MODEL.DEVICE", "cpu", *overrides])
        return str(caught.value)

    return run


@pytest.fixture
def match() -> Callable[..., None]:
    """``match(message, pattern, line)``: the pattern is there, and the line of the file that is to be corrected."""

    def run(message: str, pattern: str, line: int = 0) -> None:
        assert re.search(pattern, message, re.DOTALL), message
        assert not line or f"mine.yaml, line {line}" in message, message

    return run
