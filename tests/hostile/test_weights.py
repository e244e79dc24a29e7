"""Weight files that want to run code, fill the memory or never end."""

from __future__ import annotations

import pytest

from tests.hostile import weights
from tests.hostile.case import Case, check, run_all

CASES = weights.cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(CASES, tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weights(case: Case, outcomes):
    check(case, outcomes[case.name])
