"""The report of tools/doctor.py (findings by section, as text and JSON), and what an engine brings to its checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.doctor.checkpoint import Checkpoint
from resnet_backbone.models.trunk import Trunk

SECTIONS = ("versions", "registry", "config", "weights", "input", "data", "classification")
OK, WARNING, WRONG, NOT_RUN = "ok", "warning", "wrong", "not run"
_BY_SEVERITY = (WRONG, WARNING, OK)


@dataclass
class Section:
    """One part of the examination."""

    name: str  # one of SECTIONS
    # ("ok", "warning" or "wrong", text), in the order they were made; none where it did not run
    findings: list[tuple[str, str]] = field(default_factory=list)
    reason: str = ""  # why it did not run
    facts: dict[str, Any] = field(default_factory=dict)  # plain containers, for JSON

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


# Keys that name a part of a detector.
NAME_KEYS = ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.NAME")


@dataclass(frozen=True)
class DetectorParts:
    """A detector that was really built, on the CPU and in eval mode, as far as it is the ImageNet classifier."""

    trunk: Trunk  # the detector's own
    # modules of the classifier that its head is made of, by their names there: res5, or fc6 and fc7
    head_parts: Mapping[str, nn.Module]
    # maps an RGB image, uint8 (3, H, W), to what the trunk gets, float (1, C, H', W'), through the detector's own
    # pre-processing
    prepare: Callable[[Tensor], Tensor]


def classifier_parts(*heads: Any) -> dict[str, nn.Module]:
    """Return the modules of a ResNet's or VGG's classifier that ``heads`` have, by their names; None is no head."""
    return {name: getattr(head, name) for head in heads for name in ("res5", "fc6", "fc7") if hasattr(head, name)}


class Engine(Protocol):
    """What the checks ask of an engine, Detectron2 or torchvision."""

    name: str

    def check_versions(self, section: Section) -> None:
        """Enter what the engine's own installation is, and what is wrong with it."""

    def known_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names that are registered for each of ``NAME_KEYS``."""

    def load_config(self, config_file: str, overrides: Sequence[str]) -> CfgNode:
        """Read a config as tools/train_net.py does, with its errors: FileNotFoundError, ValueError."""

    def open_dataset(self, name: str, cfg: CfgNode, *, training: bool) -> tuple[str, ...]:
        """Open and check one data set of ``cfg``, which stays as it is, as a run does, with its errors.

        Returns:
            The names of its classes; none where it has stuff only.
        """

    def loads_detector(self, checkpoint: Checkpoint) -> bool:
        """Return whether a run takes all of this detector, and not its trunk alone."""

    def build(
        self, cfg: CfgNode, checkpoint: Checkpoint | None, class_names: tuple[str, ...], section: Section
    ) -> DetectorParts:
        """Build the detector that ``cfg``, which stays as it is, describes, and load it as a run does.

        Args:
            checkpoint: what MODEL.WEIGHTS names; None leaves the detector random.
            class_names: of the data; where there are none, a detector has those of the checkpoint, else NUM_CLASSES.
            section: gets findings about the loading.

        Raises:
            WeightsError: the weights do not fit.
            ValueError: parts that do not fit each other.
        """
