"""Configs that want to run code, fetch files, fill the memory or never end."""

from __future__ import annotations

import pytest

from tests.hostile import configs
from tests.hostile.case import Case, check, run_all

CASES = configs.cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(CASES, tmp_path_factory.mktemp("configs"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_configs(case: Case, outcomes):
    check(case, outcomes[case.name])
