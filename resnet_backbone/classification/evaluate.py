"""Evaluating classifiers: each by itself and several as an ensemble, the table, the files, and the test of a training.

Source of the ensemble: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Table 5.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tabulate import tabulate
from torch import Tensor

from resnet_backbone.classification.predict import (
    Classifier,
    Member,
    check_views,
    describe,
    evaluating,
    load_classifier,
    predict,
)
from resnet_backbone.classification.transforms import ONE_CROP, DeviceImages, Views
from resnet_backbone.config.merge import CONFIG
from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.files.atomic import write_text
from resnet_backbone.files.checkpoints import FINAL, LAST
from resnet_backbone.metrics.classification import TOP, ClassificationMetrics, error_text, score_classes
from resnet_backbone.metrics.run_facts import FACTS_NAME, CostMeter, environment, hash_labels, write_facts
from resnet_backbone.weights import TestTransform, WeightsError, read_weights

METRICS_NAME, PREDICTIONS_NAME = "metrics.json", "predictions.csv"


@dataclass(frozen=True)
class MemberScore:
    """What one classifier reached, and how many images a second went through it, reading and decoding included."""

    member: Member
    metrics: ClassificationMetrics
    images_per_s: float


@dataclass(frozen=True)
class EnsembleScore:
    """What several classifiers reached, or one."""

    members: tuple[MemberScore, ...]  # each by itself
    metrics: ClassificationMetrics  # of the mean of their probabilities
    probabilities: Tensor  # that mean, float32, (N, K)


def check_members(
    sources: Sequence[str], dataset: ClassDataset, views: Views, test_transform: TestTransform | None = None
) -> list[Member]:
    """Read several weights and check that each can be tested on ``dataset``, before the first one is.

    Args:
        sources: one or more catalog names or files.
        dataset, views: as for :func:`score_members`; its classes must be theirs.
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
    members = []
    for source in sources:
        weights = read_weights(source)
        member = describe(weights, None if weights.test_transform else test_transform)
        _check_classes(member.name, weights.num_classes, weights.class_names, dataset)
        check_views(views, member.name, member.arch, weights.num_classes, member.test_transform)
        members.append(member)
    if test_transform is not None and not any(member.given_transform for member in members):
        raise ValueError(
            "a test transform is given (--resize, --crop), and all of the weights say their own: leave it out"
        )
    return members


def _check_classes(name: str, num_classes: int, class_names: Sequence[str], dataset: ClassDataset) -> None:
    """Raise WeightsError where a classifier has other classes than the data; published ones say their number alone."""
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
) -> EnsembleScore:
    """Run classifiers one after another, so that memory holds one, and score each and the mean of all.

    Every image is shown to each of them in the way that its own test transform says.

    Args:
        members: what :func:`check_members` returned for the same data and views.
        dataset, views, device, batch_size, num_workers, dtype: as of
            :func:`~resnet_backbone.classification.predict.predict`.

    Raises:
        ValueError: as ``predict``; or probabilities that are not finite.
    """
    labels = torch.from_numpy(dataset.labels)
    total = torch.zeros(len(dataset), len(dataset.class_names), dtype=torch.float64)
    scores = []
    for member in members:
        classifier = load_classifier(member.source, test_transform=member.test_transform)
        start = time.perf_counter()
        _, probabilities = predict(
            classifier, dataset, views, device=device, batch_size=batch_size, num_workers=num_workers, dtype=dtype
        )
        images_per_s = len(dataset) / (time.perf_counter() - start)
        del classifier  # before the next one is built
        scores.append(MemberScore(member, score_classes(probabilities, labels), images_per_s))
        total += probabilities
    mean = (total / len(members)).float()
    return EnsembleScore(tuple(scores), score_classes(mean, labels), mean)


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
    """Write ``metrics.json`` (of the mean, if there are several), ``facts.json`` (conditions) and ``predictions.csv``.

    Returns:
        Their paths.
    """
    facts = {
        **environment(device),
        "dtype": dtype,
        "views": views.kind,
        "scales": list(views.scales) if views.kind == "multi-scale" else None,  # pixels
        "dataset": dataset.source,
        "location": str(dataset.location.absolute()),
        "labels_sha256": data_hash(dataset),
        "num_images": len(dataset),
        "class_names": list(dataset.class_names),
        # Name, SHA-256, transform, published accuracy, and figures of each classifier.
        "members": [
            {**asdict(one.member), **one.metrics.to_dict()["classification"], "images_per_s": one.images_per_s}
            for one in score.members
        ],
    }
    texts = {
        METRICS_NAME: json.dumps(score.metrics.to_dict(), indent=2) + "\n",
        FACTS_NAME: json.dumps(facts, indent=2) + "\n",
        PREDICTIONS_NAME: csv_text(_predictions(score.probabilities, dataset)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _predictions(probabilities: Tensor, dataset: ClassDataset) -> Iterator[list[str]]:
    """A line an image: its name, its class, and the five likeliest classes with their probabilities."""
    count = min(TOP, probabilities.shape[1])
    top = probabilities.topk(count)
    names = dataset.class_names
    columns = [f"{column}{rank}" for rank in range(1, count + 1) for column in ("class", "probability")]
    yield ["image", "label", *columns]
    for index, likeliest in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True)):
        row = [dataset.image_name(index), names[int(dataset.labels[index])]]
        for label, probability in zip(*likeliest, strict=True):
            row += [names[label], f"{probability:.6g}"]
        yield row


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows, the first of which are the names of the columns, as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def data_hash(data: ClassDataset) -> str:
    """Return :func:`~resnet_backbone.metrics.run_facts.hash_labels` of a data set: which images it has, and of what."""
    return hash_labels([data.image_name(index) for index in range(len(data))], data.labels.tolist())


