"""What every test may use: the real images beside the project, its scripts, and one thread a process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from resnet_backbone.data.shapes import generate_shapes

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

torch.set_num_threads(1)


def _shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs real images at {path}, which are not there")
    return path


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """80 + 79 images of COCO 2017 with their annotations: annotations/, train2017/, val2017/."""
    return _shared("coco_mini")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """364 photographs of blood cells in Pascal VOC's layout."""
    return _shared("bccd")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for $DETECTRON2_DATASETS with a tiny "shapes" set."""
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root / "shapes", num_train=12, num_val=5, seed=0)
    return root


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Imports a command-line script by its path below the project."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
