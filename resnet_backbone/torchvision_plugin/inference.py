"""Running a detector over a data set and scoring it (results JSON, AP, pictures), and calling it on images."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image
from tqdm import tqdm

from resnet_backbone.data.catalog import get_dataset
from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.transforms import test_transforms
from resnet_backbone.engine.batches import BatchLoader, reorder_channels
from resnet_backbone.engine.improvements import scale_boxes
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.coco import CocoMetrics
from resnet_backbone.metrics.drawing import PictureSample, check_image, evenly_spaced, save_comparison_pictures
from resnet_backbone.metrics.results import Detections, ImageResults, decode_masks
from resnet_backbone.metrics.run_facts import CostMeter, write_facts
from resnet_backbone.metrics.voc import score_images
from resnet_backbone.torchvision_plugin.checkpoint import load_trained
from resnet_backbone.torchvision_plugin.datasets import build_test_loader, iou_types
from resnet_backbone.torchvision_plugin.improvements import build_improved
from resnet_backbone.torchvision_plugin.mask_heads import paste_masks

logger = logging.getLogger(__name__)


def rescale(detections: dict[str, Tensor], from_size: tuple[int, int], to_size: tuple[int, int]) -> dict[str, Tensor]:
    """Carry boxes from an image of ``from_size`` (height, width) over to ``to_size``, clip them, drop empty ones.

    Masks (R, M, M), where there are any, become bool (R, height, width).
    Source: Detectron2, ``modeling/postprocessing.py``.
    """
    boxes = clip_boxes_to_image(scale_boxes(detections["boxes"], from_size, to_size), to_size)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    kept = {**{name: value[keep] for name, value in detections.items()}, "boxes": boxes[keep]}
    if "masks" in kept:
        kept["masks"] = paste_masks(kept["masks"], kept["boxes"], *to_size)
    return kept


class Progress:
    """Logs how far an evaluation is, every few seconds; for where no terminal shows the bar."""

    def __init__(self, total: int, every: float = 10.0) -> None:
        self.total = total
        self.every = every  # seconds
        self.done = 0
        self._start = self._logged = time.monotonic()

    def step(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        now = time.monotonic()
        if now - self._logged < self.every or self.done >= self.total:
            return
        self._logged = now
        seconds = (now - self._start) / self.done
        left = seconds * (self.total - self.done)
        text = "evaluated %d of %d images, %.2g s an image, %.0f s to go"
        logger.info(text, self.done, self.total, seconds, left)


@torch.inference_mode()
def predict(
    detector: nn.Module, loader: DataLoader[Any], accelerator: Accelerator, num_classes: int
) -> list[ImageResults]:
    """Return the detections of this process's images, on the CPU, in pixels of the original images.

    The detector runs in float32 also where SOLVER.AMP trains it in another precision, as Detectron2's does.
    Masks come as compressed RLE: as pixels, those of a large set do not fit into memory.
    """
    was_training = detector.training
    detector.eval()
    found = []
    quiet = None if accelerator.is_main_process else True  # None: no bar where there is no terminal
    progress = Progress(len(loader)) if accelerator.is_main_process and not sys.stderr.isatty() else None
    bar = tqdm(BatchLoader(loader), desc="evaluate", unit="image", disable=quiet, leave=False)
    for images, targets in bar:
        outputs = detector([image.to(accelerator.device) for image in images])
        for image, target, output in zip(images, targets, outputs, strict=True):
            output = rescale(output, (image.shape[-2], image.shape[-1]), target["size"])
            boxes, scores, labels = output["boxes"].float(), output["scores"].float(), output["labels"]
            found.append(ImageResults.hold(target["image_id"], boxes, scores, labels, num_classes, output.get("masks")))
        if progress is not None:
            progress.step(len(images))
    detector.train(was_training)
    return found


def evaluate(
    cfg: CfgNode,
    detector: nn.Module,
    name: str,
    dataset: CocoDataset,
    accelerator: Accelerator,
    folder: Path,
    *,
    pictures: bool,
) -> CocoMetrics | None:
    """Detect, gather and score, boxes and masks if there are any; only the main process scores, the others return None.

    So does the main process for a test set without annotations, whose results are written all the same.

    Args:
        cfg: reads INPUT.FORMAT, MODEL.MASK_ON and DATALOADER.
        detector: not wrapped for distribution.
        name: of the data set, for the record.
        dataset: with the transforms whose images the detector takes, every image of the set.
        accelerator: says which share is this process's.
        folder: gets ``coco_instances_results.json``, ``metrics.json``, ``facts.json`` and ``pictures/``.
        pictures: whether to draw ground truth beside predictions.
    """
    loader = build_test_loader(cfg, dataset, rank=accelerator.process_index, world_size=accelerator.num_processes)
    with CostMeter(detector, accelerator.device) as meter:
        found = predict(detector, loader, accelerator, len(dataset.category_ids))
    gathered = gather_object(found)
    metrics = None
    if accelerator.is_main_process:
        metrics = score_images(
            gathered,
            dataset.category_ids,
            dataset.ground_truth,
            folder / "coco_instances_results.json",
            iou_types(cfg),
            voc_rule=get_dataset(name, cfg.DATASETS.OWN).voc_rule,
        )
        if metrics is None:
            (folder / "metrics.json").unlink(missing_ok=True)  # figures of an earlier evaluation
        else:
            write_text(folder / "metrics.json", json.dumps(metrics.to_dict(), indent=2) + "\n")
            logger.info("wrote %s", folder / "metrics.json")
        write_facts(
            folder,
            meter,
            engine="torchvision",
            device=accelerator.device,
            processes=accelerator.num_processes,
            dataset=name,
            annotations=dataset.json_path,
            image_folder=dataset.image_folder,
            num_images=len(dataset),
            class_names=dataset.class_names,
        )
        if pictures:
            _draw(dataset, found, folder / "pictures")
    accelerator.wait_for_everyone()
    return metrics


def _draw(dataset: CocoDataset, found: Sequence[ImageResults], folder: Path) -> None:
    """Draw evenly spaced images of this process's share, ground truth beside detections."""
    found_in = {image.image_id: image for image in found}
    indices = [index for index, image_id in enumerate(dataset.image_ids.tolist()) if image_id in found_in]
    originals = dataset.with_other(masks=any(image.masks is not None for image in found))
    samples = []
    for index in evenly_spaced(indices):
        image, target = originals[index]
        detections = found_in[target["image_id"]]
        samples.append(
            PictureSample(
                name=dataset.image_path(index).name,
                image=image,
                gt_boxes=target["boxes"],
                gt_labels=target["labels"],
                boxes=detections.boxes,
                labels=detections.labels,
                scores=detections.scores,
                gt_masks=target["masks"].bool() if "masks" in target else None,
                masks=None if detections.masks is None else decode_masks(detections.masks, *target["size"]),
            )
        )
    for path in save_comparison_pictures(folder, samples, dataset.class_names):
        logger.info("wrote %s", path)


class Predictor:
    """See :class:`~resnet_backbone.metrics.results.Predictor`. ``load_trained`` reads the weights once, here.

    With the improvements that TEST asks for, as the evaluation at the end of a training has them.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, detector, self.class_names = load_trained(cfg)
        cfg = self.cfg
        improved = build_improved(cfg, detector, self.class_names)
        self.detector: nn.Module = (improved or detector).to(cfg.MODEL.DEVICE).eval()
        self._transforms = None if improved else test_transforms(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Detections:
        check_image(image)
        resized = self._transforms(tv_tensors.Image(image)) if self._transforms else image
        resized = reorder_channels(resized, self.cfg.INPUT.FORMAT)
        output = self.detector([resized.to(self.cfg.MODEL.DEVICE)])[0]
        found = rescale(output, (resized.shape[-2], resized.shape[-1]), (image.shape[-2], image.shape[-1]))
        found = {name: value.cpu() for name, value in found.items()}
        return Detections(found["boxes"].float(), found["scores"].float(), found["labels"], found.get("masks"))
