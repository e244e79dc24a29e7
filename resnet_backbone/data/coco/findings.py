"""What can be wrong or unusual in a data set: every kind of finding, what it means, and what training does about it."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from resnet_backbone.files.text import read_yaml

logger = logging.getLogger(__name__)

# stop: training refuses to start; drop: left out; fix: used after a repair; keep: used as it is
Action = Literal["stop", "drop", "fix", "keep"]
ACTIONS: tuple[Action, ...] = get_args(Action)
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Kind:
    """What all findings of a kind say; ``finding_kinds.yaml`` has them."""

    title: str  # after "3 of 40"
    action: Action  # where it is used for training
    does: str  # what training does, in words
    means: str = ""
    todo: str = ""
    warns: bool = True  # False for what is usual in good data
    scored: str = ""  # what becomes of it where the set is evaluated, if that is something else
    refused: bool = False  # by the evaluation; of masks where masks are evaluated


_USUALLY = {"stop": "training stops", "drop": "left out", "fix": "repaired", "keep": "used as they are"}
KINDS: dict[str, Kind] = {
    key: Kind(**{"does": _USUALLY[facts["action"]], **facts})
    for key, facts in read_yaml(Path(__file__).with_name("finding_kinds.yaml")).items()
}

_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict = 3, 12, 4
_brief.maxstring = _brief.maxother = _brief.maxlong = 60


@dataclass(frozen=True)
class Example:
    """One place where something was found."""

    text: str  # the place in the file, and what is there
    image_id: int | None = None
    file_name: str | None = None  # below the image folder
    annotation_id: int | None = None
    box: tuple[float, float, float, float] | None = None  # as in the file, x y width height
    twin: Path | None = None  # another image that is meant, too

    def line(self) -> str:
        """Return the text with what it belongs to."""
        of = [
            f"{what} {value}"
            for what, value in (("image", self.image_id), ("annotation id", self.annotation_id))
            if value is not None
        ]
        if self.file_name is not None and self.file_name[:200] not in self.text:
            of.append(self.file_name if len(self.file_name) <= 200 else f"{self.file_name[:200]}...")
        return printable(f"{self.text} ({', '.join(of)})" if of else self.text)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "twin": None if self.twin is None else str(self.twin)}


@dataclass(frozen=True)
class Finding:
    """All places of one kind in one data set, or in two that are compared."""

    key: str  # of KINDS
    count: int
    total: int  # of which ``count`` are meant
    examples: tuple[Example, ...]
    action: Action
    warns: bool  # False for what is usual in good data
    note: str = ""  # what is particular here
    scored: bool = False  # in a set that is evaluated

    @property
    def kind(self) -> Kind:
        return KINDS[self.key]

    def headline(self) -> str:
        """Return e.g. ``2 of 4888 boxes without area: left out``."""
        return f"{self.count} of {self.total} {self.kind.title}: {self.does()}"

    def summary(self) -> str:
        """The headline with the note."""
        return f"{self.headline()}; {self.note}" if self.note else self.headline()

    def does(self) -> str:
        """Return what training, or evaluation, does, in words."""
        if self.scored and self.action == "stop" and self.kind.refused:
            return "the evaluation refuses the file"
        if self.scored and self.kind.scored:
            return self.kind.scored
        if self.action == self.kind.action:
            return self.kind.does
        return "not looked at: masks are not used" if self.action == "keep" else _USUALLY[self.action]

    def text(self) -> str:
        """Return several lines: the headline, the examples, what it means and what to do."""
        lines = [self.headline(), *(f"  {example.line()}" for example in self.examples)]
        if self.count > len(self.examples) > 0:
            lines.append(f"  and {self.count - len(self.examples)} more")
        return "\n".join([*lines, *(f"  {text}" for text in (self.note, self.kind.means, self.kind.todo) if text)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {
            "kind": self.key,
            "count": self.count,
            "total": self.total,
            "what": self.kind.title,
            "action": self.action,
            "training": self.does(),
            "warning": self.warns,
            "note": self.note,
            "means": self.kind.means,
            "to_do": self.kind.todo,
            "examples": [example.to_dict() for example in self.examples],
        }


def find(
    key: str,
    where: Sequence[Any] | np.ndarray,
    total: int,
    example: Callable[[Any], Example],
    *,
    action: Action | None = None,
    warns: bool | None = None,
    note: str = "",
) -> list[Finding]:
    """Return one finding for the places ``where``, none where there are none.

    Args:
        key: of KINDS, which has the usual ``action`` and ``warns``.
        where: what ``example`` takes; it describes one place, and is called for the first few.
        total: of which these are some.
        note: what is particular here.
    """
    if len(where) == 0:
        return []
    kind = KINDS[key]
    examples = tuple(example(place) for place in where[:MAX_EXAMPLES])
    warned = kind.warns if warns is None else warns
    return [Finding(key, len(where), total, examples, action or kind.action, warned, note)]


def for_evaluation(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings of a set that is evaluated, not trained on."""
    scored = []
    for found in findings:
        action = "keep" if found.kind.scored and found.action != "stop" else found.action
        if found.action == found.kind.action and found.kind.refused:  # masks that are not used have another action
            action = "stop"
        scored.append(replace(found, scored=True, action=action))
    return scored


def refuse_findings(source: object, findings: Sequence[Finding], what: str = "training") -> None:
    """Raise ValueError where there are findings that stop what is to be done; it tells all of them."""
    stops = [finding for finding in findings if finding.action == "stop"]
    if stops:
        kinds = "a mistake" if len(stops) == 1 else f"{len(stops)} kinds of mistakes"
        lines = [f"  {line}" for finding in stops for line in finding.text().splitlines()]
        raise ValueError("\n".join([f"{source}: {kinds} that {what} stops at", *lines]))


def report_findings(source: object, findings: Sequence[Finding]) -> None:
    """Log what a run continues with; raise what it cannot.

    Raises:
        ValueError: there are findings that stop a training; it tells all of them.
    """
    refuse_findings(source, findings)
    for finding in findings:
        example = f"; for example {finding.examples[0].line()}" if finding.examples and finding.warns else ""
        logger.log(logging.WARNING if finding.warns else logging.INFO, "%s: %s%s", source, finding.summary(), example)


def brief(value: Any) -> str:
    """Return ``repr(value)``, shortened where it is long, and of a few levels where it is deep."""
    return _brief.repr(value)


def printable(text: str) -> str:
    """Return text, names of files among it, without what could move a terminal's cursor or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
