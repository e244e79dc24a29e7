#!/usr/bin/env python
"""A whole detector on images of one size, from pixels to boxes: ours beside torchvision's or Detectron2's own.

Example: python -m benchmarks.detector_inference --detector torchvision/fasterrcnn_resnet50_fpn --size 1 240 320

All have the weights of one detector, drawn at random so that scores and boxes vary, and the settings of its builder or
of Detectron2's zoo. Images have their final size already. Ours is finished for inference, as tools/demo.py has it; all
keep freed memory, several GB each of faster/r101_c4, which is left out by default. ONNX Runtime runs the file that
tools/export.py writes. The best twenty boxes are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from benchmarks.harness import Cases, Contender, Measurement, measure, save, table
from benchmarks.peers import peer
from resnet_backbone.config.acceleration import keep_freed_memory
from resnet_backbone.config.weights_input import required_input
from resnet_backbone.export.detector import describe_detector, load_unaccelerated
from resnet_backbone.export.write import OnnxFile, export
from resnet_backbone.models.acceleration import finish_for_inference
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.inference import rescale
from resnet_backbone.weights.detectors import from_torchvision, published_detectors, to_detectron2

ZOO = {
    "faster/r50_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask/r50_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet/r50_fpn": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "faster/r101_c4": "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml",
}
DETECTORS = [*(f"torchvision/{kind}_resnet50_fpn" for kind in ("fasterrcnn", "maskrcnn", "retinanet")), *ZOO]
SIZES = [(1, 800, 1088), (4, 240, 320), (1, 240, 320)]
COMPARED = 20
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores, labels of the first image, best first


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", nargs="+", choices=DETECTORS, default=DETECTORS[:-1], metavar="NAME")
    parser.add_argument("--size", nargs=3, type=int, action="append", metavar=("N", "HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    cases: Cases = {}
    for name in args.detector:
        for number, height, width in args.size or SIZES:
            theirs = "torchvision" if name.startswith("torchvision/") else "Detectron2"
            contestants = contenders(name, (number, height, width))
            found = measure(contestants, rounds=args.rounds, warmup=1, threads=args.threads)
            title = f"{name}, {number} x {height} x {width}"
            further = differences(found, theirs)
            cases[title] = (theirs, found, further)
            print(f"\n{title}\n{table(found, theirs)}\n{further}", flush=True)
    save(args.output, "How long does a whole detector take from pixels to boxes?", cases, threads=args.threads)
    return 0


def contenders(name: str, size: tuple[int, int, int]) -> list[Contender]:
    """Return ours and the peers that can be on equal weights with it."""
    run, ours = partial(detecting, size=size), partial(build_ours, name)
    found = [
        Contender("ours", partial(run, ours)),
        Contender("ours, bfloat16", partial(run, partial(ours, "MODEL.RESNET_BACKBONE.PRECISION", "bfloat16"))),
    ]
    if name.startswith("torchvision/"):
        theirs = partial(peer, "torchvision_inference", "build", name, size[1:])
        found += [
            Contender("torchvision", partial(run, theirs)),
            Contender("torchvision, autocast", partial(run, theirs, autocast=True)),
        ]
    else:
        theirs = partial(peer, "detectron2_inference", "build", name, ZOO[name])
        found += [
            Contender("Detectron2", partial(run, theirs)),
            Contender("Detectron2, autocast", partial(run, theirs, autocast=True)),
            Contender("ours in Detectron2", partial(run, partial(theirs, ours=True))),
            Contender("ours in Detectron2, bfloat16", partial(run, partial(theirs, ours=True, precision="bfloat16"))),
        ]
    if size[0] == 1:
        found.append(Contender("ours, ONNX Runtime", partial(run, partial(exported, name))))
    return found


Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]


def detecting(
    build: Callable[[], Detect], size: tuple[int, int, int], *, autocast: bool = False
) -> Callable[[], Found]:
    """Return a call that detects in N random images of ``size``, (N, height, width), from 0 to 255."""
    keep_freed_memory()
    detect = build()
    images = [(image * 255).round() for image in smooth(size)]

    def call() -> Found:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            first = detect(images)[0]
        boxes, scores, labels = (first[part].float().numpy() for part in ("boxes", "scores", "labels"))
        return boxes, scores, labels

    return call


def smooth(size: tuple[int, int, int], seed: int = 2) -> Tensor:
    """Return random images (N, 3, H, W) from 0 to 1, with larger shapes as photographs have them."""
    number, height, width = size
    coarse = torch.rand(number, 3, height // 32 + 1, width // 32 + 1, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def build_ours(name: str, *overrides: str) -> Detect:
    """Build ours on the weights of :func:`filled`, finished for inference."""
    detector = filled(name, *overrides)
    finish_for_inference(detector)

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return [rescale(found, size, size) for found, size in zip(detector(images), sizes, strict=True)]

    return detect


def exported(name: str) -> Detect:
    """Return the detector of :func:`filled` as ONNX Runtime runs it."""
    cfg = load_unaccelerated(f"{name}.yaml", scratch(name))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        export(describe_detector(cfg, filled(name, cfg=cfg), [str(k) for k in range(80)]), path, "onnx")
        file = OnnxFile(path)

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [dict(zip(("boxes", "labels", "scores"), file(images[0].byte()), strict=False))]

    return detect


def scratch(name: str, *overrides: str) -> list[str]:
    """Return the keys of a detector without weights, with the input of the published one."""
    entry = next(entry for entry in published_detectors() if entry.config == f"{name}.yaml")
    needed = required_input(entry.arch, entry.input_format, entry.stride_in_1x1)
    words = [str(word) for pair in needed.items() for word in pair]
    return ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *words, *overrides]


def filled(name: str, *overrides: str, cfg: CfgNode | None = None) -> Any:
    """Build ours, of a config or of ``cfg``, with random weights that find something: torchvision's, or its own."""
    torch.manual_seed(0)
    detector = build_detector(cfg or load_config(f"{name}.yaml", scratch(name, *overrides))).eval()
    if name.startswith("torchvision/"):
        tensors, _ = from_torchvision(peer("torchvision_inference", "tensors_of", name), None)
        own = detector.state_dict().keys()  # without the counters of norms that are frozen
        detector.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own})
    else:
        spread(detector, lambda: detector([smooth((1, 256, 320), seed=1)[0] * 255]))
    return detector


