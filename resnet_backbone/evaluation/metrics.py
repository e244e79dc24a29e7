"""The twelve COCO figures and the AP of every class, as values, JSON and text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate


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

    def by_type(self) -> dict[str, CocoMetrics]:
        """These figures, and those of the masks where there are any, by IoU type."""
        return {metrics.iou_type: metrics for metrics in (self, self.masks) if metrics is not None}

    def summary(self) -> dict[str, float]:
        """The twelve figures by name, in COCO's order."""
        return {
            "AP": self.AP,
            "AP50": self.AP50,
            "AP75": self.AP75,
            "APs": self.APs,
            "APm": self.APm,
            "APl": self.APl,
            "AR1": self.AR1,
            "AR10": self.AR10,
            f"AR{self.max_detections}": self.AR100,
            "ARs": self.ARs,
            "ARm": self.ARm,
            "ARl": self.ARl,
        }

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """For JSON: ``{"bbox": {"AP": 37.1, ..., "AP-person": 52.0, ...}}``, and "segm" where there are masks.

        nan becomes None, as JSON has no nan.
        """
        return {iou_type: metrics._values() for iou_type, metrics in self.by_type().items()}

    def _values(self) -> dict[str, float | None]:
        values = self.summary() | {f"AP-{name}": ap for name, ap in self.per_class.items()}
        return {key: None if math.isnan(value) else value for key, value in values.items()}

    def table(self) -> str:
        """Readable text: the twelve figures, then the AP of every class in three columns. Percent; "-" for nan."""
        return "\n\n".join(metrics._own_table() for metrics in self.by_type().values())

    def _own_table(self) -> str:
        figures = {name: _percent(value) for name, value in self.summary().items()}
        head = _table([list(figures.values())], list(figures), ["right"] * len(figures))
        return f"{self.iou_type}, percent\n{head}\n\nAP per class\n{self._class_table()}"

    def _class_table(self) -> str:
        cells = [(name, _percent(ap)) for name, ap in self.per_class.items()]
        columns = min(3, len(cells))
        rows = [sum(cells[start : start + columns], ()) for start in range(0, len(cells), columns)]
        return _table(rows, ["class", "AP"] * columns, ["left", "right"] * columns)


def _table(rows: Sequence[Sequence[str]], headers: list[str], alignment: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
