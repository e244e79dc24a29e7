"""The checks that open every image: of one set, and of the images that are trained on against those that are scored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from resnet_backbone.data.findings import Example, Finding, find
from resnet_backbone.data.image_facts import ImageFacts, nearest_looks, read_image_facts
from resnet_backbone.data.image_files import ImageFiles, find_shared_files

logger = logging.getLogger(__name__)

LOOKS_SAME = 40  # of 256 bits that differ, at most; unrelated photographs differ in 80 or more
_USUAL_MODES = ("RGB", "L")

Opened = tuple[ImageFiles, list[ImageFacts]]


def compare_images(
    train: Mapping[str, ImageFiles], test: Mapping[str, ImageFiles], *, deep: bool
) -> list[tuple[str, list[Finding]]]:
    """Check the image files of the sets of a run.

    Args:
        train: the sets to train on, by name.
        test: those to score.
        deep: open every image. False compares where they lie.

    Returns:
        The names of the sets, those to train on first, and what was found in each.

    Raises:
        OSError: a process that reads images was killed.
    """
    trained = [_open(name, files) for name, files in train.items()] if deep else []
    found = [(name, check_opened(*trained[index]) if deep else []) for index, name in enumerate(train)]
    for name, files in test.items():
        findings, shared = find_shared_files(train, files)
        if deep:
            opened = _open(name, files)
            findings += [*check_opened(*opened), *_find_known_content(trained, opened, shared)]
        found.append((name, findings))
    return found


def _open(name: str, files: ImageFiles) -> Opened:
    logger.info("%s: opening %d images", name, len(files))
    return files, read_image_facts(files)


def check_opened(files: ImageFiles, facts: Sequence[ImageFacts]) -> list[Finding]:
    """Check the images of one set, each of which was opened."""
    total = len(files)

    def rows(which: list[bool]) -> np.ndarray:
        return np.flatnonzero(which)

    def fault(row: int) -> Example:
        return files.example(row, facts[row].fault)

    def turned(row: int) -> Example:
        fact = facts[row]
        frame = "turned upright" if fact.upright else "left as stored"
        return files.example(row, f"orientation {fact.orientation}, {frame}")

    first: dict[bytes, int] = {}
    usable = [row for row, fact in enumerate(facts) if not fact.fault]
    again = [row for row in usable if first.setdefault(facts[row].digest, row) != row]

    def same(row: int) -> Example:
        other = files.path(first[facts[row].digest])
        return files.example(row, f"has the pixels of {other.name}", other)

    stored = sum(fact.orientation > 1 and not fact.upright for fact in facts)
    note = f"{stored} are left as stored" if stored else ""
    return [
        *find("unreadable_image", rows([bool(f.fault) and not f.readable for f in facts]), total, fault),
        *find("other_size", rows([bool(f.fault) and f.readable for f in facts]), total, fault),
        *find("turned_image", rows([not f.fault and f.orientation > 1 for f in facts]), total, turned, note=note),
        *find(
            "unusual_mode",
            rows([not f.fault and f.mode not in _USUAL_MODES for f in facts]),
            total,
            lambda row: files.example(row, f"mode {facts[row].mode}"),
        ),
        *find("repeated_content", again, total, same),
    ]


def _find_known_content(train: Sequence[Opened], test: Opened, shared: Sequence[int]) -> list[Finding]:
    """Images to score that are trained on under another file, or look so."""
    files, facts = test
    trained = [(of, row, fact) for of, all_facts in train for row, fact in enumerate(all_facts) if not fact.fault]
    known = {fact.digest: of.path(row) for of, row, fact in trained}
    rest = [row for row in sorted(set(range(len(files))) - set(shared)) if not facts[row].fault]
    equal = [row for row in rest if facts[row].digest in known]

    def same(row: int) -> Example:
        twin = known[facts[row].digest]
        return files.example(row, f"has the pixels of {twin}", twin)

    findings = find("shared_content", equal, len(files), same)
    asked = [row for row in rest if facts[row].digest not in known and not facts[row].plain]
    telling = [(of.path(row), fact.looks) for of, row, fact in trained if not fact.plain]
    if not asked or not telling:
        return findings
    looks = np.stack([facts[row].looks for row in asked])
    distances, places = nearest_looks(looks, np.stack([of_trained for _, of_trained in telling]))
    nearest = zip(asked, distances.tolist(), places.tolist(), strict=True)
    alike = {row: (telling[place][0], distance) for row, distance, place in nearest if distance <= LOOKS_SAME}

    def similar(row: int) -> Example:
        twin, distance = alike[row]
        return files.example(row, f"looks like {twin} ({distance} of 256 bits differ)", twin)

    closest_first = sorted(alike, key=lambda row: alike[row][1])
    return findings + find("looks_same", closest_first, len(files), similar)
