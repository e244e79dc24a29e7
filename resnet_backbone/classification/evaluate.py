"""Scoring a classifier on a test set over all processes, and the files that an evaluation leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from resnet_backbone.classification.device_images import DeviceImages
from resnet_backbone.classification.ensemble import Member
from resnet_backbone.classification.predict import Classifier, evaluating, load_classifier, predict
from resnet_backbone.classification.views import ONE_CROP, Views
from resnet_backbone.data.classes import ClassDataset
from resnet_backbone.evaluation.accuracy import ClassificationMetrics, score_classes
from resnet_backbone.evaluation.cost import CostMeter
from resnet_backbone.evaluation.facts import hash_labels, write_facts
from resnet_backbone.files.whole import write_text

METRICS = "metrics.json"


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
            write_text(folder / METRICS, json.dumps(metrics.to_dict(), indent=2) + "\n")
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
    """Return :func:`~resnet_backbone.evaluation.facts.hash_labels` of a data set: which images it has, and of what."""
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
