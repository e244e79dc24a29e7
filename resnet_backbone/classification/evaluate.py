"""Evaluation of a classifier: on a test set over all processes, as a table for a terminal, and the files written."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from resnet_backbone.classification.device_images import DeviceImages
from resnet_backbone.classification.ensemble import EnsembleScore, Member, MemberScore
from resnet_backbone.classification.predict import Classifier, evaluating, load_classifier, predict
from resnet_backbone.classification.transforms import ONE_CROP, Views
from resnet_backbone.config.differences import CONFIG
from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.files.atomic import write_text
from resnet_backbone.files.checkpoints import FINAL, LAST
from resnet_backbone.metrics.classification import TOP, ClassificationMetrics, error_text, score_classes
from resnet_backbone.metrics.run_facts import FACTS_NAME, CostMeter, environment, hash_labels, write_facts

METRICS_NAME, PREDICTIONS_NAME = "metrics.json", "predictions.csv"


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
    names = [dataset.image_name(index) for index in range(len(dataset))]
    facts = {
        **environment(device),
        "dtype": dtype,
        "views": views.kind,
        "scales": list(views.scales) if views.kind == "multi-scale" else None,  # pixels
        "dataset": dataset.source,
        "location": str(dataset.location.absolute()),
        "labels_sha256": hash_labels(names, dataset.labels.tolist()),
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


class Scorer:
    """Scores classifiers on one test set, in float32 whatever they were trained in.

    Half the precision makes some classes equally likely, and ties count as errors.

    Args:
        dataset: the test set.
        accelerator: the processes that share its images, each taken by one of them alone.
        batch_size: images in one forward pass of a process.
        num_workers: processes that decode images.
        on_device: the same images, kept on the device as the trained network reads them; for 1-crop.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        accelerator: Accelerator,
        *,
        batch_size: int,
        num_workers: int,
        on_device: DeviceImages | None = None,
    ) -> None:
        self.dataset = dataset
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.on_device = on_device
        self._labels = torch.from_numpy(dataset.labels)

    def quick(self, classifier: Classifier) -> ClassificationMetrics:
        """Return the figures of the centre crop of every image."""
        return score_classes(self._own_probabilities(classifier, ONE_CROP), self._labels)

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
            other = load_classifier(member.source)
            probabilities += self._gathered(*self._predicted(other, views))
        metrics = score_classes(probabilities / (1 + len(members)), self._labels)
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

    def _own_probabilities(self, classifier: Classifier, views: Views) -> Tensor:
        """Return what the classifier that the images on the device are prepared for says of all, (N, K)."""
        if self.on_device is None or views != ONE_CROP:
            return self._gathered(*self._predicted(classifier, views))
        accelerator = self.accelerator
        place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        batches = self.on_device.test_batches(self.batch_size, **place)
        return self._gathered(*classify_batches(classifier.model, batches, accelerator.device))

    def _predicted(self, classifier: Classifier, views: Views) -> tuple[Tensor, Tensor]:
        """Return indices and probabilities of this process's share."""
        accelerator = self.accelerator
        total = -(-(len(self.dataset) - accelerator.process_index) // accelerator.num_processes)
        with tqdm(total=total, desc=classifier.name, unit="image", disable=None, leave=False) as bar:
            return predict(
                classifier,
                self.dataset,
                views,
                device=accelerator.device,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                progress=lambda done, _: bar.update(done - bar.n),
            )

    def _gathered(self, indices: Tensor, share: Tensor) -> Tensor:
        """Return the probabilities of all images, (N, K), on every process."""
        if self.accelerator.num_processes == 1:
            return share
        whole = torch.empty(len(self.dataset), share.shape[1])
        for part_indices, part in gather_object([(indices, share)]):
            whole[part_indices] = part
        return whole


def data_hash(data: ClassDataset) -> str:
    """Return :func:`~resnet_backbone.metrics.run_facts.hash_labels` of a data set: which images it has, and of what."""
    return hash_labels([data.image_name(index) for index in range(len(data))], data.labels.tolist())


def classify_batches(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return indices (n,) and probabilities (n, K), both on the CPU, of batches of (indices, images)."""
    indices, probabilities = [], []
    with evaluating(model, device, torch.float32):
        for numbers, images in batches:
            indices.append(numbers)
            probabilities.append(model(images).float().softmax(1))
    return torch.cat(indices).cpu(), torch.cat(probabilities).cpu()
