"""Archives that want to write where they may not, or more than they may."""

from __future__ import annotations

import pytest

from tests.hostile import archives
from tests.hostile.case import Case, check, run_all

CASES = archives.cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(CASES, tmp_path_factory.mktemp("archives"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_archives(case: Case, outcomes):
    check(case, outcomes[case.name])
