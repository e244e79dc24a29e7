"""The checks of the categories of a COCO-format file, and of how often they occur."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet_backbone.data.coco_table import CocoTable
from resnet_backbone.data.findings import Example, Finding, brief, find
from resnet_backbone.data.table_examples import annotation_example, repeated

RARE = 10  # objects of a class
UNBALANCED = 100  # objects of the most frequent class for each of another


def check_categories(table: CocoTable) -> list[Finding]:
    """Find ids and names that occur twice, and names that are nearly the same."""
    ids, names = table.category_ids, table.category_names
    first: dict[str, int] = {}
    again = [row for row, name in enumerate(names) if ids[first.setdefault(name, row)] != ids[row]]
    plain = [" ".join(name.split()).casefold() for name in names]
    nearly: dict[str, int] = {}
    similar = [row for row, name in enumerate(plain) if not name or names[nearly.setdefault(name, row)] != names[row]]

    def example(text: Callable[[int], str]) -> Callable[[int], Example]:
        return lambda row: Example(f"categories[{row}] {text(row)}")

    def near(row: int) -> str:
        of = f", as id {ids[nearly[plain[row]]]} has {brief(names[nearly[plain[row]]])}" if plain[row] else ""
        return f"has the name {brief(names[row])}{of}"

    return [
        *find("repeated_category_id", repeated(ids), len(ids), example(lambda row: f"repeats id {ids[row]}")),
        *find(
            "repeated_category_name", again, len(ids),
            example(lambda row: f"has the name {brief(names[row])} of id {ids[first[names[row]]]}"),
        ),
        *find("similar_category_name", similar, len(ids), example(near)),
    ]  # fmt: skip


def check_known_categories(table: CocoTable, labels: np.ndarray) -> list[Finding]:
    """Find annotations of no category; their ``labels``, int64 (M,), are -1."""
    known, used = set(table.category_ids.tolist()), set(table.of_category.tolist())
    listed = brief(sorted(known))
    return find(
        "unknown_category", np.flatnonzero(labels < 0), len(labels),
        annotation_example(table, lambda row: f"has category_id {table.of_category[row]}, which is not in categories "
                           f"({listed})"),
        note=_off_by_one(known, used),
    )  # fmt: skip


def check_balance(class_names: tuple[str, ...], labels: np.ndarray) -> list[Finding]:
    """Find classes without objects, with few of them, or with far fewer than the most frequent one.

    Args:
        class_names: K names, one a label.
        labels: int64, 0..K-1, of the objects that are trained on.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    most = int(counts.max(initial=0))
    if not most:
        return []

    def example(label: int) -> Example:
        return Example(f"{brief(class_names[label])}: {counts[label]}")

    ascending = np.argsort(counts, kind="stable")
    of, total = counts[ascending], len(class_names)
    note = f"{brief(class_names[int(np.argmax(counts))])} has {most} objects."
    rare = ascending[(of > 0) & (of < RARE)]
    rarest = "the rarest: " + ", ".join(f"{brief(class_names[label])} {counts[label]}" for label in rare[:5])
    return [
        *find("unused_class", ascending[of == 0], total, example),
        *find("rare_class", rare, total, example, note=rarest),
        *find("unbalanced_classes", ascending[(of > 0) & (of * UNBALANCED < most)], total, example, note=note),
    ]


def _off_by_one(known: set[int], used: set[int]) -> str:
    if used <= known or not known:
        return ""
    if min(used) == 0 and {key + 1 for key in used} <= known:
        return "They count from 0, the list counts from 1: add 1 to the category_id of every annotation."
    if min(known) == 0 and {key - 1 for key in used} <= known:
        return "They count from 1, the list counts from 0: take 1 from the category_id of every annotation."
    return ""
