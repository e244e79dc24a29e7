"""The figures of COCO and of Pascal VOC, and the AP of every class, as values, JSON and text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class VocMetrics:
    """Pascal VOC's figures in percent (0 to 100); nan where there is nothing to find."""

    mAP: float  # mean over the classes that the ground truth has
    per_class: Mapping[str, float]  # class name -> AP, in the order of the category ids
    iou: float  # the least overlap with an object that counts
    eleven_points: bool  # VOC 2007's way; else the area under the curve, that of VOC 2010 and later

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """For JSON: ``{"voc": {"mAP": 73.2, "AP-aeroplane": 76.5, ...}}``; nan becomes None."""
        return {"voc": _for_json({"mAP": self.mAP}, self.per_class)}

    def table(self) -> str:
        """Readable text: the mean, then the AP of every class in three columns. Percent; "-" for nan."""
        how = "11 points (VOC 2007)" if self.eleven_points else "area under the curve (VOC 2010 and later)"
        head = f"Pascal VOC, IoU {self.iou:g}, {how}, percent: mAP {_percent(self.mAP)}"
        return f"{head}\n\n{_class_table(self.per_class)}"


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's figures in percent (0 to 100), under Detectron2's names.

    A figure is nan where the ground truth holds nothing to measure it on: no small object, no object of that class.
    COCO's own code writes -1 there.
    """

    iou_type: str  # "bbox" or "segm"
    max_detections: int  # per image and class, the highest scores first
    AP: float  # mean over IoU 0.50:0.05:0.95 and over classes
    AP50: float
    AP75: float
    APs: float  # objects under 32 x 32 pixels
    APm: float
    APl: float  # objects over 96 x 96 pixels
    AR1: float  # mean recall over the same IoUs, with the best detection of each image and class
    AR10: float
    AR100: float  # with `max_detections` of them: "AR100" in JSON and tables for COCO's 100, else e.g. "AR300"
    ARs: float
    ARm: float
    ARl: float
    per_class: Mapping[str, float]  # class name -> AP, in the order of the category ids
    masks: CocoMetrics | None = None  # the "segm" figures of the same detections, where they have masks
    voc: VocMetrics | None = None  # Pascal VOC's figures of the same boxes, on its own data sets

    def by_type(self) -> dict[str, CocoMetrics]:
        """These figures, and those of the masks where there are any, by IoU type."""
        return {metrics.iou_type: metrics for metrics in (self, self.masks) if metrics is not None}

    def summary(self) -> dict[str, float]:
        """The twelve figures by name, in COCO's order."""
        return {f"AR{self.max_detections}" if name == "AR100" else name: getattr(self, name) for name in _SUMMARY}

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """For JSON: ``{"bbox": {"AP": 37.1, ..., "AP-person": 52.0, ...}}``, "segm" and "voc" where there are such.

        nan becomes None, as JSON has no nan.
        """
        figures = {
            iou_type: _for_json(metrics.summary(), metrics.per_class) for iou_type, metrics in self.by_type().items()
        }
        return figures | (self.voc.to_dict() if self.voc else {})

    def scalars(self) -> dict[str, float]:
        """The figures over all classes by full name, ``bbox/AP`` or ``voc/mAP``, for the records of a run; no nan."""
        figures = {
            f"{iou_type}/{name}": value
            for iou_type, metrics in self.by_type().items()
            for name, value in metrics.summary().items()
        }
        if self.voc:
            figures["voc/mAP"] = self.voc.mAP
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def table(self) -> str:
        """Readable text: the twelve figures, then the AP of every class in three columns. Percent; "-" for nan."""
        tables = [metrics._own_table() for metrics in self.by_type().values()]
        return "\n\n".join(tables + ([self.voc.table()] if self.voc else []))

    def _own_table(self) -> str:
        figures = {name: _percent(value) for name, value in self.summary().items()}
        head = _table([list(figures.values())], list(figures), ["right"] * len(figures))
        return f"{self.iou_type}, percent\n{head}\n\nAP per class\n{_class_table(self.per_class)}"


def _for_json(summary: Mapping[str, float], per_class: Mapping[str, float]) -> dict[str, float | None]:
    values = {**summary, **{f"AP-{name}": ap for name, ap in per_class.items()}}
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _class_table(per_class: Mapping[str, float]) -> str:
    cells = [(name, _percent(ap)) for name, ap in per_class.items()]
    columns = min(3, len(cells))
    rows = [sum(cells[start : start + columns], ()) for start in range(0, len(cells), columns)]
    return _table(rows, ["class", "AP"] * columns, ["left", "right"] * columns)


def _table(rows: Sequence[Sequence[str]], headers: list[str], alignment: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
