"""What every test may use: the real images beside the project, and one thread a process."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(2)


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
