"""From weights and images as a user names them to the responses of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resnet_backbone.classification.checkpoint import weights_file
from resnet_backbone.classification.predict import Classifier, load_classifier
from resnet_backbone.classification.responses import Responses, measure_responses
from resnet_backbone.classification.views import one_crop
from resnet_backbone.data.classes import ClassDataset
from resnet_backbone.weights import TestTransform

BATCH_SIZE = 32


def measure_sources(
    sources: Sequence[str],
    dataset: ClassDataset,
    num_images: int,
    names: Sequence[str] = (),
    test_transform: TestTransform | None = None,
) -> list[Responses]:
    """Measure the responses of several networks to the centres of the same images, on the GPU if there is one.

    Args:
        sources: a catalog name, a packaged weight file, or the folder of a run, which has one.
        dataset: at least one image.
        num_images: how many of them, at equal distances in their order, so that every class has its share; all, where
            there are fewer.
        names: for tables and plots, one for each; by default those of the files, of the folders, or of the catalog.
        test_transform: of the sources that do not say their own.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: names that do not fit or are not distinct, fewer than one image, or what
            :func:`~resnet_backbone.classification.predict.load_classifier` raises.
        DownloadError: published weights could not be had.
    """
    if num_images < 1:
        raise ValueError(f"cannot measure the responses to {num_images} images; write 1 or more")
    if names and len(names) != len(sources):
        raise ValueError(f"{len(sources)} sources need {len(sources)} names, got {len(names)}: {', '.join(names)}")
    labels = list(names) or [_usual_name(source) for source in sources]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two networks are called {twice[0]}; give each a name of its own with --names")
    files = [weights_file(source) for source in sources]
    indices = spread(len(dataset), num_images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = []
    for file, label in zip(files, labels, strict=True):
        classifier = load_classifier(file, test_transform=test_transform)
        batches = (batch.to(device) for batch in _batches(classifier, dataset, indices))
        measured.append(measure_responses(classifier.model.to(device), batches, label))
    return measured


def _usual_name(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else source.split("://")[-1]


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` indices below ``total`` at equal distances, or all where there are fewer."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def _batches(classifier: Classifier, dataset: ClassDataset, indices: Sequence[int]) -> Iterator[Tensor]:
    for start in range(0, len(indices), BATCH_SIZE):
        images = [dataset[index][0] for index in indices[start : start + BATCH_SIZE]]
        yield torch.stack([one_crop(image, classifier.input_format, classifier.test_transform) for image in images])
