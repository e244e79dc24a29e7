"""Top-1 and top-5 error of a classifier with their confidence intervals, and its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

LEVEL = 0.95  # of the intervals
TOP = 5


@dataclass(frozen=True)
class ClassificationMetrics:
    """The figures of one classifier on one test set."""

    num_images: int  # how many were scored
    top1_error: float  # images whose class is not the likeliest one, in percent
    # images whose class is not among the five likeliest, in percent; None where there are five classes or fewer
    top5_error: float | None
    loss: float  # mean negative log-likelihood of the true class, natural logarithm

    @property
    def top1_interval(self) -> tuple[float, float]:
        """Bounds of the 95 % interval of the top-1 error, in percent; see :func:`wilson_interval`."""
        return wilson_interval(self.top1_error, self.num_images)

    @property
    def top5_interval(self) -> tuple[float, float] | None:
        """Likewise of the top-5 error; None where that is None."""
        return None if self.top5_error is None else wilson_interval(self.top5_error, self.num_images)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return ``{"classification": {"top1_error": ..., "top1_error_low": ..., ...}}``, for ``metrics.json``."""
        low, high = self.top1_interval
        figures: dict[str, float] = {
            "num_images": self.num_images,
            "top1_error": self.top1_error,
            "top1_error_low": low,
            "top1_error_high": high,
            "loss": self.loss,
        }
        if self.top5_error is not None:
            low, high = wilson_interval(self.top5_error, self.num_images)
            figures |= {"top5_error": self.top5_error, "top5_error_low": low, "top5_error_high": high}
        return {"classification": figures}

    def scalars(self) -> dict[str, float]:
        """Return ``{"classification/top1_error": ..., ...}``, for the log of a training."""
        figures = {"top1_error": self.top1_error, "top5_error": self.top5_error, "loss": self.loss}
        return {f"classification/{name}": value for name, value in figures.items() if value is not None}

    def text(self) -> str:
        """Return one line for a terminal."""
        parts = [f"top-1 error {error_text(self.top1_error, self.top1_interval)}"]
        if self.top5_error is not None and self.top5_interval is not None:
            parts.append(f"top-5 error {error_text(self.top5_error, self.top5_interval)}")
        return ", ".join([*parts, f"loss {self.loss:.4f}", f"{self.num_images} images"])


def error_text(error: float, interval: tuple[float, float]) -> str:
    """Return ``24.12 % (23.75 to 24.50)``."""
    return f"{error:.2f} % ({interval[0]:.2f} to {interval[1]:.2f})"


def score_classes(probabilities: Tensor, labels: Tensor) -> ClassificationMetrics:
    """Compare what a classifier says with what is true.

    A class is among the k likeliest where fewer than k others are as likely or likelier: a tie counts against the
    classifier, so one that finds everything equally likely is always wrong. A probability below the smallest that
    float32 holds at full precision (1.2e-38) counts as that one in the loss, which so stays finite.

    Args:
        probabilities: float, (N, K), from 0 to 1, each row of sum 1.
        labels: integer, (N,), from 0 to K - 1.

    Raises:
        ValueError: no images, or probabilities that are not finite.
    """
    if not len(labels):
        raise ValueError("there are no images to score: give one or more")
    not_finite = (~probabilities.isfinite()).any(1).nonzero()
    if len(not_finite):
        raise ValueError(
            f"the probabilities of {len(not_finite)} images are not finite, of image {int(not_finite[0])} first: the "
            f"network's outputs overflow or its weights are damaged; with float16 try bfloat16 or float32"
        )
    probabilities, labels = probabilities.cpu().double(), labels.long().cpu()
    num_images, num_classes = probabilities.shape
    true = probabilities.gather(1, labels[:, None])
    ahead = (probabilities >= true).sum(1) - 1  # classes as likely as the true one, which is itself among them
    loss = -true.clamp_min(torch.finfo(torch.float32).tiny).log().mean()

    def error(k: int) -> float:
        return 100 * int((ahead >= k).sum()) / num_images

    return ClassificationMetrics(
        num_images=num_images,
        top1_error=error(1),
        top5_error=error(TOP) if num_classes > TOP else None,
        loss=abs(loss.item()),  # a classifier that is certain and right has -0.0
    )


def wilson_interval(percent: float, count: int) -> tuple[float, float]:
    """Return the bounds, in percent, between which a rate measured on ``count`` images lies with 95 % confidence.

    It is what the choice of test images leaves open; that another training would end elsewhere is not in it.

    Args:
        percent: the rate as measured, from 0 to 100.
        count: 1 or more.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    rate = percent / 100
    middle = rate + z**2 / (2 * count)
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + z**2 / count) for sign in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)
