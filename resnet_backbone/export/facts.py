"""What an exported file says of itself: how to feed it, and what comes out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

FACTS_KEY = "resnet_backbone"  # of the entry in metadata_props of ONNX; in a .pt2, the file FACTS_KEY.json


@dataclass(frozen=True)
class Facts:
    """Plain values, kept as JSON.

    Attributes:
        task: ``features``, ``classification``, ``detection`` or ``segmentation``.
        architecture: of the trunk, as in ``resnet50``; of a detector after its meta-architecture.
        source: name of the file that the weights are from.
        input: name, shape and type of the only input.
        channel_order: ``RGB`` or ``BGR``.
        value_range: of the pixels, before ``mean`` and ``std`` where these are applied outside.
        mean: for each channel, in ``channel_order``, on the scale of ``value_range``.
        std: likewise; ``(pixel - mean) / std``.
        normalises: whether the file does that itself; if not, it is done before.
        resize: what is done to an image before; empty where nothing is known.
        smallest_side: pixels, the least height and width for which the file is promised to work.
        outputs: names, in their order, to shapes and meaning.
        class_names: in the order of the labels or logits; empty where nobody said.
        score_threshold: of a detector, in the tensor ``score_threshold`` of the file.
        package_version: of resnet_backbone.
        torch_version: of torch.
    """

    task: str
    architecture: str
    source: str
    input: str
    channel_order: str
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalises: bool
    resize: str
    smallest_side: int
    outputs: dict[str, str]
    class_names: tuple[str, ...]
    package_version: str
    torch_version: str
    score_threshold: float | None = field(default=None)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)
