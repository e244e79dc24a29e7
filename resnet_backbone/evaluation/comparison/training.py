"""What a training left in ``metrics.json``: loss, learning rate, AP or classification errors, time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Series = tuple[tuple[int, float], ...]  # iteration (from 1) and value


@dataclass(frozen=True)
class Training:
    """The course of one training."""

    iterations: int  # done
    loss: Series  # total_loss
    lr: Series
    ap: Mapping[str, Series]  # test set -> AP of the boxes in percent
    seconds: float  # spent in the iterations, evaluation and saving not counted; 0 where it was not recorded
    train_error: Series  # of a classifier: percent of the images since the record before
    test_error: Mapping[str, Series]  # of a classifier: test set -> top-1 error in percent


def read_training(path: Path) -> Training | None:
    """Read a run's ``metrics.json``, one JSON object a line; None where there is no such file, or an empty one.

    Where a training went on from a checkpoint, or was begun anew in the same folder, iterations occur twice: the
    later ones count, and the earlier ones that they replace are left out. An evaluation's record says nothing of that:
    Detectron2 writes it with the next one of the training, and after it.

    Raises:
        ValueError: a line is no JSON object with an iteration. (A last line that a crash cut off is left out.)
    """
    if not path.is_file():
        return None
    records: list[dict[str, Any]] = []
    newest = -1
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: no JSON: {error}; delete that line") from error
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            raise ValueError(
                f"{path}, line {number}: expected an object with an iteration, found {line[:80]}; delete it"
            )
        if "total_loss" in record:
            if record["iteration"] <= newest:
                records = [earlier for earlier in records if not _replaces(record, earlier)]
            newest = record["iteration"]
        records.append(record)
    if not records:
        return None
    # An evaluation's record may carry the number of iterations, one more than the last of them.
    trained = [record for record in records if "total_loss" in record]
    return Training(
        iterations=trained[-1]["iteration"] + 1 if trained else 0,
        loss=_series(trained, "total_loss"),
        lr=_series(trained, "lr"),
        ap=_by_test_set(records, "/bbox/AP"),
        seconds=_seconds(trained),
        train_error=_series(trained, "train_error"),
        test_error=_by_test_set(records, "/classification/top1_error"),
    )


def _replaces(record: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether a training that has gone back to ``record`` has made ``earlier`` void."""
    same = earlier["iteration"] == record["iteration"] and "total_loss" in earlier
    return same or earlier["iteration"] > record["iteration"]


def _by_test_set(records: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Series]:
    keys = dict.fromkeys(key for record in records for key in record if key.endswith(figure))
    return {key.removesuffix(figure): _series(records, key) for key in keys}


def _series(records: Sequence[Mapping[str, Any]], key: str) -> Series:
    by_iteration = {record["iteration"] + 1: float(record[key]) for record in records if record.get(key) is not None}
    return tuple((iteration, value) for iteration, value in sorted(by_iteration.items()) if math.isfinite(value))


def _seconds(trained: Sequence[Mapping[str, Any]]) -> float:
    """Each record has the median time of an iteration since the record before; 0 where one has none."""
    times = [record.get("time") for record in trained]
    if not all(isinstance(time, int | float) and math.isfinite(time) for time in times):
        return 0.0
    total, previous = 0.0, 0
    for record in trained:
        done = record["iteration"] + 1
        total += record["time"] * (done - previous)
        previous = done
    return total
