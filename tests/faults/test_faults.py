"""Every fault of ``faults.py`` ends as promised. Those that need minutes together are left to ``make test-slow``."""

from __future__ import annotations

import math

import pytest

from tests.faults import faults

QUICK = ("disk full", "dead rank of two")


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[] if fault.name in QUICK else [pytest.mark.slow]) for fault in faults.FAULTS],
    ids=lambda fault: fault.name,
)
def test_it_ends_as_promised(fault, tmp_path):
    try:
        outcome = fault.happen(tmp_path)
    except faults.NotPossibleHere as error:
        pytest.skip(str(error))
    assert faults.problems(fault, outcome, limit=math.inf) == [], outcome.text


def test_a_fault_that_ends_otherwise_is_told():
    """The judge itself: of an outcome that breaks every promise it names each."""
    outcome = faults.Outcome(0, "Traceback (most recent call last)", faults.LIMIT_S + 1, intact=False, goes_on=False)
    found = " ".join(faults.problems(faults.FAULTS[0], outcome))
    for words in ("lacks 'No space left", "status is 0, not 1", "61 s", "traceback", "broken", "does not go on"):
        assert words in found
