#!/usr/bin/env python
"""One training step of a whole Faster R-CNN with ResNet-50 and pyramid: ours beside torchvision's own.

Example: python -m benchmarks.detector_step

Two random images with eight random boxes each; the shorter side is 800 pixels already. The settings are torchvision's:
2,000 proposals before and after the suppression, 512 regions an image, RoIAlign with 2 x 2 samples, frozen norms, stem
and res2 frozen, SGD with momentum. Weights are random: frozen norms get the statistics of random images, so that values
stay in range. Ours keeps freed memory, as tools/train_net.py does; torchvision's once more with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Contender, measure, save, table
from benchmarks.peers import peer
from benchmarks.pyramids import classifier_state
from benchmarks.training_step import sgd
from resnet_backbone.config.acceleration import keep_freed_memory
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.weights import load_weights

AS_TORCHVISION = [
    *("MODEL.WEIGHTS", "", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "2000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "2000"),
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", "2", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
]
TORCHVISION = "torchvision"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=3, type=int, default=(2, 800, 1066), metavar=("N", "HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    found = measure(
        contenders(tuple(args.size), args.device),
        rounds=args.rounds,
        warmup=1,
        threads=args.threads,
        device=args.device,
    )
    further = {f"first losses of {m.name}": m.outcome for m in found if not m.problem}
    number, height, width = args.size
    title = f"training step of Faster R-CNN, ResNet-50 with pyramid, {number} x {height} x {width}"
    print(f"\n{title}\n{table(found, TORCHVISION)}\n{further}")
    question = "How long does a training step of a whole detector take, and in how much memory?"
    save(args.output, question, {title: (TORCHVISION, found, further)}, threads=args.threads, device=args.device)
    return 0


def contenders(size: tuple[int, int, int], device: str) -> list[Contender]:
    """Return ours and torchvision's, in float32 and bfloat16."""
    theirs = partial(peer, "torchvision_detector", "build_detector", size[1])
    run = partial(step_of, size=size, device=device)
    return [
        Contender("ours", partial(run, partial(build_ours, device), ours=True)),
        Contender("ours, bfloat16", partial(run, partial(build_ours, device), ours=True, autocast=True)),
        Contender(TORCHVISION, partial(run, theirs)),
        Contender(f"{TORCHVISION}, keeping freed memory", partial(run, theirs, keep=True)),
        Contender(f"{TORCHVISION}, autocast", partial(run, theirs, autocast=True)),
    ]


def build_ours(device: str) -> nn.Module:
    """Build the detector of configs/faster/r50_fpn.yaml with torchvision's settings."""
    return build_detector(load_config("faster/r50_fpn.yaml", [*AS_TORCHVISION, "MODEL.DEVICE", device]))


def step_of(
    build: Callable[[], nn.Module],
    size: tuple[int, int, int],
    *,
    ours: bool = False,
    keep: bool = False,
    autocast: bool = False,
    device: str = "cpu",
) -> Callable[[], dict[str, float]]:
    """Return a call that does one step and returns the losses.

    Args:
        build: the detector.
        size: of the images: how many, height, width.
        ours: images from 0 to 255, keeping freed memory.
        keep: keep freed memory.
        autocast: forward in bfloat16 by autocast.
        device: where.
    """
    if ours or keep:
        keep_freed_memory()
    torch.manual_seed(0)
    detector = build()
    fill(detector)
    detector.to(device).train()
    optimizer = sgd([p for p in detector.parameters() if p.requires_grad])
    images, targets = batch(size, ours, device)

    def call() -> dict[str, float]:
        torch.manual_seed(0)  # samples of anchors and regions
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    return call


def fill(detector: nn.Module) -> None:
    """Give both engines' detectors the same trunk."""
    backbone, state = detector.get_submodule("backbone"), classifier_state("resnet50")
    if hasattr(backbone, "bottom_up"):
        load_weights(backbone.get_submodule("bottom_up"), state)
    else:
        body = backbone.get_submodule("body")
        body.load_state_dict({name: tensor for name, tensor in state.items() if name in body.state_dict()})


def batch(size: tuple[int, int, int], ours: bool, device: str) -> tuple[list[torch.Tensor], list[dict]]:
    """Return random images and their boxes: ours takes pixels up to 255 and labels from 0, the other 1 and 1."""
    number, height, width = size
    generator = torch.Generator().manual_seed(3)
    images = [
        torch.rand(3, height, width, generator=generator).to(device) * (255 if ours else 1) for _ in range(number)
    ]
    targets = []
    for _ in range(number):
        corner = torch.rand(8, 2, generator=generator) * 0.6
        span = 0.05 + 0.35 * torch.rand(8, 2, generator=generator)
        boxes = torch.cat([corner, corner + span], dim=1) * torch.tensor([width, height, width, height])
        labels = torch.randint(1, 81, (8,), generator=generator)
        targets.append({"boxes": boxes.to(device), "labels": (labels - ours).to(device)})
    return images, targets


if __name__ == "__main__":
    raise SystemExit(main())
