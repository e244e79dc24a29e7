"""The input that a detector really computes, and its trunk compared with the plain classifier that it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights
from torchvision.transforms.v2 import functional as transforms

from resnet_backbone.data.images.read import read_image
from resnet_backbone.doctor.checkpoint import COUNTER, DETECTOR, Checkpoint
from resnet_backbone.doctor.report import DetectorParts, Section
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import InputFormat, Weights, WeightsError
from resnet_backbone.weights.architecture import has_bottlenecks, stage_of
from resnet_backbone.weights.catalog import IMAGENET_CLASSES, TIMM

_RESIZE, _CROP = 256, 224  # pixels, as ImageNet's accuracy is measured
_GREY_LEVELS = 0.01  # by which a mean or std may differ
_LINEAR = 1 - 5e-5  # correlation of a channel with the pixels that it is made of
UNMEASURABLE = "the detector's pre-processing is not (image - mean) / std, channel by channel"
TOLERANCE = 1e-3  # of the largest output; float32 in another order of operations stays below 1e-5
_LOGITS = "logits"
_GENERATED = "a generated picture"


@dataclass(frozen=True)
class MeasuredInput:
    """``(image - mean) / std``, as a detector computes it."""

    channel_order: str  # which channel of the RGB image each input channel is made of, such as "BGR"
    mean: tuple[float, ...]  # one value an input channel, in grey levels of 0 to 255
    std: tuple[float, ...]  # likewise

    def differences(self, wanted: InputFormat) -> list[str]:
        """Say in which respects it is not what the weights were trained on; nothing where it is."""
        found = []
        if self.channel_order != wanted.channel_order:
            found.append(
                f"the channels are swapped: they arrive as {self.channel_order}, the weights want "
                f"{wanted.channel_order}"
            )
        if not _close(self.std, wanted.std):
            without = _close(self.std, (1.0,) * len(self.std))
            what = "there is no division by the std" if without else f"the std is {_text(self.std)}"
            found.append(f"{what}, the weights want {_text(wanted.std)}")
        if not _close(self.mean, wanted.mean):
            found.append(f"the mean is {_text(self.mean)}, the weights want {_text(wanted.mean)}")
        return found


def measure_input(prepare: Callable[[Tensor], Tensor]) -> MeasuredInput | None:
    """Find out by a random image what ``prepare`` does to each channel; see :class:`DetectorParts`.

    None where that is not one channel of the image, scaled and shifted.
    """
    image = torch.randint(0, 256, (3, _CROP, _CROP), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    prepared = prepare(image)[0, :, :_CROP, :_CROP].double().flatten(1)
    pixels = image.double().flatten(1)
    if len(prepared) != len(pixels):
        return None
    correlations, sources = torch.corrcoef(torch.cat([prepared, pixels]))[:3, 3:].max(dim=1)
    if not (correlations > _LINEAR).all():  # of a constant channel it is NaN
        return None
    order = "".join("RGB"[index] for index in sources.tolist())
    stds = pixels[sources].std(dim=1) / prepared.std(dim=1)
    means = pixels[sources].mean(dim=1) - stds * prepared.mean(dim=1)
    return MeasuredInput(order, tuple(means.tolist()), tuple(stds.tolist()))


def normalise(image: Tensor, input_format: InputFormat, size: tuple[int, int]) -> Tensor:
    """Turn an RGB image, uint8 (3, H, W), into (1, 3, *size) as the weights want it, padded below and right with 0."""
    pixels = image.flip(0) if input_format.channel_order == "BGR" else image
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (input_format.mean, input_format.std))
    height, width = image.shape[-2:]
    return F.pad((pixels - mean) / std, (0, size[1] - width, 0, size[0] - height)).unsqueeze(0)


def generated_image() -> Tensor:
    """Return a picture of coloured blots, uint8 (3, 224, 224), always the same."""
    blots = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(blots, (_CROP, _CROP), mode="bicubic", align_corners=False)[0]
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


def read_cropped(path: str | Path) -> Tensor:
    """Read an image as RGB, uint8 (3, 224, 224): its shorter side resized to 256 pixels, and the centre of that."""
    return transforms.center_crop(transforms.resize(read_image(path), [_RESIZE], antialias=True), [_CROP, _CROP])


def _close(found: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    return all(abs(a - b) < _GREY_LEVELS for a, b in zip(found, wanted, strict=True))


def _text(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"


def build_classifier(weights: Weights, trunk: Trunk | None = None) -> Trunk:
    """Build the network of a file of known architecture, without anything of a detector's config; in eval mode.

    Where the file has no classifier, it returns the feature maps of ``trunk``, the detector's, and where nobody knows
    the stride's place it has that one's. WeightsError where the file is not a complete network.
    """
    out_features, stride_in_1x1 = None, weights.stride_in_1x1
    if not weights.num_classes:
        out_features = list(dict.fromkeys(map(stage_of, weights.state_dict)) if trunk is None else trunk.feature_info)
    if stride_in_1x1 is None:
        stride_in_1x1 = trunk is not None and trunk.stride_in_1x1
    arch = str(weights.arch)
    return create_model(arch, weights=weights, out_features=out_features, stride_in_1x1=stride_in_1x1).eval()


def graft(classifier: Trunk, parts: DetectorParts) -> Trunk:
    """Return the plain classifier with the detector's own modules, shared, in place of its own; ValueError where it
    lacks one of them. Of timm's networks it is the detector's trunk as it is."""
    if classifier.arch.startswith(TIMM):
        if parts.trunk.feature_info != classifier.feature_info:
            raise ValueError("the trunk is dilated, which the network of the file is not: they are not compared")
        return parts.trunk
    own = dict(parts.trunk.named_children())
    unknown = sorted(own.keys() - dict(classifier.named_children()).keys())
    if unknown:
        raise ValueError(f"{classifier.arch} as a classifier has no {', '.join(unknown)}")
    own |= {name: part for name, part in parts.head_parts.items() if hasattr(classifier, name)}
    grafted = copy.copy(classifier)
    grafted._modules = {**classifier._modules, **own}
    return grafted


def comparable_output(grafted: Trunk) -> str | None:
    """Return what a detector's trunk still computes as the classifier did: all of it, or a map before any dilation."""
    before = None
    for name in grafted.feature_info:
        stage = getattr(grafted, name, None)
        layers = stage.modules() if isinstance(stage, nn.Module) else ()
        if any(isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1) for layer in layers):
            return before
        before = name
    return _LOGITS if grafted.num_classes else before