@dataclass
class Scorer:
    """Scores classifiers on one test set, in float32 whatever they were trained in.

    Half the precision makes some classes equally likely, and ties count as errors.
    """

    dataset: ClassDataset  # the test set
    accelerator: Accelerator  # the processes that share its images, each taken by one of them alone
    batch_size: int  # images in one forward pass of a process
    num_workers: int  # processes that decode images
    # the same images, kept on the device as the trained network reads them; for 1-crop
    on_device: DeviceImages | None = None

    def quick(self, classifier: Classifier) -> ClassificationMetrics:
        """Return the figures of the centre crop of every image."""
        return self._score(self._own_probabilities(classifier, ONE_CROP))

    def full(
        self, classifier: Classifier, views: Views, folder: Path, members: Sequence[Member] = ()
    ) -> ClassificationMetrics:
        """Score a classifier, or its mean with others, and write ``metrics.json`` and ``facts.json`` into ``folder``.

        Parameters in the facts are those of ``classifier``, multiply-adds and speed, too, of 1-crop; None of others.

        Args:
            classifier: on the device.
            views: what is shown of each image.
            folder: created where needed.
            members: of the ensemble, besides ``classifier``; one after another is loaded.
        """
        device = self.accelerator.device
        meter = CostMeter(classifier.model, device)
        with meter if views == ONE_CROP else nullcontext():
            probabilities = self._own_probabilities(classifier, views)
        for member in members:
            probabilities += self._probabilities(load_classifier(member.source), views)
        metrics = self._score(probabilities / (1 + len(members)))
        if self.accelerator.is_main_process:
            data = self.dataset
            write_facts(
                folder,
                meter,
                engine="classification",
                device=device,
                processes=self.accelerator.num_processes,
                dataset=data.source,
                annotations=data.location,
                image_folder=data.location,
                num_images=len(data),
                class_names=data.class_names,
                annotations_sha256=data_hash(data),
            )
            write_text(folder / METRICS_NAME, json.dumps(metrics.to_dict(), indent=2) + "\n")
        return metrics

    def _score(self, probabilities: Tensor) -> ClassificationMetrics:
        return score_classes(probabilities, torch.from_numpy(self.dataset.labels))

    def _own_probabilities(self, classifier: Classifier, views: Views) -> Tensor:
        """Return what the classifier that the images on the device are prepared for says of all, (N, K)."""
        if self.on_device is None or views != ONE_CROP:
            return self._probabilities(classifier, views)
        indices, probabilities = [], []
        accelerator = self.accelerator
        place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        batches = self.on_device.test_batches(self.batch_size, **place)
        with evaluating(classifier.model, accelerator.device, torch.float32):
            for numbers, images in batches:
                indices.append(numbers)
                probabilities.append(classifier.model(images).float().softmax(1))
        return self._gathered(torch.cat(indices).cpu(), torch.cat(probabilities).cpu())

    def _probabilities(self, classifier: Classifier, views: Views) -> Tensor:
        """Return what a classifier says of all images, (N, K)."""
        share = predict(
            classifier,
            self.dataset,
            views,
            device=self.accelerator.device,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        return self._gathered(*share)

    def _gathered(self, indices: Tensor, share: Tensor) -> Tensor:
        """Return the probabilities of all images, (N, K), on every process."""
        if self.accelerator.num_processes == 1:
            return share
        gathered = torch.empty(len(self.dataset), share.shape[1])
        for part_indices, part in gather_object([(indices, share)]):
            gathered[part_indices] = part
        return gathered
