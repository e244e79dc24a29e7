"""The report of tools/doctor.py: findings by section, as text and as JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SECTIONS = ("versions", "registry", "config", "weights", "input", "data", "classification")
OK, WARNING, WRONG, NOT_RUN = "ok", "warning", "wrong", "not run"
_BY_SEVERITY = (WRONG, WARNING, OK)


@dataclass
class Section:
    """One part of the examination.

    Attributes:
        name: one of ``SECTIONS``.
        findings: ``("ok", "warning" or "wrong", text)``, in the order they were made; none where it did not run.
        reason: why it did not run.
        facts: plain containers, for JSON.
    """

    name: str
    findings: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """The worst of the findings; ``"not run"`` without any."""
        found = {status for status, _ in self.findings}
        return next((status for status in _BY_SEVERITY if status in found), NOT_RUN)

    def ok(self, text: str) -> None:
        self.findings.append((OK, text))

    def warning(self, text: str) -> None:
        self.findings.append((WARNING, text))

    def wrong(self, text: str) -> None:
        self.findings.append((WRONG, text))

    def texts(self, status: str) -> list[str]:
        """Return the texts of one status."""
        return [text for found, text in self.findings if found == status]

    @contextmanager
    def with_logged_warnings(self) -> Iterator[None]:
        """Turn what the package logs as a warning into findings, each once."""
        handler = _Findings(self)
        logger = logging.getLogger("resnet_backbone")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "ok": self.texts(OK),
            "warnings": self.texts(WARNING),
            "wrong": self.texts(WRONG),
            "reason": self.reason if self.status == NOT_RUN else "",
            "facts": self.facts,
        }


class _Findings(logging.Handler):
    """Enters log records into a section."""

    def __init__(self, section: Section) -> None:
        super().__init__(logging.WARNING)
        self.section = section

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.section.texts(WARNING):
            self.section.warning(text)


class Report:
    """All sections, in the order of ``SECTIONS``.

    Args:
        subject: the config file or checkpoint.
        engine: ``"torchvision"`` or ``"detectron2"``; ``""`` for a checkpoint alone.
    """

    def __init__(self, subject: str, engine: str = "") -> None:
        self.subject = subject
        self.engine = engine
        self.sections = {name: Section(name) for name in SECTIONS}

    def __getitem__(self, name: str) -> Section:
        return self.sections[name]

    @property
    def status(self) -> str:
        """The worst of the sections: ``"ok"``, ``"warning"`` or ``"wrong"``."""
        found = {section.status for section in self.sections.values()}
        return next((status for status in _BY_SEVERITY if status in found), OK)

    def not_run(self, reason: str, *names: str) -> None:
        """Say why sections, by default all that have no findings, were not run."""
        for section in self.sections.values():
            if section.status == NOT_RUN and not section.reason and (not names or section.name in names):
                section.reason = reason

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; tools/doctor.py documents the keys."""
        return {
            "subject": self.subject,
            "engine": self.engine,
            "status": self.status,
            "sections": {name: section.to_dict() for name, section in self.sections.items()},
        }

    def text(self) -> str:
        """Return lines to read: every section, then the warnings, then what is wrong."""
        lines = [self.subject + (f" on the {self.engine} engine" if self.engine else "")]
        for section in self.sections.values():
            said = section.texts(OK) or ([section.reason] if section.status == NOT_RUN else [])
            lines += _under(f"  {section.status:<8} {section.name:<15}", said)
        for status in (WARNING, WRONG):
            for section in self.sections.values():
                for text in section.texts(status):
                    lines += ["", f"{status}: {section.name}", *(f"  {line}" for line in text.splitlines())]
        return "\n".join(line.rstrip() for line in lines)


def _under(label: str, texts: list[str]) -> list[str]:
    """Put a label before the first line and align the others with it."""
    lines = [line for text in texts for line in text.splitlines()] or [""]
    return [f"{label if index == 0 else ' ' * len(label)} {line}" for index, line in enumerate(lines)]


def report_of_missing_engine(subject: str, engine: str, error: ImportError) -> Report:
    """Return the report where the engine itself cannot be imported."""
    report = Report(subject, engine)
    report["versions"].wrong(f"the {engine} engine cannot be imported: {error}")
    report.not_run(f"the {engine} engine cannot be imported")
    return report
