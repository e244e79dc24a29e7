"""What was found in data sets, as text, as JSON and as a page with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_backbone.data.findings import ACTIONS, Finding
from resnet_backbone.diagnosis.dataset_check import CheckedSet
from resnet_backbone.diagnosis.dataset_page import render_page
from resnet_backbone.files.whole import write_text

_LABELS = {"stop": "STOPS", "drop": "drops", "fix": "repairs", "keep": "keeps"}


@dataclass(frozen=True)
class DatasetReport:
    """Of all data sets of a run."""

    sets: Sequence[CheckedSet]

    @property
    def stops(self) -> int:
        """How many kinds of mistakes a training would stop at."""
        return sum(finding.action == "stop" for one in self.sets for finding in one.findings)

    def verdict(self) -> str:
        """Return one sentence."""
        if self.stops:
            return f"Training would stop: {self.stops} kind{'s' * (self.stops > 1)} of mistakes must be corrected"
        smells = sum(finding.warns for one in self.sets for finding in one.findings)
        if smells:
            return f"Training would start; {smells} finding{'s' * (smells > 1)} should be looked at"
        return "Training would start; nothing suspicious was found"

    def text(self) -> str:
        """Return lines to read: set by set, what stops first, one line where it is usual; then the verdict."""
        lines = []
        for one in self.sets:
            lines += [described(one)]
            for finding in by_weight(one.findings):
                head, *rest = (finding.text() if finding.warns else finding.summary()).splitlines()
                lines += [f"  {_LABELS[finding.action]:<8}{head}", *(f"        {line}" for line in rest)]
            lines.append("")
        return "\n".join([*lines, self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; tools/check_dataset.py documents the keys."""
        return {"stops": self.stops, "verdict": self.verdict(), "sets": [_set_to_dict(one) for one in self.sets]}

    def write(self, folder: Path) -> None:
        """Write report.txt, report.json and index.html.

        Raises:
            OSError: the folder cannot be written.
        """
        write_text(folder / "report.txt", self.text() + "\n")
        write_text(folder / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")
        sets = [(described(one), one, by_weight(one.findings)) for one in self.sets]
        write_text(folder / "index.html", render_page(self.verdict(), sets))


def described(one: CheckedSet) -> str:
    """Return a line about a data set."""
    use = "to train on" if one.what.training else "to evaluate"
    if one.files is None:
        return f"{one.what.name} ({use}): {one.what.json_path}"
    return (
        f"{one.what.name} ({use}): {one.what.json_path}, {one.num_images:,} images, "
        f"{one.num_annotations:,} annotations, {len(one.classes)} classes"
    )


def by_weight(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, those that stop a training first, warnings before what is usual."""
    return sorted(
        findings, key=lambda finding: (finding.action != "stop", not finding.warns, ACTIONS.index(finding.action))
    )


def _set_to_dict(one: CheckedSet) -> dict[str, Any]:
    return {
        "name": one.what.name,
        "json": str(one.what.json_path),
        "images": str(one.what.image_folder),
        "training": one.what.training,
        "num_images": one.num_images,
        "num_annotations": one.num_annotations,
        "objects": [{"class": name, "objects": number} for name, number in one.classes],
        "findings": [finding.to_dict() for finding in by_weight(one.findings)],
    }
