#!/usr/bin/env python
"""Check the project on one GPU in minutes: the same numbers as on the CPU, and every detection config trains.

Example: python benchmarks/gpu_check.py --output gpu_check.json

Needs the package and what it installs, no data and no network. Three parts:

* parity: the features of every network, float32 on the CPU against float32 (TF32 off) on the device;
* detectors: the first losses of every config against the CPU's, where every sample is drawn so that chance has no part;
* training: steps of every config's detector in float32 (TF32 in convolutions, torch's default) and bfloat16, images a
  second and peak memory; the step alone, without the data, the logging and the writing of a real run.

Exit status 1 where a part fails. Images and weights are random: the figures say nothing of accuracy.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from fvcore.common.config import CfgNode
from tabulate import tabulate

from resnet_backbone import __version__, create_model, list_models
from resnet_backbone.config import config_folder
from resnet_backbone.engine.solver import build_optimizer
from resnet_backbone.torchvision_plugin.checkpoint import load_detector
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import build_detector

PARITY_TOLERANCE = 1e-3  # relative to the largest value of a feature map
LOSS_TOLERANCE = 1e-2  # relative; matching boxes is a threshold, so single samples may change sides
BASES = {"Base-RCNN-FPN.yaml", "Base-RetinaNet.yaml", "Base-Paper.yaml", "Base-VOC.yaml"}
BASES |= {"Base-Compare-FPN.yaml", "Base-Compare-BCCD.yaml", "Base-Small.yaml", "Base-Small-GPU.yaml"}
DETECTRON2_ALONE = ("cascade/", "panoptic/", "semantic/")  # folders of configs
SCRATCH = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "2"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--height", type=int, default=800, help="of the images of a training step, pixels")
    parser.add_argument("--width", type=int, default=1088)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after two that are not")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these networks and configs alone")
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no GPU that torch can use; --device cpu checks the script alone", file=sys.stderr)
        return 1

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    networks, configs = list(filter(wanted, network_names())), list(filter(wanted, config_names()))
    size = (args.batch_size, args.height, args.width)
    result: dict[str, Any] = {"environment": environment(device), "seconds": {}}
    for part, rows in (
        ("parity", lambda: [check(network_parity, name, device) for name in networks]),
        ("detectors", lambda: [check(detector_parity, name, device) for name in configs]),
        (
            "training",
            lambda: [
                check(train_steps, name, device, precision, size, args.steps)
                for name in configs
                for precision in ("float32", "bfloat16")
            ],
        ),
    ):
        start = time.perf_counter()
        # Training is timed with torch's own settings, which are the trainer's: TF32 in convolutions.
        torch.backends.cudnn.allow_tf32 = part == "training"
        result[part] = rows()
        result["seconds"][part] = round(time.perf_counter() - start, 1)
        print(f"\n{part}\n{table(result[part])}", flush=True)
    result["passed"] = all(row["ok"] for part in ("parity", "detectors", "training") for row in result[part])
    text = json.dumps(result)
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0 if result["passed"] else 1


def network_names() -> list[str]:
    """Return every network but that of 1202 layers, whose untrained features overflow."""
    return [name for name in list_models() if name != "cifar_resnet1202"]


def config_names() -> list[str]:
    """Return every config of a detector of this engine; the bases of two kinds that no other config is made of, too."""
    folder = config_folder()
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml") if path.name not in BASES]
    return sorted(name for name in names if not name.startswith((*DETECTRON2_ALONE, "classification/")))


def environment(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "resnet_backbone": __version__,
    }


def check(measure: Callable[..., dict[str, Any]], name: str, *arguments: Any) -> dict[str, Any]:
    """Return the row of ``measure``; one that cannot run is a row, too, so that the others are still seen."""
    try:
        return {"name": name, **measure(name, *arguments)}
    except (RuntimeError, ValueError) as error:
        return {"name": name, "ok": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    finally:
        torch.cuda.empty_cache()


@torch.inference_mode()
def network_parity(arch: str, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    model = create_model(arch, num_classes=0).eval()
    images = torch.randn(2, 3, 129, 161)
    expected = model(images)
    found = model.to(device)(images.to(device))
    errors = [float((found[k].cpu() - x).abs().max() / x.abs().max()) for k, x in expected.items()]
    return {"relative_error": max(errors), "ok": max(errors) < PARITY_TOLERANCE}


def load(name: str, device: torch.device, *overrides: str) -> CfgNode:
    return load_config(name, [*SCRATCH, "MODEL.DEVICE", device.type, *overrides])


def build(cfg: CfgNode, device: torch.device) -> torch.nn.Module:
    """Build a detector on the CPU and move it; frozen norms get the statistics of random images.

    New frozen norms normalise nothing, so random weights would let values grow from block to block.
    """
    torch.manual_seed(0)
    detector = build_detector(cfg)
    if cfg.MODEL.RESNET_BACKBONE.NORM == "FrozenBN":
        free = cfg.clone()
        free.MODEL.RESNET_BACKBONE.NORM, free.MODEL.BACKBONE.FREEZE_AT = "BN", 0
        torch.manual_seed(0)
        twin = build_detector(free).train()
        for module in twin.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches, and so the statistics of the one
        with torch.no_grad():
            twin(*batch(cfg, (2, 128, 160), torch.device("cpu")))
        load_detector(detector, twin.state_dict(), "the statistics", new_classes=False)
    return detector.to(device).train()


def batch(cfg: CfgNode, size: tuple[int, int, int], device: torch.device) -> tuple[list[torch.Tensor], list[dict]]:
    """Return random images and eight random boxes in each; masks, where the detector has them, fill the boxes."""
    number, height, width = size
    node = cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.ROI_HEADS
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(number):
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        corner = torch.rand(8, 2, generator=generator) * 0.6
        span = 0.05 + 0.35 * torch.rand(8, 2, generator=generator)
        boxes = torch.cat([corner, corner + span], dim=1) * torch.tensor([width, height, width, height])
        labels = torch.randint(node.NUM_CLASSES, (8,), generator=generator)
        images.append(image.to(device))
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device)})
        if cfg.MODEL.MASK_ON:
            masks = torch.zeros(8, height, width, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            targets[-1]["masks"] = masks.to(device)
    return images, targets


def detector_parity(name: str, device: torch.device) -> dict[str, Any]:
    # With room for all anchors, and ground truth as the only proposals, nothing is drawn at random.
    everything = ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"]
    everything += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "0", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"]
    everything += ["MODEL.ROI_BOX_HEAD.DROPOUT", "0.0"]
    losses = []
    for where in (torch.device("cpu"), device):
        cfg = load(name, where, *everything)
        detector = build(cfg, where)
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append({k: float(v) for k, v in detector(*batch(cfg, (1, 192, 256), where)).items()})
    errors = {key: abs(losses[0][key] - losses[1][key]) / max(abs(losses[0][key]), 1e-3) for key in losses[0]}
    worst = max(errors, key=lambda key: errors[key])
    return {"loss": worst, "relative_error": errors[worst], "ok": errors[worst] < LOSS_TOLERANCE}


def train_steps(
    name: str, device: torch.device, precision: str, size: tuple[int, int, int], steps: int
) -> dict[str, Any]:
    cfg = load(name, device, "SOLVER.BASE_LR", "1e-5")
    detector = build(cfg, device)
    optimizer = build_optimizer(cfg, detector)
    data = batch(cfg, size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        loss = step(detector, optimizer, data, device, precision)
        times.append(time.perf_counter() - start)
    seconds = median(times[2:])
    return {
        "precision": precision,
        "images_per_second": round(size[0] / seconds, 2),
        "seconds_per_step": round(seconds, 4),
        "spread": round((max(times[2:]) - min(times[2:])) / seconds, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None,
        "loss": round(loss, 4),
        "ok": loss == loss and abs(loss) != float("inf"),
    }


def step(
    detector: torch.nn.Module, optimizer: torch.optim.Optimizer, data: Any, device: torch.device, precision: str
) -> float:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        losses = detector(*data)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    return total.item()  # waits for the device


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g")


if __name__ == "__main__":
    sys.exit(main())
