"""What a built detector, its data and its training are like, as facts that two of them can be compared by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import acceleration
from resnet_backbone.models.acceleration import Accelerated

Facts = dict[str, Any]
SIZES = ((64, 64), (56, 72))  # height and width of the images that detectors see
BOXES = torch.tensor([[5.0, 6.0, 30.0, 34.0], [20.0, 10.0, 50.0, 50.0]])
_LAST_LAYERS = ("cls_logits", "bbox_pred", "cls_score", "bbox_reg", "objectness_logits", "anchor_deltas")


def digest(*tensors: Tensor) -> str:
    """A checksum of shapes and bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]


def masks(height: int, width: int) -> Tensor:
    """Of BOXES, uint8 (2, height, width): each without its upper left quarter."""
    found = torch.zeros(len(BOXES), height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(found, BOXES.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
        mask[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 2] = 0
    return found


def observe_network(
    build: Callable[[], nn.Module],
    losses: Callable[[nn.Module], dict[str, Tensor]],
    detect: Callable[[nn.Module], Sequence[Tensor]],
) -> Facts:
    """Tensors as they are initialised; then, with predictions far apart, losses, a backward pass, and detections."""
    torch.manual_seed(0)
    model = build()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    facts: Facts = {
        "tensors": [
            (name, tuple(t.shape), t.stride() if t.dim() == 4 else (), t.requires_grad, digest(t.flatten()[:64]))
            for name, t in tensors
        ]
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0].endswith(_LAST_LAYERS) and name.endswith("weight"):
                parameter.mul_(20)
    backbone = next(module for module in model.modules() if isinstance(module, Accelerated))
    trunk: Any = getattr(backbone, "bottom_up", backbone)
    facts["features"] = list(trunk.feature_info)
    facts["calls"] = calls = []  # of the first and last layers of the trunk: images, and what is computed once more
    for module in [next(iter(trunk.children())), *(m for name, m in trunk.named_modules() if name == "res2.0")]:
        module.register_forward_pre_hook(lambda module, inputs: calls.append(tuple(inputs[0].shape)))
    generator = torch.Generator().manual_seed(3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2, generator=generator)
    facts["compiled"] = getattr(backbone, "_compiled_call_impl", None) is not None
    if facts["compiled"]:
        return facts
    model.train()
    torch.manual_seed(1)
    found = losses(model)
    facts["losses"] = {name: value.item() for name, value in found.items()}
    sum(found.values()).backward()
    model.eval()
    torch.manual_seed(2)
    with torch.no_grad():
        facts["detections"] = digest(*detect(model))
    return facts


class SmallNetwork(nn.Module):
    """A layer for a trunk, a norm and a layer in place of a detector, for what acts on every network alike."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.ModuleDict({"res2": nn.Linear(3, 4)})
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 1)

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        images = inputs[0]
        pixels = torch.stack([image["image"] if isinstance(image, dict) else image for image in images])
        return {
            "loss": 5
            * (self.last(self.norm(self.backbone["res2"](pixels.float()))) - pixels.sum(1, keepdim=True))
            .square()
            .mean()
        }


def small_batches(start: int, count: int) -> Iterator[list[Tensor]]:
    """Endless batches of ``count`` times three numbers; batch n is the same wherever it is started."""
    while True:
        generator = torch.Generator().manual_seed(start)
        yield list(torch.rand(count, 3, generator=generator))
        start += 1


def training_facts(output_dir: Path, model: nn.Module, evaluated: list[int]) -> Facts:
    """What a training has written and learned."""
    timed = ("time", "data_time", "eta_seconds", "peak_memory_mib", "rank_data_time")
    lines = (output_dir / "metrics.json").read_text().splitlines()
    records = [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]
    return {
        "records": records,
        "files": sorted(path.name for path in output_dir.glob("*.pth")),
        "weights": digest(*model.parameters()),
        "evaluated": evaluated,
    }


def observe_process(cfg: CfgNode, monkeypatch: Any) -> Facts:
    """What ``set_up_process`` makes of torch and of the C library."""
    kept: list[bool] = []
    monkeypatch.setattr(acceleration, "keep_freed_memory", lambda: kept.append(True))
    backends = torch.backends.cudnn
    before = backends.benchmark, backends.allow_tf32, torch.get_float32_matmul_precision()
    try:
        acceleration.set_up_process(cfg)
        return {"flags": (backends.benchmark, backends.allow_tf32, torch.get_float32_matmul_precision()), "kept": kept}
    finally:
        backends.benchmark, backends.allow_tf32 = before[:2]
        torch.set_float32_matmul_precision(before[2])


def message_of(call: Callable[[], Any]) -> str:
    """The error that ``call`` raises, "" for none."""
    try:
        call()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
