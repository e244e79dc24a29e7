"""The images on which the runs differ most, drawn: what was there, and what each run found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_backbone.evaluation.coco import ALL, IOU_50, IouType
from resnet_backbone.evaluation.coco_input import Record, iterate_results, read_ground_truth, read_results
from resnet_backbone.evaluation.comparison.measure import Measured
from resnet_backbone.evaluation.comparison.runs import FinishedRun
from resnet_backbone.evaluation.drawing import draw_objects, readable_zoom, tinted
from resnet_backbone.evaluation.matching import FALSE_ALARM, HIT, Matches, most_different
from resnet_backbone.evaluation.pictures import PICTURE_SCORE
from resnet_backbone.evaluation.results import decode_masks

LONG_SIDE = 720  # pixels, of a panel in the page

# Path, and (height, width) in pixels where the annotations say it, to uint8 (3, H, W), RGB.
ReadImage = Callable[[Path, tuple[int, int] | None], Tensor]


@dataclass(frozen=True)
class Panel:
    """One drawing of an image."""

    title: str
    caption: str
    picture: Image.Image
    hits: int  # detections at PICTURE_SCORE or more that are right, at IoU 0.5; of the ground truth, its objects
    false_alarms: int


@dataclass(frozen=True)
class Exhibit:
    """One image of the test set: the ground truth first, then the runs in their order."""

    image_id: int
    file_name: str
    panels: tuple[Panel, ...]


def draw_gallery(
    runs: Sequence[FinishedRun],
    measured: Mapping[IouType, Measured],
    annotations: Path,
    image_folder: Path,
    read_image: ReadImage,
    count: int,
) -> list[Exhibit]:
    """Draw the ``count`` images on which the first run and the others differ most, fewer where fewer differ.

    Raises:
        FileNotFoundError, OSError, ValueError: an image cannot be read.
    """
    kind: IouType = "segm" if "segm" in measured else "bbox"
    matches = measured[kind].matches
    chosen = _choose(matches, count)
    truth = read_ground_truth(annotations, kind)
    images = {image["id"]: image for image in truth["images"]}
    truth_of = {key: [note for note in truth["annotations"] if note["image_id"] == key] for key in chosen}
    found_of = [_detections(run.results_path, truth, measured, set(chosen)) for run in runs]
    labels = {key: index for index, key in enumerate(sorted(category["id"] for category in truth["categories"]))}
    exhibits = []
    for key in chosen:
        image = images[key]
        size = (image["height"], image["width"]) if {"height", "width"} <= set(image) else None
        pixels = read_image(image_folder / image["file_name"], size)
        objects = [note for note in truth_of[key] if not note["iscrowd"]]
        panels = [_truth_panel(pixels, objects, labels, measured[kind].class_names)]
        for run, of_run, found in zip(runs, matches, found_of, strict=True):
            hits, false_alarms = _outcomes(of_run, key)
            caption = f"{hits} of {len(objects)} found, {false_alarms} false alarm{'s' * (false_alarms != 1)}"
            records = found.get(key, [])
            texts = [f"{measured[kind].class_names[labels[r['category_id']]]} {r['score']:.2f}" for r in records]
            picture = _draw(pixels, records, labels, texts)
            panels.append(Panel(run.name, caption, picture, hits, false_alarms))
        exhibits.append(Exhibit(key, image["file_name"], tuple(panels)))
    return exhibits


def _choose(matches: Sequence[Matches], count: int) -> list[int]:
    """The images that differ most, of each pair with the first run in turn."""
    rankings = [most_different(matches[0], other, count) for other in matches[1:]]
    ranked = chain.from_iterable(zip_longest(*rankings))
    return list(dict.fromkeys(key for key in ranked if key is not None))[:count]


def _detections(
    path: Path, truth: Mapping[str, list[Record]], measured: Mapping[IouType, Measured], chosen: set[int]
) -> dict[int, list[Record]]:
    """Image id -> what is drawn on it, best first."""
    mine = [record for record in iterate_results(path) if record["image_id"] in chosen]
    mine = [record for record in mine if record["score"] >= PICTURE_SCORE]
    merged: list[Record] = [{} for _ in mine]
    for kind in measured:
        for record, checked in zip(merged, read_results(mine, truth, kind), strict=True):
            record.update(checked)
    merged.sort(key=lambda record: -record["score"])
    return {key: [record for record in merged if record["image_id"] == key] for key in chosen}


def _outcomes(matches: Matches, image_id: int) -> tuple[int, int]:
    """Hits and false alarms among the detections that are drawn."""
    position = matches.image_ids.index(image_id)
    hits = false_alarms = 0
    for of_class in matches.classes:
        shown = (of_class.images == position) & (of_class.scores >= PICTURE_SCORE)
        outcomes = of_class.outcomes[ALL, IOU_50, shown]
        hits += int(np.sum(outcomes == HIT))
        false_alarms += int(np.sum(outcomes == FALSE_ALARM))
    return hits, false_alarms


def _truth_panel(
    pixels: Tensor, objects: Sequence[Record], labels: Mapping[int, int], class_names: Sequence[str]
) -> Panel:
    texts = [class_names[labels[note["category_id"]]] for note in objects]
    caption = f"{len(objects)} object{'s' * (len(objects) != 1)}"
    return Panel("Ground truth", caption, _draw(pixels, objects, labels, texts), len(objects), 0)


def _draw(pixels: Tensor, records: Sequence[Record], labels: Mapping[int, int], texts: list[str]) -> Image.Image:
    classes = torch.tensor([labels[record["category_id"]] for record in records], dtype=torch.int64)
    masks = None
    if records and all("segmentation" in record for record in records):
        masks = decode_masks([record["segmentation"] for record in records], pixels.shape[1], pixels.shape[2])
    picture = tinted(pixels, masks, classes)
    zoom = min(readable_zoom(picture.size), LONG_SIDE / max(picture.size))
    return draw_objects(picture, _corners(records), classes, texts, zoom)


def _corners(records: Sequence[Mapping[str, Any]]) -> Tensor:
    """COCO's x, y, width, height as x0, y0, x1, y1."""
    boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
