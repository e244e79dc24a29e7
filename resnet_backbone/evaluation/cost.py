"""What a detector costs while it is evaluated: parameters, multiply-adds, speed and memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_COUNTED = 4  # calls whose multiply-adds are counted; they warm the detector up and are not timed


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: of tensors on a GPU, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class CostMeter:
    """Measures ``model`` while others call it inside ``with CostMeter(model, device) as meter``; outputs stay the same.

    Args:
        model: called with a list of images first.
        device: where it runs.

    Attributes:
        parameters: how many numbers the model learns or keeps frozen; buffers not counted.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._model = model
        self._device = device
        self._counter = FlopCounterMode(display=False)
        self._calls = self._counted_images = self._flops = 0
        self._seconds_an_image: list[float] = []  # of each timed call
        self._start = 0.0
        self._counting = False

    def __enter__(self) -> CostMeter:
        self._handles = [
            self._model.register_forward_pre_hook(self._before),
            self._model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._stop_counting()

    @property
    def multiply_adds(self) -> float | None:
        """Of convolutions and matrix products, a mean image; None before the first call."""
        return self._flops / 2 / self._counted_images if self._counted_images else None

    @property
    def images_per_s(self) -> float | None:
        """Of the detector alone, in this process: one over the median of seconds an image of its calls.

        The median, as a mean would be spoilt by whatever else the machine does for a while. None where there were too
        few images to warm the detector up.
        """
        return 1 / statistics.median(self._seconds_an_image) if self._seconds_an_image else None

    def _before(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._stop_counting()
        if self._calls < _COUNTED:
            self._counter.__enter__()
            self._counting = True
        else:
            self._start = self._now()

    def _after(self, model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if self._calls < _COUNTED:
            self._stop_counting()
            self._flops += self._counter.get_total_flops()
            self._counted_images += len(inputs[0])
        else:
            self._seconds_an_image.append((self._now() - self._start) / len(inputs[0]))
        self._calls += 1

    def _stop_counting(self) -> None:
        """Take the counter off torch's stack of modes, where it still is after a call that an error has ended."""
        if self._counting:
            self._counter.__exit__(None, None, None)
            self._counting = False

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
