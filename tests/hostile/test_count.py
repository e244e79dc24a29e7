"""How many different inputs these tests have, so that none is lost unseen."""

from tests.hostile import archives, configs, datasets, downloads, images, weights

KINDS = {weights: 200, configs: 130, datasets: 350, images: 80, archives: 90, downloads: 30}


def test_there_are_enough_different_cases():
    names: set[str] = set()
    for kind, least in KINDS.items():
        found = {case.name for case in kind.cases()}
        assert len(found) >= least, kind.__name__
        assert not names & found
        names |= found