def tensors_for_detectron2(name: str) -> dict[str, Tensor]:
    """Return the weights of :func:`filled` in Detectron2's names."""
    return to_detectron2(filled(name).state_dict())


@torch.no_grad()
def spread(detector: nn.Module, detect: Callable[[], Any]) -> None:
    """Let a detector with random weights find something, in place.

    Norms get random statistics; each layer that gives scores or deltas is scaled to what comes into it when ``detect``
    runs, so that scores vary by about 1.5, and boxes little.
    """
    for name, tensor in detector.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.4, 0.8)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.05)
    ends = {"cls_score": 1.5, "cls_logits": 1.0, "mask_fcn_logits": 1.5, "bbox_pred": 0.05, "bbox_reg": 0.05}

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        if layer not in seen:
            seen.append(layer)
            factor = ends[kinds[layer]] / float(outputs.std())
            layer.get_parameter("weight").mul_(factor)
            layer.get_parameter("bias").zero_()
            one_stage = "classification_head.cls_logits" in names[layer] or names[layer] == "head.cls_score"
            layer.get_parameter("bias").sub_(3.0 * one_stage)
        return layer.forward(*inputs)

    seen: list[nn.Module] = []
    names = {layer: name for name, layer in detector.named_modules()}
    kinds = {layer: name.rpartition(".")[2] for layer, name in names.items() if name.rpartition(".")[2] in ends}
    hooks = [layer.register_forward_hook(scale) for layer in kinds]
    detect()
    for hook in hooks:
        hook.remove()


def differences(found: Sequence[Measurement], theirs: str) -> dict[str, Any]:
    """Return how far the best boxes are from those of ``theirs``, in pixels, the largest, and the numbers of boxes."""
    outcomes = {m.name: m.outcome for m in found if not m.problem and m.outcome is not None}
    further: dict[str, Any] = {"boxes": {name: len(outcome[0]) for name, outcome in outcomes.items()}}
    if theirs in outcomes:
        boxes, _, labels = (part[:COMPARED] for part in outcomes[theirs])
        farthest = {}
        for name, (others, _, kinds) in outcomes.items():
            gaps = np.abs(boxes[:, None] - others[None]).max(axis=2) + 1e6 * (labels[:, None] != kinds[None])
            farthest[name] = float(gaps.min(axis=1).max(initial=0.0)) if len(others) else float("inf")
        further[f"farthest of the best {COMPARED} boxes, pixels"] = farthest
    return further


if __name__ == "__main__":
    raise SystemExit(main())
