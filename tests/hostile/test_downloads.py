"""Servers that want to fill the disk, read files of this machine, or crash the client."""

from __future__ import annotations

import pytest

from tests.hostile import downloads
from tests.hostile.case import Case, check, run_all

CASES = downloads.cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(CASES, tmp_path_factory.mktemp("downloads"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_downloads(case: Case, outcomes):
    check(case, outcomes[case.name])
