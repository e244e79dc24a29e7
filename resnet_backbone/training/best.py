"""The best evaluation of a run so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Best(NamedTuple):
    """Which figure, after how many iterations, and how good."""

    figure: str
    iteration: int
    value: float


class BestKeeper:
    """Says of every evaluation whether it is the best so far.

    Args:
        figure: the end of the figure's name, such as ``bbox/AP``; of several test sets the first counts.
        larger_is_better: or smaller.
    """

    def __init__(self, figure: str, *, larger_is_better: bool) -> None:
        self.figure = figure
        self.sign = 1 if larger_is_better else -1
        self.best: Best | None = None

    def note(self, scores: Mapping[str, float], iteration: int) -> bool:
        """Take in the scores after so many iterations; return whether they are the best. nan never is."""
        found = next(((name, value) for name, value in scores.items() if name.endswith(f"/{self.figure}")), None)
        if found is None or math.isnan(found[1]):
            return False
        name, value = found
        if self.best is not None and self.best.figure == name and self.sign * value <= self.sign * self.best.value:
            return False
        self.best = Best(name, iteration, value)
        return True

    def state(self) -> list[object] | None:
        """Return plain values for a checkpoint."""
        return None if self.best is None else list(self.best)

    def restore(self, state: list[object] | None) -> None:
        """Take what :meth:`state` gave; None where there is nothing yet."""
        self.best = None if state is None else Best(str(state[0]), int(str(state[1])), float(str(state[2])))
