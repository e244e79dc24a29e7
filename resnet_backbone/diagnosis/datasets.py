"""The section "data": every data set opened as a run does it, and its classes against those of the others and the
detector's."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnet_backbone.data.catalog import check_same_classes
from resnet_backbone.diagnosis.checkpoint import DETECTOR, Checkpoint
from resnet_backbone.diagnosis.engine import Engine
from resnet_backbone.diagnosis.report import Section
from resnet_backbone.weights.errors import SHOWN_NAMES


def check_datasets(section: Section, engine: Engine, cfg: CfgNode) -> tuple[str, ...]:
    """Open what DATASETS.TRAIN and TEST name.

    Args:
        section: gets the findings.
        engine: whose run.
        cfg: reads DATASETS, MODEL.MASK_ON and INPUT.

    Returns:
        The classes of the first data set that can be used.
    """
    class_names: tuple[str, ...] | None = None
    for key, names, training in (("TRAIN", cfg.DATASETS.TRAIN, True), ("TEST", cfg.DATASETS.TEST, False)):
        if isinstance(names, str):
            section.wrong(f'DATASETS.{key} is the text {names!r}; write a list of names: ["{names}"]')
            continue
        if not names:
            section.warning(f"DATASETS.{key} is empty")
        for name in names:
            try:
                with section.with_logged_warnings():
                    found = engine.open_dataset(name, cfg, training=training)
                class_names = found if class_names is None else class_names
                check_same_classes(name, found, class_names)
            except (ValueError, TypeError, OSError) as error:
                section.wrong(str(error))
                continue
            use = "trains on it" if training else "scores with it"
            section.ok(f"{name} passes what a run checks before it {use}; {_described(found)}")
    section.facts["class_names"] = list(class_names or ())
    return class_names or ()


def compare_with_detector(section: Section, class_names: tuple[str, ...], checkpoint: Checkpoint) -> None:
    """Say whether a detector in MODEL.WEIGHTS tells the classes of the data apart, as far as it says which those are.

    Args:
        section: gets the finding.
        class_names: of the data; none says nothing.
        checkpoint: what MODEL.WEIGHTS names.
    """
    if checkpoint.kind != DETECTOR or not class_names:
        return
    if checkpoint.class_names:
        same, learned = checkpoint.class_names == class_names, _described(checkpoint.class_names)
    elif checkpoint.num_detected is not None:
        same, learned = checkpoint.num_detected == len(class_names), f"{checkpoint.num_detected} classes without names"
    else:
        section.warning(f"{checkpoint.source} does not say which classes it detects: that is not compared")
        return
    if same:
        section.ok(f"{checkpoint.source} detects the classes of the data")
    else:
        section.warning(
            f"{checkpoint.source} detects {learned}, the data has {_described(class_names)}: a training can start from "
            f"it, --eval-only and --resume need a detector of these classes"
        )


def _described(class_names: Sequence[str]) -> str:
    more = f" and {len(class_names) - SHOWN_NAMES} more" if len(class_names) > SHOWN_NAMES else ""
    return f"the classes {list(class_names[:SHOWN_NAMES])}{more}" if class_names else "no classes of things"
