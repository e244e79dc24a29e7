"""Activation checkpointing: a stage keeps its input alone, and computes the rest again for the gradients.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174); torch.utils.checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_checkpointed(function: Callable[[Tensor], Tensor], x: Tensor, modules: Sequence[nn.Module]) -> Tensor:
    """Return ``function(x)``, whose activations are computed anew in the backward pass.

    Args:
        function: runs ``modules``.
        x: its input.
        modules: whose batch norms must not count the second pass in their statistics.
    """
    norms = [m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)]
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(norms)))


@contextmanager
def _statistics_kept(norms: Sequence[Any]) -> Iterator[None]:
    """Batch norms normalise by the batch, as in training, and leave their running statistics as they are."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
