"""The section "classification": the comparison with the plain classifier, and the classes of the user's images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from resnet_backbone.diagnosis.checkpoint import DETECTOR, Checkpoint
from resnet_backbone.diagnosis.classification import (
    LOGITS,
    TOLERANCE,
    comparable_output,
    compare,
    graft,
    plain_classifier,
    top5,
)
from resnet_backbone.diagnosis.engine import DetectorParts
from resnet_backbone.diagnosis.pixels import CROP, generated_image, normalise, read_cropped
from resnet_backbone.diagnosis.report import Section
from resnet_backbone.weights import WeightsError

GENERATED = "a generated picture"
_COUNTER = ".num_batches_tracked"


def classify_by_detector(section: Section, parts: DetectorParts, checkpoint: Checkpoint, images: Sequence[str]) -> None:
    """Classify images by the detector's own pre-processing and trunk, and compare with the plain classifier.

    Args:
        section: gets the findings.
        parts: the detector, filled, with a trunk.
        checkpoint: what it was filled from; its classifier completes the trunk.
        images: files; none compares a generated picture and names no classes.
    """
    weights = checkpoint.weights
    try:
        plain = plain_classifier(weights, parts.trunk)
        grafted = graft(plain, parts)
    except (WeightsError, ValueError) as error:
        section.reason = str(error)
        return
    if weights.input_format is None and not (weights.num_classes and images):
        section.reason = "nobody knows which input the weights need"
        return
    output = comparable_output(grafted)
    if weights.num_classes and output != LOGITS:
        section.warning(
            "the trunk is dilated, so that it sees its images at another scale than the classifier did: its classes "
            f"are less sure, and not comparable; compared is {output or 'nothing'}"
        )
    if images and not weights.num_classes:
        section.warning(f"{checkpoint.source} has no classifier: what the images show is not known")
    if weights.input_format is None:
        section.warning("nobody knows which input the weights need: that is not compared")
    if weights.stride_in_1x1 is None:
        section.warning("nobody knows where these bottlenecks carried their stride: that is not compared")
    differences: list[float] = []
    causes: list[str] = []
    for name, image in _pictures(section, images):
        if weights.input_format is not None and output is not None:
            comparison = compare(parts, plain, grafted, output, image, weights)
            differences.append(comparison.difference)
            causes += comparison.causes
        if weights.num_classes and name != GENERATED:
            with torch.inference_mode():
                _enter_classes(section, name, top5(grafted, parts.prepare(image)))
    _enter_comparison(section, str(output), differences, list(dict.fromkeys(causes)), len(images))


def classify_alone(loading: Section, section: Section, checkpoint: Checkpoint, images: Sequence[str]) -> None:
    """Build the network of a file that has no detector around it, and classify images if it can.

    Args:
        loading: the section "weights", for what building the network finds.
        section: the section "classification".
        checkpoint: of a known architecture.
        images: files.
    """
    weights = checkpoint.weights
    try:
        plain = plain_classifier(weights)
    except WeightsError as error:
        loading.wrong(str(error))
        section.reason = "the network is not whole"
        return
    num_loaded = sum(not name.endswith(_COUNTER) for name in plain.state_dict())
    loading.ok(f"all {num_loaded} tensors of {plain.arch} are there")
    if not weights.num_classes:
        section.reason = "the file has no classifier" + (", as detectors have none" * (checkpoint.kind == DETECTOR))
    elif weights.input_format is None:
        section.reason = "nobody knows which input the weights need"
    elif not images:
        section.reason = "there are no images: write --images"
    else:
        for name, image in _pictures(section, images):
            _enter_classes(section, name, top5(plain, normalise(image, weights.input_format, (CROP, CROP))))


def _pictures(section: Section, images: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    if not images:
        yield GENERATED, generated_image()
    for path in images:
        try:
            image = read_cropped(path)
        except (OSError, ValueError) as error:
            section.wrong(str(error))
        else:
            yield path, image


def _enter_classes(section: Section, name: str, classes: list[dict[str, Any]]) -> None:
    section.facts.setdefault("images", []).append({"image": name, "top5": classes})
    section.ok(f"{name}: " + ", ".join(f"{found['class']} {found['probability']:.1%}" for found in classes))


def _enter_comparison(
    section: Section, output: str, differences: Sequence[float], causes: Sequence[str], num_images: int
) -> None:
    if not differences:
        return
    worst = max(differences)
    section.facts |= {"compared": output, "relative_difference": worst, "tolerance": TOLERANCE, "causes": list(causes)}
    on = f"{num_images} image(s)" if num_images else GENERATED
    text = f"{output} of the detector's trunk differ by {worst:.1e} of the largest from the plain classifier's, on {on}"
    if worst < TOLERANCE:
        section.ok(text)
    else:
        section.wrong("\n".join([f"{text}; at most {TOLERANCE} is rounding", *(f"  {cause}" for cause in causes)]))
