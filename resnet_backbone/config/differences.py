"""What two configs of a run say differently, apart from what runs fill in."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnet_backbone.config.merge import leaves, value_of
from resnet_backbone.files.text import read_yaml

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"  # in the folder of a run
# What a run fills in from weights, data and machine, or what changes nothing that it learns.
_FILLED_IN = {
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "INPUT.FORMAT",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
}
_PATHS = {"MODEL.WEIGHTS", "TEST.ENSEMBLE"}


class Difference(NamedTuple):
    """A key and its two values."""

    key: str
    found: Any
    expected: Any

    def text(self, found_in: str, expected_in: str) -> str:
        """Return one line, with the names of the two configs."""
        return f"{self.key} is {_shown(self.found)} in {found_in}, {_shown(self.expected)} in {expected_in}"


def differences(written: Mapping[str, Any], cfg: Mapping[str, Any], but: Collection[str] = ()) -> Iterator[Difference]:
    """Yield what a run's ``config.yaml`` says otherwise than ``cfg``, by key; what runs fill in is left out.

    A key that only one of them has is left out, too: versions and engines know different ones. So are those in ``but``.
    """
    both = set(leaves(written)) & set(leaves(cfg)) - _FILLED_IN - set(but)
    for key in sorted(both):
        found, expected = value_of(written, key), value_of(cfg, key)
        if _comparable(key, found) != _comparable(key, expected):
            yield Difference(key, found, expected)


def warn_of_changes(output_dir: Path, cfg: Mapping[str, Any]) -> None:
    """Log what a run that goes on in ``output_dir`` will do otherwise than its ``config.yaml`` says."""
    path = output_dir / CONFIG
    if path.is_file():
        for one in differences(read_settings(path), cfg):
            logger.warning("resuming with other settings: %s", one.text("the run so far", "this command"))


def read_settings(path: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run as it is.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no config.
    """
    try:
        return read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}; move the folder away") from error


def _comparable(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_comparable(key, item) for item in value]
    if key in _PATHS and isinstance(value, str) and "://" not in value:
        path = Path(value)  # the output folder may have been moved
        return (path.parent.name, path.name) if path.suffix else path.name
    return value


def _shown(value: Any) -> str:
    return str(value) or repr(value)  # '' would be nothing at all