@torch.inference_mode()
def compare(
    parts: DetectorParts, classifier: Trunk, grafted: Trunk, output: str, image: Tensor, weights: Weights
) -> tuple[float, list[str]]:
    """Run one image, RGB, uint8 (3, H, W), through the plain classifier of ``weights`` and the detector's.

    Returns:
        The largest difference, relative to the largest output, and what explains one above ``TOLERANCE``.
    """
    if weights.input_format is None:
        raise ValueError(f"{weights.source} does not say which input it was trained on")
    prepared = parts.prepare(image)
    expected = normalise(image, weights.input_format, (prepared.shape[-2], prepared.shape[-1]))
    wanted = _run(classifier, expected, output)
    difference = relative_difference(_run(grafted, prepared, output), wanted)
    if difference < TOLERANCE:
        return difference, []
    measured = measure_input(parts.prepare)
    causes = measured.differences(weights.input_format) if measured else [UNMEASURABLE]
    found = _run(grafted, expected, output)
    if relative_difference(found, wanted) >= TOLERANCE:
        causes.append(_network_cause(found, expected, output, weights))
    return difference, causes


@torch.inference_mode()
def top5(model: Trunk, prepared: Tensor) -> list[dict[str, Any]]:
    """Return the five likeliest classes: ``[{"class": name, "probability": 0..1}, ...]``."""
    logits = _run(model, prepared, _LOGITS)
    probabilities, classes = logits.softmax(dim=1)[0].topk(min(5, logits.shape[1]))
    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"] if logits.shape[1] == IMAGENET_CLASSES else None
    return [
        {"class": names[index] if names else f"class {index}", "probability": probability}
        for probability, index in zip(probabilities.tolist(), classes.tolist(), strict=True)
    ]


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference, relative to the largest of ``wanted``."""
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()


def _run(model: Any, x: Tensor, output: str) -> Tensor:
    return model(x) if output == _LOGITS else model.forward_features(x)[output]


def _network_cause(found: Tensor, expected: Tensor, output: str, weights: Weights) -> str:
    """Name what makes the detector's network differ from the classifier on the same input."""
    if has_bottlenecks(str(weights.arch)) and weights.stride_in_1x1 is not None:
        place = not weights.stride_in_1x1
        other = build_classifier(replace(weights, stride_in_1x1=place))
        if relative_difference(found, _run(other, expected, output)) < TOLERANCE:
            return f"the stride sits elsewhere in the bottlenecks: write MODEL.RESNETS.STRIDE_IN_1X1: {not place}"
    return "the network itself computes something else: its tensors, norms or layers are not those of the file"


