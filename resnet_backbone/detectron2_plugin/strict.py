"""Refusing a checkpoint that fills a part of the trunk only, whoever loads it.

Detectron2's own checkpointer logs what is missing and goes on. Modules of this class say no themselves, so that it
holds in any project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.architecture import stage_of
from resnet_backbone.weights.errors import shorten

_COUNTER = ".num_batches_tracked"


class StrictModule(nn.Module):
    """A module of which ``load_state_dict`` must fill every tensor, also with ``strict=False``.

    Attributes:
        arch: for messages.
        strict_weights: False lets everything pass, as Detectron2 does.
        strict_stages: names of those children that are a part of the ImageNet classifier.
    """

    arch: str
    strict_weights: bool
    strict_stages: Sequence[str]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Check before anything of this module is filled.

        Raises:
            WeightsError: tensors are missing, of another shape (the checkpointer has taken those out), or left over.
        """
        if self.strict_weights:
            self._refuse_partial(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _refuse_partial(self, state_dict: dict[str, Any], prefix: str) -> None:
        wanted = [name for name in self.state_dict() if self._is_strict(name)]
        missing = [name for name in wanted if prefix + name not in state_dict and not name.endswith(_COUNTER)]
        # A name without a prefix is one that Detectron2's matching found no place for.
        inside = [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
        known = set(wanted)
        leftover = [
            name
            for name in dict.fromkeys([*inside, *state_dict])
            if name not in known and self._is_strict(name) and not name.endswith(_COUNTER)
        ]
        if not missing and not leftover:
            return
        lines = [f"the checkpoint does not fit {self.arch} at {prefix.rstrip('.') or 'the model'}; it was not loaded."]
        for what, names in (
            ("tensors are missing, or of another shape", missing),
            ("tensors of the file fit nothing", leftover),
        ):
            if names:
                lines.append(f"  {len(names)} of {len(wanted)} {what}: {shorten(names)}")
        lines.append(
            "  Is it of another depth or norm (MODEL.RESNET_BACKBONE.ARCH, NORM)? ImageNet weights in the names of "
            "torchvision, timm or Caffe load as MODEL.WEIGHTS: imagenet://ARCH/NAME, or packaged by "
            "tools/package_weights.py. MODEL.RESNET_BACKBONE.STRICT_WEIGHTS: False loads what fits."
        )
        raise WeightsError("\n".join(lines))

    def _is_strict(self, name: str) -> bool:
        return stage_of(name) in self.strict_stages
