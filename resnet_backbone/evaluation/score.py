"""What both engines do with the results file of a data set: score it, or prepare it for those who can."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnet_backbone.evaluation.coco import IouType, evaluate_coco_types
from resnet_backbone.evaluation.metrics import CocoMetrics
from resnet_backbone.evaluation.voc import SUBMISSION_FOLDER, evaluate_voc, has_annotations, write_voc_submission
from resnet_backbone.files.json_file import read_json

logger = logging.getLogger(__name__)


def score_results(
    ground_truth: Path, results: Path, iou_types: Sequence[IouType], *, voc_eleven_points: bool | None
) -> CocoMetrics | None:
    """Score a results file and log the table.

    Args:
        ground_truth: COCO-format JSON. Without annotations, as in a challenge's test set, there is nothing to score.
        results: COCO results JSON. A VOC test set without annotations gets its submission beside it.
        iou_types: "bbox", and "segm" where the detector has masks.
        voc_eleven_points: see ``evaluate_voc``; None for a data set that is not VOC's.

    Returns:
        COCO's figures, and VOC's of a VOC data set; None without annotations.
    """
    truth = read_json(ground_truth)
    if not has_annotations(truth):
        logger.info("%s has no annotations, so there are no figures; wrote %s", ground_truth, results)
        if voc_eleven_points is not None:
            write_voc_submission(truth, results, results.parent)
            logger.info(
                "for VOC's evaluation server: %s; pack it with tar -czf results.tgz -C %s results",
                results.parent / SUBMISSION_FOLDER,
                results.parent,
            )
        return None
    first, *others = evaluate_coco_types(truth, results, iou_types)
    voc = None
    if voc_eleven_points is not None:
        voc = evaluate_voc(truth, results, eleven_points=voc_eleven_points)
    metrics = replace(first, masks=others[0] if others else None, voc=voc)
    logger.info("AP in percent on %s\n%s", ground_truth, metrics.table())
    logger.info("wrote %s", results)
    return metrics