def classify_by_detector(section: Section, parts: DetectorParts, checkpoint: Checkpoint, images: Sequence[str]) -> None:
    """Classify images by the detector's own pre-processing and trunk, and compare with the plain classifier.

    The classifier of ``checkpoint`` completes the trunk. Without images a generated picture is compared.
    """
    weights = checkpoint.weights
    if str(weights.arch).startswith(TIMM):  # whose classifiers do not stand on the last feature map
        weights = replace(weights, num_classes=0)
    try:
        classifier = build_classifier(weights, parts.trunk)
        grafted = graft(classifier, parts)
    except (WeightsError, ValueError) as error:
        section.reason = str(error)
        return
    if weights.input_format is None and not (weights.num_classes and images):
        section.reason = "nobody knows which input the weights need"
        return
    output = comparable_output(grafted)
    if weights.num_classes and output != _LOGITS:
        section.warning(
            "the trunk is dilated, so that it sees its images at another scale than the classifier did: its classes "
            f"are less sure, and not comparable; compared is {output or 'nothing'}"
        )
    if images and not weights.num_classes:
        section.warning(f"{checkpoint.source} has no classifier for this trunk: what the images show is not known")
    if weights.input_format is None:
        section.warning("nobody knows which input the weights need: that is not compared")
    if weights.stride_in_1x1 is None:
        section.warning("nobody knows where these bottlenecks carried their stride: that is not compared")
    comparisons: list[tuple[float, list[str]]] = []
    for name, image in _pictures(section, images):
        if weights.input_format is not None and output is not None:
            comparisons.append(compare(parts, classifier, grafted, output, image, weights))
        if weights.num_classes and name != _GENERATED:
            with torch.inference_mode():
                _enter_classes(section, name, top5(grafted, parts.prepare(image)))
    if not comparisons:
        return
    worst = max(difference for difference, _ in comparisons)
    causes = list(dict.fromkeys(cause for _, found in comparisons for cause in found))
    section.facts |= {"compared": output, "relative_difference": worst, "tolerance": TOLERANCE, "causes": causes}
    on = f"{len(images)} image(s)" if images else _GENERATED
    text = f"{output} of the detector's trunk differ by {worst:.1e} of the largest from the plain classifier's, on {on}"
    if worst < TOLERANCE:
        section.ok(text)
    else:
        section.wrong("\n".join([f"{text}; at most {TOLERANCE} is rounding", *(f"  {cause}" for cause in causes)]))


def classify_alone(loading: Section, section: Section, checkpoint: Checkpoint, images: Sequence[str]) -> None:
    """Build the network of a file that has no detector around it, and classify images if it can.

    What building the network finds goes to ``loading``, the section "weights".
    """
    weights = checkpoint.weights
    try:
        classifier = build_classifier(weights)
    except WeightsError as error:
        loading.wrong(str(error))
        section.reason = "the network is not complete"
        return
    num_loaded = sum(not name.endswith(COUNTER) for name in classifier.state_dict())
    loading.ok(f"all {num_loaded} tensors of {classifier.arch} are there")
    if not weights.num_classes:
        section.reason = "the file has no classifier" + (", as detectors have none" * (checkpoint.kind == DETECTOR))
    elif weights.input_format is None:
        section.reason = "nobody knows which input the weights need"
    elif not images:
        section.reason = "there are no images: write --images"
    else:
        for name, image in _pictures(section, images):
            _enter_classes(section, name, top5(classifier, normalise(image, weights.input_format, (_CROP, _CROP))))


def _pictures(section: Section, images: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    if not images:
        yield _GENERATED, generated_image()
    for path in images:
        try:
            image = read_cropped(path)
        except (OSError, ValueError) as error:
            section.wrong(str(error))
        else:
            yield path, image


def _enter_classes(section: Section, name: str, classes: list[dict[str, Any]]) -> None:
    section.facts.setdefault("images", []).append({"image": name, "top5": classes})
    section.ok(f"{name}: " + ", ".join(f"{found['class']} {found['probability']:.1%}" for found in classes))
