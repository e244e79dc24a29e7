"""The whole comparison as values; :mod:`resnet_backbone.evaluation.comparison.report` writes it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_backbone.evaluation.coco import IouType
from resnet_backbone.evaluation.comparison.gallery import Exhibit, ReadImage, draw_gallery
from resnet_backbone.evaluation.comparison.locate import find_annotations, find_images
from resnet_backbone.evaluation.comparison.measure import Measured, measure
from resnet_backbone.evaluation.comparison.runs import FinishedRun, read_runs
from resnet_backbone.evaluation.comparison.settings import Settings, cautions, compare_settings


@dataclass(frozen=True)
class Comparison:
    """Two or more finished runs on the same data; the first is the baseline."""

    runs: tuple[FinishedRun, ...]
    measured: Mapping[IouType, Measured]  # boxes, masks, or both
    settings: Settings
    cautions: tuple[str, ...]  # what else may have made the difference
    gallery: tuple[Exhibit, ...]

    @property
    def main(self) -> Measured:
        """What the headline is about: the boxes, if they were measured."""
        return self.measured["bbox"] if "bbox" in self.measured else self.measured["segm"]


def compare_runs(
    folders: Sequence[Path],
    *,
    read_image: ReadImage,
    names: Sequence[str] = (),
    dataset: str | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    data_root: Path | None = None,
    samples: int = 1000,
    seed: int = 0,
    num_pictures: int = 6,
) -> Comparison:
    """Compare finished runs of tools/train_net.py, of either engine.

    Args:
        folders: their OUTPUT_DIRs, two or more; the first is the baseline.
        read_image: reads a file as uint8 (3, H, W), RGB, given its path and its (height, width) in pixels.
        names: what to call them, in the same order; by default, as their folders.
        dataset: the test set, where the runs have several.
        annotations: where the ground truth is now; by default, where it was.
        images: where its images are now; by default, where they were.
        data_root: ground truth that is not where it was is looked for below this folder, too.
        samples: how many times the bootstrap draws the test images anew.
        seed: of those draws.
        num_pictures: how many images to draw, at most; with 0 no image is read.

    Raises:
        ValueError: the runs cannot be compared, or not yet; see ``read_runs``, ``find_annotations`` and ``measure``.
        FileNotFoundError, OSError: annotations or images that are not there or cannot be read.
    """
    if num_pictures < 0:
        raise ValueError(f"the number of pictures must be 0 or more, got {num_pictures}")
    runs = read_runs(folders, names, dataset)
    json_path = find_annotations(runs[0], annotations, data_root)
    image_folder = find_images(runs[0], images, data_root) if num_pictures else None
    measured = measure(runs, json_path, samples=samples, seed=seed)
    settings = compare_settings(runs)
    gallery = draw_gallery(runs, measured, json_path, image_folder, read_image, num_pictures) if image_folder else []
    return Comparison(tuple(runs), measured, settings, tuple(cautions(runs, settings)), tuple(gallery))
