"""The records of a run that was killed and went on: each iteration once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resnet_backbone.engine.records import RunWriter, truncate_records

STEP, SCORE = {"total_loss": 1.0}, {"shapes_val/bbox/AP": 2.0}


def write(path: Path, records: list[tuple[int, dict[str, float]]], torn: str = "") -> None:
    path.write_text("".join(json.dumps({"iteration": number, **rest}) + "\n" for number, rest in records) + torn)


def read(path: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line.pop("iteration"), line) for line in lines]


RECORDS = [(19, STEP), (39, STEP), (39, SCORE), (59, STEP)]


@pytest.mark.parametrize(
    ("start", "redone", "kept"),
    [
        (60, None, RECORDS),
        (50, None, RECORDS[:3]),
        (40, None, RECORDS[:3]),
        (40, 40, RECORDS[:2]),  # the evaluation after 40 iterations comes once more
        (39, None, RECORDS[:1]),
        (5, None, []),
    ],
)
@pytest.mark.parametrize("torn", ["", '{"iteration": 60, "total_lo', "[1]\n"])
def test_later_records_are_taken_out(tmp_path, start, redone, kept, torn):
    path = tmp_path / "metrics.json"
    write(path, RECORDS, torn)
    truncate_records(path, start, redone)
    assert read(path) == kept


def test_records_of_an_earlier_run_in_the_same_folder_stay(tmp_path):
    path = tmp_path / "metrics.json"
    earlier = [(19, STEP), (199, STEP), (199, SCORE)]
    write(path, [*earlier, *RECORDS])
    truncate_records(path, 20)
    assert read(path) == [*earlier, (19, STEP)]


def test_a_new_run_keeps_what_is_there_and_a_resumed_one_goes_on(tmp_path):
    path = tmp_path / "metrics.json"
    write(path, RECORDS)
    for start, expected in ((0, [*RECORDS, (60, SCORE)]), (40, [*RECORDS[:3], (60, SCORE)])):
        writer = RunWriter(tmp_path, 100, start, torch.device("cpu"))
        writer.scalars(60, SCORE)
        writer.close()
        assert read(path) == expected
        write(path, RECORDS)
