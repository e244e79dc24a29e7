"""Feature maps of an image in plain PyTorch, without Detectron2: python extract_features.py IMAGE --weights SOURCE"""

import argparse

import torch
import torch.nn.functional as F

from resnet_backbone import create_model
from resnet_backbone.data.images import read_image
from resnet_backbone.weights import InputFormat, read_weights


def normalise(image: torch.Tensor, input_format: InputFormat, divisor: int) -> torch.Tensor:
    """Turn an RGB image (3, H, W) in 0..255 into a batch of one, padded to multiples of ``divisor``."""
    channels = image if input_format.channel_order == "RGB" else image.flip(0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (input_format.mean, input_format.std))
    height, width = image.shape[1:]
    return F.pad((channels - mean) / std, (0, -width % divisor, 0, -height % divisor))[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--weights", default="imagenet://resnet50/IMAGENET1K_V1", help="or a packaged file")
    args = parser.parse_args()

    weights = read_weights(args.weights)
    if weights.arch is None or weights.input_format is None:
        raise SystemExit(f"{args.weights} does not say what it is; package it with tools/package_weights.py")
    trunk = create_model(weights.arch, weights=weights, num_classes=0).eval()
    images = normalise(read_image(args.image), weights.input_format, trunk.size_divisibility)
    with torch.inference_mode():
        features = trunk(images)
    for name, values in features.items():
        print(f"{name}: {tuple(values.shape)}, stride {trunk.feature_info[name].stride}")


if __name__ == "__main__":
    main()
