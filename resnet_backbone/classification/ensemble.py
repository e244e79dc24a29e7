"""Scoring classifiers on a data set: each by itself, and the ensemble of all by its mean probabilities.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Table 5: the ensemble of six.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_backbone.classification.predict import Progress, classifier_facts, dense_window, load_classifier, predict
from resnet_backbone.classification.transforms import Views
from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.metrics.classification import ClassificationMetrics, score_classes
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import InputFormat, TestTransform, WeightsError, read_weights


@dataclass(frozen=True)
class Member:
    """A classifier that can be tested on the data: what is known of it before it is built.

    Attributes:
        source: as a user names it.
        name: for tables.
        arch: architecture.
        sha256: of its file.
        input_format: the pixels that it reads.
        test_transform: how images are brought to its size.
        given_transform: whether the user said ``test_transform``, and not the weights.
        acc1: published top-1, of one crop, in percent; None where unknown.
        acc5: likewise, top-5.
    """

    source: str
    name: str
    arch: str
    sha256: str
    input_format: InputFormat
    test_transform: TestTransform
    given_transform: bool
    acc1: float | None
    acc5: float | None


@dataclass(frozen=True)
class MemberScore:
    """What one classifier reached, and how many images a second went through it, reading and decoding included."""

    member: Member
    metrics: ClassificationMetrics
    images_per_s: float


@dataclass(frozen=True)
class EnsembleScore:
    """What several classifiers reached, or one.

    Attributes:
        members: each by itself.
        metrics: of the mean of their probabilities.
        probabilities: that mean, float32, (N, K).
    """

    members: tuple[MemberScore, ...]
    metrics: ClassificationMetrics
    probabilities: Tensor


def check_members(
    sources: Sequence[str], dataset: ClassDataset, views: Views, test_transform: TestTransform | None = None
) -> list[Member]:
    """Read several weights and check that each can be tested on ``dataset``, before the first one is.

    Args:
        sources: one or more catalog names or files.
        dataset: its classes must be theirs.
        views: what they will be shown.
        test_transform: of those that do not say one.

    Raises:
        ValueError: no source or one twice, a transform that nobody needs, other classes than those of the data, scales
            that are too small; and what ``load_classifier`` raises.
    """
    if not sources:
        raise ValueError("no weights to evaluate: give one or more, such as imagenet://resnet50/IMAGENET1K_V1")
    twice = sorted({source for source in sources if list(sources).count(source) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice; an ensemble needs different weights")
    members = [_check_member(source, dataset, views, test_transform) for source in sources]
    if test_transform is not None and not any(member.given_transform for member in members):
        raise ValueError(
            "a test transform is given (--resize, --crop), and all of the weights say their own: leave it out"
        )
    return members


def _check_member(source: str, dataset: ClassDataset, views: Views, test_transform: TestTransform | None) -> Member:
    weights = read_weights(source)
    given = None if weights.test_transform else test_transform
    facts = classifier_facts(weights, given)
    views.check(facts.test_transform)
    _check_classes(facts.name, weights.num_classes, weights.class_names, dataset)
    if views.kind == "multi-scale":
        meta = torch.device("meta")
        with meta:
            model = create_model(facts.arch, num_classes=weights.num_classes)
        dense_window(model, facts.name, facts.test_transform.crop, views.scales, meta)
    return Member(
        source=source,
        name=facts.name,
        arch=facts.arch,
        sha256=weights.sha256,
        input_format=facts.input_format,
        test_transform=facts.test_transform,
        given_transform=given is not None,
        acc1=weights.acc1,
        acc5=weights.acc5,
    )


def _check_classes(name: str, num_classes: int, class_names: Sequence[str], dataset: ClassDataset) -> None:
    """Raise WeightsError where a classifier tells other classes apart than those of the data.

    Published classifiers do not say their classes: of these the number alone can be checked. They have ImageNet's in
    the order of the sorted WordNet ids, which is that of ImageNet's folders.
    """
    expected = dataset.class_names
    if num_classes != len(expected):
        raise WeightsError(
            f"{name} tells {num_classes} classes apart, {dataset.source} has {len(expected)} "
            f"({', '.join(expected[:4])}, ...); take data of its classes, or weights that were trained on these"
        )
    if class_names and tuple(class_names) != tuple(expected):
        number = next(i for i, pair in enumerate(zip(class_names, expected, strict=True)) if pair[0] != pair[1])
        same = sorted(class_names) == sorted(expected)
        how = "the same classes in another order" if same else "other classes"
        raise WeightsError(
            f"{name} and {dataset.source} have {how}: class {number} is {class_names[number]!r} there and "
            f"{expected[number]!r} here; give the folders the names of the classifier's classes"
        )


def score_members(
    members: Sequence[Member],
    dataset: ClassDataset,
    views: Views,
    *,
    device: torch.device | str,
    batch_size: int,
    num_workers: int,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str], Progress] | None = None,
) -> EnsembleScore:
    """Run classifiers one after another, so that memory holds one, and score each and the mean of all.

    Every image is shown to each of them in the way that its own test transform says.

    Args:
        members: what :func:`check_members` returned for the same data and views.
        dataset, views, device, batch_size, num_workers, dtype: as of
            :func:`~resnet_backbone.classification.predict.predict`.
        progress: makes the callback of a member from its name.

    Raises:
        ValueError: as ``predict``; or probabilities that are not finite.
    """
    labels = torch.from_numpy(dataset.labels)
    total = torch.zeros(len(dataset), len(dataset.class_names), dtype=torch.float64)
    scores = []
    for member in members:
        given = member.test_transform if member.given_transform else None
        classifier = load_classifier(member.source, test_transform=given)
        start = time.perf_counter()
        _, probabilities = predict(
            classifier,
            dataset,
            views,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            dtype=dtype,
            progress=progress(member.name) if progress else None,
        )
        images_per_s = len(dataset) / (time.perf_counter() - start)
        del classifier  # before the next one is built
        scores.append(MemberScore(member, score_classes(probabilities, labels), images_per_s))
        total += probabilities
    mean = (total / len(members)).float()
    return EnsembleScore(tuple(scores), score_classes(mean, labels), mean)
