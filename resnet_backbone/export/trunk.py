"""Classifiers and trunks for export, and how a file of one is compared with PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_backbone.export.write import Agreement, Exportable, ExportedFile, Facts, compare_tensors
from resnet_backbone.models.layers import fold_norms
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import InputFormat, Weights, WeightsError, read_weights


class TensorsOfTrunk(nn.Module):
    """A network whose outputs are a tuple: its feature maps, or the logits alone."""

    def __init__(self, model: Trunk) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, C, H, W), normalised, to feature maps (N, channels, H / stride, W / stride) or to logits."""
        if self.model.num_classes == 0:
            return tuple(self.model.forward_features(images).values())
        return (self.model(images),)


def exportable_trunk(source: str | Path, arch: str | None, out_features: Sequence[str] | None) -> Exportable:
    """Read weights, and build the classifier, or the trunk, that they are of.

    Args:
        source: as for :func:`~resnet_backbone.weights.read_weights`.
        arch: of the network; None where the weights tell.
        out_features: names of feature maps; None for the classifier.

    Raises:
        FileNotFoundError, WeightsError, DownloadError: the weights cannot be had, or are of another architecture.
        ValueError: unknown features, or no classifier among the weights.
    """
    weights = read_weights(source, arch=arch)
    arch = arch or weights.known_arch()
    if weights.input_format is None:
        raise WeightsError(
            f"{source} does not tell the pixels that it was trained on: package it with resnet-backbone package first"
        )
    if out_features is None and not weights.num_classes:
        raise WeightsError(f"{source} holds no classifier: name the feature maps to export, --out-features")
    num_classes = None if out_features is None else 0
    model = create_model(arch, weights=weights, num_classes=num_classes, out_features=out_features).eval()
    return describe_trunk(model, weights, weights.input_format)


def describe_trunk(model: Trunk, weights: Weights, pixels: InputFormat) -> Exportable:
    """Describe a network in eval mode; ``model`` stays as it is, the norms of what is exported are folded."""
    folded = copy.deepcopy(model)
    fold_norms(folded)
    reference = TensorsOfTrunk(model)
    classifies = model.num_classes > 0
    stride = max(info.stride for info in model.feature_info.values())
    rounded = "down" if model.rounds_down else "up"
    test = weights.test_transform
    outputs = {
        name: f"float32 (N, {info.channels}, H / {info.stride}, W / {info.stride}), rounded {rounded}"
        for name, info in model.feature_info.items()
    }
    if classifies:
        outputs = {"logits": f"float32 (N, {model.num_classes}), before the softmax"}
    facts = Facts(
        task="classification" if classifies else "features",
        architecture=model.arch,
        source=Path(weights.source).name,
        input=f"images: float32 (N, {model.in_channels}, H, W), normalised",
        channel_order=pixels.channel_order,
        mean=pixels.mean,
        std=pixels.std,
        normalises=False,
        resize=""
        if test is None
        else f"shorter side to {test.resize} pixels, {test.interpolation} with antialiasing, "
        f"then the central {test.crop} x {test.crop} pixels",
        smallest_side=max(2 * stride, model.size_divisibility),
        outputs=outputs,
        class_names=weights.class_names if classifies else (),
    )

    def check(file: ExportedFile) -> Agreement:
        agreement = Agreement()
        generator = torch.Generator().manual_seed(0)
        for shape in ((1, 2 * stride, 2 * stride), (3, 4 * stride - 1, 5 * stride + 3), (1, 7 * stride, 5 * stride)):
            images = torch.randn(shape[0], model.in_channels, *shape[1:], generator=generator)
            with torch.no_grad():
                expected = dict(zip(outputs, reference(images), strict=True))
            agreement.images.append(tuple(images.shape))
            compare_tensors(agreement, expected, dict(zip(outputs, file(images), strict=True)))
        return agreement

    return Exportable(
        module=TensorsOfTrunk(folded),
        input_name="images",
        example=torch.zeros(2, model.in_channels, 3 * stride + 11, 4 * stride + 5),
        axes={0: "batch", 2: "height", 3: "width"},
        output_axes={0: "batch"},
        facts=facts,
        check=check,
    )
