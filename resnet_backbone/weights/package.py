"""Packaging weights: one file with the tensors and how they were trained, which Detectron2 loads as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from resnet_backbone.files.atomic import locked, replacing
from resnet_backbone.version import __version__
from resnet_backbone.weights.architecture import has_bottlenecks
from resnet_backbone.weights.catalog import InputFormat, TestTransform, WeightsEntry
from resnet_backbone.weights.download import cache_folder
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.read import split_part
from resnet_backbone.weights.source import FORMAT_VERSION, PACKAGE_KEY, Weights, read_weights


def package_weights(
    source: str | Path,
    destination: str | Path,
    arch: str | None = None,
    input_format: InputFormat | None = None,
    stride_in_1x1: bool | None = None,
    *,
    test_transform: TestTransform | None = None,
    class_names: Sequence[str] = (),
    option_a_zeros: str | None = None,
) -> dict[str, Any]:
    """Write weights in our names, together with how they were trained, as one ``.pth`` or ``.safetensors`` file.

    A ``.pth`` file is ``{"model": tensors, "matching_heuristics": True, "resnet_backbone": facts}``: ``torch.load``
    reads it with ``weights_only=True``, and Detectron2's ``DetectionCheckpointer`` matches it with any of its models.
    A ``.safetensors`` file has the tensors, and the facts as JSON in its metadata.

    Args:
        source: as for :func:`read_weights`.
        destination: the file to write, ending in ``.pth`` or ``.safetensors``. It is replaced at once when complete.
        arch: needed only where the tensors do not tell.
        input_format: the pixels that the network was trained on; needed for files that are not in the catalog.
        stride_in_1x1: likewise for ResNet-50, 101 and 152.
        test_transform: what the classifier's accuracy is measured with, where the source does not say.
        class_names: of the classifier, in its order, likewise.
        option_a_zeros: of networks with shortcut option A, see :func:`read_weights`, likewise. The tensors are written
            for zeros behind the copied channels in any case.

    Returns:
        The facts that were written, in plain containers.

    Raises:
        FileNotFoundError: no such source, or no such folder for the destination.
        WeightsError: weights that cannot be read, a fact that is not known, or one that contradicts what is known.
    """
    destination = Path(destination)
    if destination.suffix not in (".pth", ".safetensors"):
        raise WeightsError(f"the destination must end in .pth or .safetensors, got {destination}")
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"no folder {destination.parent} to write {destination.name} into; create it first")
    weights = read_weights(source, arch, option_a_zeros=option_a_zeros)
    facts = _facts(weights, input_format, stride_in_1x1)
    transform = weights.test_transform or test_transform
    facts["test_transform"] = asdict(transform) if transform else None
    facts["class_names"] = list(weights.class_names or class_names)
    tensors = {
        name: _alone(tensor) for name, tensor in weights.state_dict.items() if not name.endswith(".num_batches_tracked")
    }
    with replacing(destination, "packaging weights") as part:
        if destination.suffix == ".pth":
            torch.save({"model": tensors, "matching_heuristics": True, PACKAGE_KEY: facts}, part)
        else:
            save_file(tensors, part, {"format": "pt", PACKAGE_KEY: json.dumps(facts)})
    return facts


def model_card(facts: Mapping[str, Any], file_name: str) -> str:
    """Return a README for a hub, Markdown under YAML, about a file that :func:`package_weights` wrote.

    Args:
        facts: what it returned.
        file_name: of the file.
    """
    pixels, transform = facts["input_format"], facts["test_transform"]
    head = {
        "license": facts["licence"].lower() or "unknown",
        "library_name": "resnet_backbone",
        "pipeline_tag": "image-classification" if facts["num_classes"] else "image-feature-extraction",
        "tags": ["detectron2", "backbone", facts["arch"]],
    }
    rows = {
        "architecture": facts["arch"],
        "classes": facts["num_classes"] or "no classifier",
        "from": f"{facts['source']}, SHA-256 {facts['source_sha256'] or 'unknown'}",
        "pixels": f"{pixels['channel_order']}, 0 to 255, mean {pixels['mean']}, std {pixels['std']}",
        "top-1, top-5": ", ".join(f"{a} %" if (a := facts[key]) is not None else "unknown" for key in ("acc1", "acc5")),
        "measured with": ", ".join(f"{key} {value}" for key, value in (transform or {}).items()) or "unknown",
        "stride in 1x1": "yes" if facts["stride_in_1x1"] else "no",
    }
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {facts['arch']}\n",
            "| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "\n```python\nfrom resnet_backbone import create_model\n",
            f'model = create_model("{facts["arch"]}", weights="{file_name}")\n```\n',
            f"As the backbone of a detector: `MODEL.WEIGHTS: hf://OWNER/REPO/{file_name}`.\n",
        ]
    )


def download_packaged(entry: WeightsEntry) -> Path:
    """Return the packaged file of a published one, making it in the cache the first time; once for all processes.

    Raises:
        DownloadError, WeightsError: the published file cannot be had, or is damaged.
    """
    folder = cache_folder() / "packaged"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "-", f"{entry.arch}-{entry.name}-{FORMAT_VERSION}.pth")
    path = folder / name
    with locked(path.with_name(f"{path.name}.lock"), waiting=f"waiting for another process that makes {path}"):
        if not path.is_file():
            package_weights(entry.uri, path)
    return path


def _facts(weights: Weights, input_format: InputFormat | None, stride_in_1x1: bool | None) -> dict[str, Any]:
    arch = weights.known_arch()
    unknown = ""
    if weights.option_a_zeros is None:
        unknown = """where its shortcuts, of option A, have their zeros, option_a_zeros="behind" the copied channels
  (facebook/fb.resnet.torch, this project) or option_a_zeros="both", on both sides (akamaster/pytorch_resnet_cifar10)"""
    elif weights.input_format is None and input_format is None:
        unknown = """on which pixels it was trained, as in
  input_format=InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # torchvision, timm"""
    elif weights.stride_in_1x1 is None and stride_in_1x1 is None and has_bottlenecks(arch):
        unknown = """where its bottlenecks carry the stride,
  stride_in_1x1=False (torchvision, timm) or stride_in_1x1=True (MSRA, Caffe)"""
    if unknown:
        raise WeightsError(f"{weights.source} is not in the catalog: say {unknown}")
    for name, stated in {"input_format": input_format, "stride_in_1x1": stride_in_1x1}.items():
        known = getattr(weights, name)
        if None not in (known, stated) and known != stated:
            raise WeightsError(f"{weights.source} was trained with {name}={known}, not {stated}; leave {name} out")
    final_format = weights.input_format or input_format
    final_stride = stride_in_1x1 if weights.stride_in_1x1 is None else weights.stride_in_1x1
    return {
        "format_version": FORMAT_VERSION,
        "arch": arch,
        "input_format": final_format.to_dict() if final_format else None,
        "stride_in_1x1": bool(final_stride),
        "option_a_zeros": weights.option_a_zeros,
        "norm": weights.norm,
        "num_classes": weights.num_classes,
        "source": Path(weights.source).name if split_part(weights.source)[0].is_file() else weights.source,
        "source_sha256": weights.sha256,
        "licence": weights.licence,
        "acc1": weights.acc1,
        "acc5": weights.acc5,
        "package_version": __version__,
    }


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor with memory of its own size: saving a view would save everything that it is a view of."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()
