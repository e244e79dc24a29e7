"""The figures of classifiers as a table for a terminal, and the files that an evaluation leaves."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate

from resnet_backbone.classification.ensemble import EnsembleScore, Member, MemberScore
from resnet_backbone.classification.views import Views
from resnet_backbone.config.finished_run import CONFIG, FINAL
from resnet_backbone.data.classes import ClassDataset
from resnet_backbone.evaluation.accuracy import TOP, ClassificationMetrics, error_text
from resnet_backbone.evaluation.facts import FACTS_NAME, device_name, git_commit, hash_labels
from resnet_backbone.files.checkpoints import LAST
from resnet_backbone.files.whole import write_text
from resnet_backbone.version import __version__

METRICS_NAME, PREDICTIONS_NAME = "metrics.json", "predictions.csv"


@dataclass(frozen=True)
class EvaluationFacts:
    """The conditions of an evaluation: ``facts.json``."""

    resnet_backbone: str  # its version
    commit: str | None  # see git_commit
    command: str
    torch: str
    torchvision: str
    device: str
    dtype: str
    views: str  # 1-crop, 10-crop or multi-scale
    scales: list[int] | None  # of multi-scale, in pixels
    dataset: str
    location: str  # absolute path
    labels_sha256: str  # see hash_labels
    num_images: int
    class_names: list[str]
    members: list[dict[str, Any]]  # name, sha256, transform, published accuracy, and figures of each classifier


def score_text(score: EnsembleScore, views: Views) -> str:
    """Return a table for a terminal: a row a classifier, and one for their mean where there are several."""
    rows = [
        (
            one.member.name,
            _transform_text(one.member, views),
            *_errors(one.metrics),
            _published(one, "acc1"),
            _published(one, "acc5"),
            f"{one.images_per_s:.1f}",
        )
        for one in score.members
    ]
    if len(rows) > 1:
        rows.append((f"mean of the {len(rows)}", "", *_errors(score.metrics), "", "", ""))
    headers = ("weights", "images", "top-1 error", "top-5 error", "published top-1", "published top-5", "images/s")
    published = any(one.member.acc1 is not None for one in score.members)
    notes = ["In brackets: 95 % intervals, of the choice of images."]
    if published:
        notes.append(
            "Published errors are of one crop of ImageNet's validation images, or of CIFAR-10's test images, resized "
            "and cropped as the weights say; in brackets whether they lie in the interval."
        )
    if any(one.member.acc1 is not None and one.member.arch.startswith("cifar_") for one in score.members):
        notes.append("On CIFAR-10 (JPEG copy) expect about ten points more than the published error.")
    if published and views.kind != "1-crop":
        notes.append(f"This is {views.kind}: expect fewer errors.")
    return "\n".join([tabulate(rows, headers, "simple", disable_numparse=True), *notes])


def _transform_text(member: Member, views: Views) -> str:
    transform = member.test_transform
    if views.kind == "multi-scale":
        return f"{', '.join(map(str, views.scales))}, {transform.interpolation}"
    return f"{transform.resize}, {views.kind} {transform.crop}, {transform.interpolation}"


def _errors(metrics: ClassificationMetrics) -> tuple[str, str]:
    top1 = error_text(metrics.top1_error, metrics.top1_interval)
    if metrics.top5_error is None or metrics.top5_interval is None:
        return top1, "-"
    return top1, error_text(metrics.top5_error, metrics.top5_interval)


def _published(score: MemberScore, accuracy: str) -> str:
    """Say the published error, and whether it lies in the interval."""
    published = getattr(score.member, accuracy)
    interval = score.metrics.top1_interval if accuracy == "acc1" else score.metrics.top5_interval
    if published is None or interval is None:
        return "-"
    error = 100 - published
    where = "inside" if interval[0] <= error <= interval[1] else "outside"
    return f"{error:.2f} % ({where})"


def check_folder(folder: Path) -> None:
    """Raise ValueError where an evaluation would write over the records of a training."""
    if any((folder / name).is_file() for name in (CONFIG, FINAL, LAST)):
        raise ValueError(f"{folder} holds a training; give the evaluation a folder of its own: {folder}_eval")


def write_score(
    folder: Path,
    score: EnsembleScore,
    dataset: ClassDataset,
    views: Views,
    *,
    device: torch.device,
    dtype: str,
) -> list[Path]:
    """Write ``metrics.json`` (of the mean, where there are several), ``facts.json`` and ``predictions.csv``.

    Returns:
        Their paths.
    """
    names = [dataset.image_name(index) for index in range(len(dataset))]
    facts = EvaluationFacts(
        resnet_backbone=__version__,
        commit=git_commit(),
        command=shlex.join(["python", *sys.argv]),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        device=device_name(device),
        dtype=dtype,
        views=views.kind,
        scales=list(views.scales) if views.kind == "multi-scale" else None,
        dataset=dataset.source,
        location=str(dataset.location.absolute()),
        labels_sha256=hash_labels(names, dataset.labels.tolist()),
        num_images=len(dataset),
        class_names=list(dataset.class_names),
        members=[
            {**asdict(one.member), **one.metrics.to_dict()["classification"], "images_per_s": one.images_per_s}
            for one in score.members
        ],
    )
    texts = {
        METRICS_NAME: json.dumps(score.metrics.to_dict(), indent=2) + "\n",
        FACTS_NAME: json.dumps(asdict(facts), indent=2) + "\n",
        PREDICTIONS_NAME: predictions_csv(score.probabilities, dataset, names),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def predictions_csv(probabilities: torch.Tensor, dataset: ClassDataset, names: Sequence[str]) -> str:
    """Return a line an image: its name, its class, and the five likeliest classes with their probabilities."""
    shown = min(TOP, probabilities.shape[1])
    top = probabilities.topk(shown)
    classes = dataset.class_names
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    headers = [(f"class{rank}", f"probability{rank}") for rank in range(1, shown + 1)]
    writer.writerow(["image", "label", *(header for pair in headers for header in pair)])
    found = zip(names, dataset.labels.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    for name, label, indices, values in found:
        pairs = [(classes[index], f"{value:.6g}") for index, value in zip(indices, values, strict=True)]
        writer.writerow([name, classes[label], *(item for pair in pairs for item in pair)])
    return out.getvalue()
