"""The improvements at test time that a config switches on, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode


@dataclass(frozen=True)
class BoxRefinement:
    """A second pass over the regressed boxes, then box voting.

    Attributes:
        nms_thresh: of two boxes of a class that overlap more (IoU), the one with the lower score goes.
        vote_thresh: boxes of its class that overlap a kept box at least so much (IoU) share in its place.
    """

    nms_thresh: float
    vote_thresh: float


@dataclass(frozen=True)
class MultiScale:
    """Regions from several sizes of the image.

    Attributes:
        sizes: lengths of the image's shorter side in pixels, ascending.
        max_size: limit of its longer side.
    """

    sizes: tuple[int, ...]
    max_size: int


@dataclass(frozen=True)
class Settings:
    """How vectors and predictions become detections.

    Attributes:
        score_thresh: detections have scores above it, from 0 to 1.
        nms_thresh: IoU, where there is no refinement, which has a threshold of its own.
        max_detections: of an image.
        min_side: predictions whose width or height (at the test size, pixels) is less are dropped.
        first_label: the number of the first foreground class where overlaps are suppressed.
        refinement: None for none.
        multi_scale: None for the test size alone.
    """

    score_thresh: float
    nms_thresh: float
    max_detections: int
    min_side: float = 0.0
    first_label: int = 0
    refinement: BoxRefinement | None = None
    multi_scale: MultiScale | None = None


def settings_of(cfg: CfgNode, *, min_side: float = 0.0, first_label: int = 0) -> Settings:
    """Read MODEL.ROI_HEADS and TEST of a checked config.

    Args:
        cfg: with the keys of ``add_run_keys``.
        min_side, first_label: as the engine's own detector has them, so that its detections come out to the bit.
    """
    heads, refinement, multi_scale = cfg.MODEL.ROI_HEADS, cfg.TEST.BOX_REFINEMENT, cfg.TEST.MULTI_SCALE
    return Settings(
        score_thresh=heads.SCORE_THRESH_TEST,
        nms_thresh=heads.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        min_side=min_side,
        first_label=first_label,
        refinement=BoxRefinement(refinement.NMS_THRESH, refinement.VOTE_THRESH) if refinement.ENABLED else None,
        multi_scale=MultiScale(tuple(multi_scale.SIZES), multi_scale.MAX_SIZE) if multi_scale.ENABLED else None,
    )


def is_improved(cfg: CfgNode) -> bool:
    """Return whether a config asks for anything that the engine's own detector does not do."""
    return bool(cfg.TEST.BOX_REFINEMENT.ENABLED or cfg.TEST.MULTI_SCALE.ENABLED or cfg.TEST.ENSEMBLE)
