"""Box refinement, multi-scale testing and the ensemble, slow and plain: one box after another, from the papers' text.

It shares no code with ``engine/improvements.py``; of a detector it uses the four parts that ``TwoStageDetector``
names, with one box at a time.
"""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def suppress(predictions: list[tuple[int, float, list[float]]], threshold: float) -> list:
    """Greedy suppression of overlaps within each class: (label, score, box), best first."""
    kept: list[tuple[int, float, list[float]]] = []
    for label, score, box in sorted(predictions, key=lambda p: -p[1]):
        if all(other != label or overlap(box, rival) <= threshold for other, _, rival in kept):
            kept.append((label, score, box))
    return kept


def voted(kept: tuple[int, float, list[float]], predictions: list, threshold: float) -> list[float]:
    """Gidaris & Komodakis: the score-weighted mean of the boxes of the class that overlap the kept one."""
    total, weighted = 0.0, [0.0] * 4
    for label, score, box in predictions:
        if label == kept[0] and (box is kept[2] or overlap(box, kept[2]) >= threshold):
            total += score
            weighted = [sum_ + score * value for sum_, value in zip(weighted, box, strict=True)]
    return [value / total for value in weighted]


def resized(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    if short_edge == 0:
        return height, width
    scale = short_edge / min(height, width)
    scale = min(scale, max_size / max(height, width))
    return round(height * scale), round(width * scale)


def two_sizes(box: list[float], frame: tuple[int, int], sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """SPPnet: where the box has the number of pixels nearest to 224 x 224; NoC: and an adjacent one, the nearer."""

    def distance(size: tuple[int, int]) -> float:
        width, height = box[2] - box[0], box[3] - box[1]
        return abs(width * height * size[0] / frame[0] * size[1] / frame[1] - 224 * 224)

    best = min(range(len(sizes)), key=lambda i: distance(sizes[i]))
    neighbours = [i for i in (best - 1, best + 1) if 0 <= i < len(sizes)]
    return [sizes[best], *(sizes[i] for i in sorted(neighbours, key=lambda i: distance(sizes[i]))[:1])]


def carried(box: list[float], from_size: tuple[int, int], to_size: tuple[int, int]) -> list[float]:
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return [box[0] * x, box[1] * y, box[2] * x, box[3] * y]


def clipped(box: list[float], size: tuple[int, int]) -> list[float]:
    limits = [size[1], size[0], size[1], size[0]]
    return [min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits, strict=True)]


def detect(
    detectors: list,
    image: torch.Tensor,
    *,
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
    vote_thresh: float | None = None,
    sizes: list[int] | None = None,
    max_size: int = 0,
) -> list[tuple[int, float, list[float]]]:
    """Return (label from 0, score, box in pixels of the original), best first.

    ``vote_thresh`` turns box refinement on, ``sizes`` multi-scale testing, several ``detectors`` the ensemble.
    """
    original = tuple(image.shape[1:])
    frame = resized(*original, *detectors[0].test_size)
    scales: dict = {}

    def scale_of(detector, size: tuple[int, int]):
        if (id(detector), size) not in scales:
            scales[id(detector), size] = detector.scale(image, *size)
        return scales[id(detector), size]

    def predict(box: list[float]) -> tuple[list[float], list[list[float]]]:
        """Of one box: the probability and the clipped box of each class, the mean over the detectors."""
        every = []
        for detector in detectors:
            own = [resized(*original, *detector.test_size)]
            if sizes is not None:
                own = []
                for edge in sizes:
                    if resized(*original, edge, max_size) not in own:
                        own.append(resized(*original, edge, max_size))
                own = two_sizes(box, frame, own)
            vectors = [
                detector.region_vectors(scale_of(detector, size), torch.tensor([carried(box, frame, size)]))[0]
                for size in own
            ]
            merged = [max(values) for values in zip(*(vector.tolist() for vector in vectors), strict=True)]
            probabilities, boxes = detector.predict(torch.tensor([merged]), torch.tensor([box]))
            every.append((probabilities[0].tolist(), boxes[0].tolist()))
        n, classes = len(every), range(len(every[0][0]))
        mean_p = [sum(p[k] for p, _ in every) / n for k in classes]
        mean_b = [[sum(b[k][i] for _, b in every) / n for i in range(4)] for k in classes]
        return mean_p, [clipped(b, frame) for b in mean_b]

    proposals = []
    for detector in detectors:
        size = resized(*original, *detector.test_size)
        proposals += [carried(box, size, frame) for box in detector.propose(scale_of(detector, size)).tolist()]
    predictions = [predict(box) for box in proposals]
    if vote_thresh is not None:
        predictions += [predict(boxes[p.index(max(p))]) for p, boxes in predictions]
    candidates = [
        (k, p[k], boxes[k])
        for p, boxes in predictions
        for k in range(len(p))
        if p[k] > score_thresh and boxes[k][2] - boxes[k][0] > 0.01 and boxes[k][3] - boxes[k][1] > 0.01
    ]
    kept = suppress(candidates, nms_thresh)[:max_detections]
    if vote_thresh is not None:
        kept = [(k, score, voted((k, score, box), candidates, vote_thresh)) for k, score, box in kept]
    return [(k, score, clipped(carried(box, frame, original), original)) for k, score, box in kept]


def detect_by(cfg: CfgNode, detectors: list, image: torch.Tensor) -> list[tuple[int, float, list[float]]]:
    """Do it as a config of either engine says."""
    refinement, multi_scale = cfg.TEST.BOX_REFINEMENT, cfg.TEST.MULTI_SCALE
    return detect(
        detectors,
        image,
        score_thresh=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        nms_thresh=refinement.NMS_THRESH if refinement.ENABLED else cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        vote_thresh=refinement.VOTE_THRESH if refinement.ENABLED else None,
        sizes=multi_scale.SIZES if multi_scale.ENABLED else None,
        max_size=multi_scale.MAX_SIZE,
    )
