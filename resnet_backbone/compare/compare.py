"""Comparing finished runs: AP scored again with intervals, types of errors, and the images where they differ most."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_backbone.compare.runs import ConfigComparison, EvaluatedRun, cautions, compare_settings, read_runs
from resnet_backbone.data.coco.read import GroundTruth, IouType, read_ground_truth
from resnet_backbone.files.atomic import file_hash
from resnet_backbone.metrics.bootstrap import Bootstrap, bootstrap
from resnet_backbone.metrics.coco import ALL, IOU_50
from resnet_backbone.metrics.confusion import confusion_matrix
from resnet_backbone.metrics.drawing import PICTURE_SCORE, draw_objects
from resnet_backbone.metrics.error_types import ErrorBreakdown, error_breakdown
from resnet_backbone.metrics.matching import (
    FALSE_POSITIVE,
    FIGURES,
    TRUE_POSITIVE,
    Matches,
    PrecisionRecall,
    match,
    most_different,
    precision_recall,
    worst_and_best,
)
from resnet_backbone.metrics.result_table import ResultTable, iterate_results, read_results
from resnet_backbone.metrics.results import decode_masks


def find_annotations(run: EvaluatedRun, given: Path | None = None, data_root: Path | None = None) -> Path:
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
    found = file_hash(path, "sha256")
    if found != run.facts.annotations_sha256:
        raise ValueError(
            f"{path} has changed since {run.folder} was evaluated on {run.facts.dataset}: its SHA-256 is "
            f"{found[:12]}..., it was {run.facts.annotations_sha256[:12]}...; name the old file with --annotations "
            "JSON, or evaluate the runs again with resnet-backbone train --eval-only"
        )
    return path


def find_images(run: EvaluatedRun, given: Path | None = None, data_root: Path | None = None) -> Path:
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


CURVE_IOUS = (0.5, 0.75)
_TOLERANCE = 1e-6  # percent, between the recorded figures and those computed again


@dataclass(frozen=True)
class Measured:
    """What the runs reach in one kind of overlap; of several seeds, all but the bootstrap is of the first.

    Tuples are in the order of the runs.
    """

    matches: tuple[Matches, ...]
    bootstrap: Bootstrap
    curves: Mapping[float, tuple[PrecisionRecall, ...]]  # IoU -> curve of each run
    errors: tuple[ErrorBreakdown, ...]
    confusion: np.ndarray | None  # (K + 1, K + 1), of the boxes of one run alone, at PICTURE_SCORE

    @property
    def class_names(self) -> list[str]:
        return [of_class.name for of_class in self.matches[0].classes]

    @property
    def num_objects(self) -> dict[str, int]:
        """Class -> number of objects to find; crowds are not counted."""
        return {of_class.name: int(of_class.num_objects[ALL].sum()) for of_class in self.matches[0].classes}


def measure(
    runs: Sequence[EvaluatedRun], annotations: Path, *, samples: int = 1000, seed: int = 0
) -> dict[IouType, Measured]:
    """Score every run again on the same file: boxes, and masks where all runs have them.

    Raises:
        ValueError: results that are not of this ground truth, or that do not give the figures recorded beside them.
    """
    kinds: tuple[IouType, ...] = ("bbox", "segm")
    shared = [kind for kind in kinds if all(kind in one.figures for run in runs for one in run.all_seeds)]
    if not shared:
        raise ValueError(
            f"{' and '.join(str(run.folder) for run in runs)} have neither boxes nor masks in common; "
            f"their figures are of {', '.join(sorted({kind for run in runs for kind in run.figures}))}"
        )
    truth = read_ground_truth(annotations, shared)
    every = [one for run in runs for one in run.all_seeds]
    seeds = len(runs[0].all_seeds)
    found = []
    for run in every:
        try:
            found.append(read_results(run.results_path, truth, shared))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{run.results_path} does not fit {annotations}: {error}") from error
    alone = len(every) == 1 and "bbox" in shared
    confusion = confusion_matrix(truth, found[0], score=PICTURE_SCORE) if alone else None
    measured = {}
    for kind in shared:
        of_seeds = [_match(run, truth, of_run, kind) for run, of_run in zip(every, found, strict=True)]
        matches = tuple(of_seeds[::seeds])
        measured[kind] = Measured(
            matches=matches,
            bootstrap=bootstrap(of_seeds, samples=samples, seed=seed, seeds=seeds),
            curves={iou: tuple(precision_recall(of_run, iou) for of_run in matches) for iou in CURVE_IOUS},
            errors=tuple(error_breakdown(truth, of_run, iou_type=kind) for of_run in found[::seeds]),
            confusion=confusion,
        )
    return measured


def _match(run: EvaluatedRun, truth: GroundTruth, found: ResultTable, kind: IouType) -> Matches:
    matches = match(truth, found, iou_type=kind)
    computed = matches.metrics()
    for figure in FIGURES:
        recorded = run.figures[kind].get(figure)
        value = computed[figure]
        same = math.isnan(value) if recorded is None else abs(recorded - value) <= _TOLERANCE
        if not same:
            raise ValueError(
                f"{run.results_path} gives a {kind} {figure} of {value}, but metrics.json beside it says {recorded}: "
                "the two are not of one evaluation; evaluate the run again with resnet-backbone train --eval-only"
            )
    return matches


LONG_SIDE = 720  # pixels, of a panel in the page

# Path, and (height, width) in pixels where the annotations say it, to uint8 (3, H, W), RGB.
ReadImage = Callable[[Path, tuple[int, int] | None], Tensor]


@dataclass(frozen=True)
class Panel:
    """One drawing of an image."""

    title: str
    caption: str
    picture: Image.Image
    true_positives: int  # of the detections at PICTURE_SCORE or more, at IoU 0.5; of the ground truth, its objects
    false_positives: int


@dataclass(frozen=True)
class Exhibit:
    """One image of the test set: the ground truth first, then the runs in their order."""

    image_id: int
    file_name: str
    panels: tuple[Panel, ...]


def draw_gallery(
    runs: Sequence[EvaluatedRun],
    measured: Mapping[IouType, Measured],
    annotations: Path,
    image_folder: Path,
    read_image: ReadImage,
    count: int,
) -> list[Exhibit]:
    """Draw the ``count`` images on which the first run and the others differ most, fewer where fewer differ.

    Of one run alone the worst, then the best: those with the most mistakes, and with the most hits and the fewest.

    Raises:
        FileNotFoundError, OSError, ValueError: an image cannot be read.
    """
    kind: IouType = "segm" if "segm" in measured else "bbox"
    matches = measured[kind].matches
    chosen = _choose(matches, count)
    truth = read_ground_truth(annotations, tuple(measured))
    found_of = []
    for run in runs:
        records = (record for record in iterate_results(run.results_path) if record["image_id"] in chosen)
        drawn = [record for record in records if record["score"] >= PICTURE_SCORE]
        found_of.append(read_results(drawn, truth, tuple(measured)))
    names = measured[kind].class_names
    exhibits = []
    for key in chosen:
        position = truth.image_positions[key]
        pixels = read_image(image_folder / truth.file_name(position), truth.size(position))
        rows = np.flatnonzero((truth.images == position) & ~truth.is_crowd)
        picture = _draw(pixels, truth, rows, [names[label] for label in truth.labels[rows]], kind)
        panels = [Panel("Ground truth", f"{len(rows)} object{'s' * (len(rows) != 1)}", picture, len(rows), 0)]
        for run, of_run, found in zip(runs, matches, found_of, strict=True):
            true_positives, false_positives = _outcomes(of_run, key)
            plural = "s" * (false_positives != 1)
            caption = f"{true_positives} of {len(rows)} found, {false_positives} false positive{plural}"
            mine = np.flatnonzero(found.images == position)
            mine = mine[np.argsort(-found.scores[mine], kind="stable")]
            texts = [f"{names[found.labels[row]]} {found.scores[row]:.2f}" for row in mine]
            picture = _draw(pixels, found, mine, texts, kind)
            panels.append(Panel(run.name, caption, picture, true_positives, false_positives))
        exhibits.append(Exhibit(key, truth.file_name(position), tuple(panels)))
    return exhibits


def _choose(matches: Sequence[Matches], count: int) -> list[int]:
    """The images that differ most, of each pair with the first run in turn; of a single run the worst and the best."""
    if len(matches) == 1:
        return worst_and_best(matches[0], count, score=PICTURE_SCORE)
    rankings = [most_different(matches[0], other, count) for other in matches[1:]]
    ranked = chain.from_iterable(zip_longest(*rankings))
    return [key for key in dict.fromkeys(ranked) if key is not None][:count]


def _outcomes(matches: Matches, image_id: int) -> tuple[int, int]:
    """True and false positives among the detections that are drawn."""
    position = matches.image_ids.index(image_id)
    outcomes = np.concatenate(
        [
            of_class.outcomes[ALL, IOU_50, (of_class.images == position) & (of_class.scores >= PICTURE_SCORE)]
            for of_class in matches.classes
        ]
    )
    return int(np.sum(outcomes == TRUE_POSITIVE)), int(np.sum(outcomes == FALSE_POSITIVE))


def _draw(
    pixels: Tensor, source: GroundTruth | ResultTable, rows: np.ndarray, texts: Sequence[str], kind: IouType
) -> Image.Image:
    """Draw the boxes in these rows, and their masks where ``kind`` has them."""
    corners, classes = torch.tensor(source.boxes[rows]).reshape(-1, 4), torch.tensor(source.labels[rows])
    corners[:, 2:] += corners[:, :2]
    rles = [source.masks[row] for row in rows.tolist()] if kind == "segm" else []
    decoded = decode_masks(rles, pixels.shape[1], pixels.shape[2]) if rles else None
    return draw_objects(pixels, corners, classes, texts, decoded, LONG_SIDE)


@dataclass(frozen=True)
class Comparison:
    """One finished run, or more on the same data; the first is the baseline."""

    runs: tuple[EvaluatedRun, ...]
    measured: Mapping[IouType, Measured]  # boxes, masks, or both
    settings: ConfigComparison
    cautions: tuple[str, ...]  # what else may have made the difference
    gallery: tuple[Exhibit, ...]

    @property
    def main(self) -> Measured:
        """What the headline is about: the boxes, if they were measured."""
        return self.measured["bbox"] if "bbox" in self.measured else self.measured["segm"]


def compare_runs(
    folders: Sequence[Path],
    *,
    read_image: ReadImage,
    names: Sequence[str] = (),
    dataset: str | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    data_root: Path | None = None,
    samples: int = 1000,
    seed: int = 0,
    num_pictures: int = 6,
    seeds: int = 1,
) -> Comparison:
    """Compare finished runs of tools/train_net.py, of either engine, or look at one.

    Args:
        folders: their OUTPUT_DIRs; the first run is the baseline. With ``seeds``, first all of the first run.
        read_image: reads a file as uint8 (3, H, W), RGB, given its path and its (height, width) in pixels.
        names: what to call them, in the same order; by default, as their folders.
        dataset: the test set, where the runs have several.
        annotations: where the ground truth is now; by default, where it was.
        images: where its images are now; by default, where they were.
        data_root: ground truth that is not where it was is looked for below this folder, too.
        samples: how many times the bootstrap draws the test images again.
        seed: of those draws.
        num_pictures: how many images to draw, at most; with 0 no image is read.
        seeds: how many folders belong to each run: its config, trained with other seeds.

    Raises:
        ValueError: the runs cannot be compared, or not yet; see ``read_runs``, ``find_annotations`` and ``measure``.
        FileNotFoundError, OSError: annotations or images that are not there or cannot be read.
    """
    if num_pictures < 0:
        raise ValueError(f"the number of pictures must be 0 or more, got {num_pictures}")
    runs = read_runs(folders, names, dataset, seeds)
    json_path = find_annotations(runs[0], annotations, data_root)
    image_folder = find_images(runs[0], images, data_root) if num_pictures else None
    measured = measure(runs, json_path, samples=samples, seed=seed)
    settings = compare_settings(runs)
    gallery = draw_gallery(runs, measured, json_path, image_folder, read_image, num_pictures) if image_folder else []
    return Comparison(tuple(runs), measured, settings, tuple(cautions(runs, settings)), tuple(gallery))
