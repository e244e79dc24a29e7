"""Where the ground truth lies now, and whether it is what the runs were evaluated on."""

from __future__ import annotations

from pathlib import Path

from resnet_backbone.evaluation.comparison.runs import FinishedRun
from resnet_backbone.evaluation.facts import hash_file


def find_annotations(run: FinishedRun, given: Path | None = None, data_root: Path | None = None) -> Path:
    """Return the annotation file that ``run`` was evaluated on.

    Args:
        run: its facts say where the file was, and its SHA-256.
        given: look here and nowhere else.
        data_root: where the file is not where it was, look below this folder for a path with the same end.

    Raises:
        FileNotFoundError: it is in neither place.
        ValueError: the file that is there has other content than the one the run was evaluated on.
    """
    path = _find(Path(run.facts.annotations), given, data_root, "annotation file", "--annotations JSON")
    found = hash_file(path)
    if found != run.facts.annotations_sha256:
        raise ValueError(
            f"{path} has changed since {run.folder} was evaluated on {run.facts.dataset}: its SHA-256 is "
            f"{found[:12]}..., it was {run.facts.annotations_sha256[:12]}...; name the old file with --annotations "
            "JSON, or evaluate the runs again with tools/train_net.py --eval-only"
        )
    return path


def find_images(run: FinishedRun, given: Path | None = None, data_root: Path | None = None) -> Path:
    """Return the folder of the images that ``run`` was evaluated on; arguments as in :func:`find_annotations`.

    Raises:
        FileNotFoundError: it is not there.
    """
    hint = "--images FOLDER, or leave the pictures out with --pictures 0"
    return _find(Path(run.facts.image_folder), given, data_root, "image folder", hint)


def _find(recorded: Path, given: Path | None, data_root: Path | None, what: str, hint: str) -> Path:
    if given is not None:
        candidates = [given]
    else:
        tails = [Path(*recorded.parts[start:]) for start in range(1, len(recorded.parts))]
        candidates = [recorded, *(data_root / tail for tail in tails if data_root is not None)]
    for path in candidates:
        if path.exists():
            return path
    below = f" or below {data_root}" if given is None and data_root is not None else ""
    raise FileNotFoundError(f"the {what} is not at {candidates[0]}{below}; say where it is with {hint}")
