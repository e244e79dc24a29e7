"""Annotations, results and run folders that want to crash their readers."""

from __future__ import annotations

import pytest

from tests.hostile import datasets
from tests.hostile.case import Case, check, run_all

CASES = datasets.cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(CASES, tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_datasets(case: Case, outcomes):
    check(case, outcomes[case.name])
