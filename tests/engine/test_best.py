"""Which evaluation is the best so far."""

from __future__ import annotations

import math

from resnet_backbone.engine.loop import BestKeeper


def test_larger_ones():
    keeper = BestKeeper("bbox/AP", larger_is_better=True)
    assert not keeper.note({"val/bbox/AP50": 9.0}, 1)  # another figure
    assert not keeper.note({"val/bbox/AP": math.nan}, 1)
    assert keeper.note({"val/bbox/AP50": 9.0, "val/bbox/AP": 3.0, "other/bbox/AP": 8.0}, 2)
    assert not keeper.note({"val/bbox/AP": 3.0}, 3)  # no better
    assert keeper.best == ["val/bbox/AP", 2, 3.0]
    again = BestKeeper("bbox/AP", larger_is_better=True)
    again.best = keeper.best
    assert not again.note({"val/bbox/AP": 2.9}, 4)


def test_smaller_ones():
    keeper = BestKeeper("top1_error", larger_is_better=False)
    assert keeper.note({"val/top1_error": 30.0}, 1)
    assert keeper.note({"val/top1_error": 20.0}, 2)
    assert not keeper.note({"val/top1_error": 25.0}, 3)


def test_another_figure_begins_anew():
    keeper = BestKeeper("bbox/AP", larger_is_better=True)
    assert keeper.note({"easy/bbox/AP": 90.0}, 1)
    assert keeper.note({"hard/bbox/AP": 10.0}, 2)
