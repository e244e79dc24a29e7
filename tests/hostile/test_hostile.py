"""Files and servers that want to run code, to fill the memory or the disk, to write elsewhere, or never to end."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from tests.hostile import archives, configs, datasets, downloads, images, weights
from tests.hostile.case import Case, Outcome, check, run_all

# How many different inputs each kind has at the least, so that none is lost unseen.
LEAST = {weights: 200, configs: 130, datasets: 350, images: 80, archives: 90, downloads: 30}
CASES: dict[str, list[Case]] = {kind.__name__.rsplit(".", 1)[-1]: kind.cases() for kind in LEAST}


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Outcome]]:
    """What became of all cases of a kind, which are read one after the other in one process."""

    @functools.cache
    def of(kind: str) -> dict[str, Outcome]:
        return run_all(CASES[kind], tmp_path_factory.mktemp(kind))

    return of


@pytest.mark.parametrize(
    ("kind", "case"), [pytest.param(kind, case, id=case.name) for kind, cases in CASES.items() for case in cases]
)
def test_it_is_refused_by_name_or_repaired(kind: str, case: Case, outcomes):
    check(case, outcomes(kind)[case.name])


def test_there_are_enough_different_cases():
    names = [case.name for cases in CASES.values() for case in cases]
    assert len(set(names)) == len(names)
    assert all(len(cases) >= least for cases, least in zip(CASES.values(), LEAST.values(), strict=True))
