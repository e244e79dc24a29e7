"""The "scenes" data set in COCO format: classified photographs pasted on backgrounds, for detectors on small machines.

What there is to find is easy to see, and hard to name: a detector is as good as the classifier that it is built on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from resnet_backbone.data.images.classes import ClassDataset, open_classes
from resnet_backbone.data.images.media import image_endings, is_hidden
from resnet_backbone.data.images.read import read_image
from resnet_backbone.data.prepare.shapes import Objects, draw_texture, write_generated

PHOTOGRAPHS = {"train": "cifar10_jpeg_train", "val": "cifar10_jpeg_test"}
_VERSION = 1  # raised when the same seed gives other files
_ATTEMPTS = 50  # to find a free place
_VAL_BACKGROUNDS = 5  # of the sorted files every fifth is of the validation images, which share none
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is made; the harder, the larger the range of sizes, the occlusion and the clutter."""

    image_size: int = 160  # pixels, of each side
    objects: tuple[int, int] = (3, 7)  # photographs in an image, fewest and most
    sizes: tuple[int, int] = (26, 44)  # pixels, of a photograph's sides
    occlusion: float = 0.0  # part of a photograph that those pasted later may hide, from 0 to below 1
    clutter: int = 0  # squares of texture among the photographs, at most, which nothing is annotated on

    def __post_init__(self) -> None:
        for name, low, high in (("objects", *self.objects), ("sizes", *self.sizes)):
            if not 1 <= low <= high:
                raise ValueError(f"{name} {low} to {high}: expected the smaller number first, from 1 up")
        if self.sizes[1] > self.image_size:
            raise ValueError(f"photographs of {self.sizes[1]} pixels do not fit into images of {self.image_size}")
        if not 0 <= self.occlusion < 1 or self.clutter < 0:
            raise ValueError(
                f"occlusion {self.occlusion}, clutter {self.clutter}: expected a part from 0 to below 1, and a number "
                "from 0 up"
            )


def generate_scenes(
    folder: str | Path,
    num_train: int = 3000,
    num_val: int = 600,
    seed: int = 0,
    *,
    options: SceneOptions | None = None,
    photographs: Sequence[str] = tuple(PHOTOGRAPHS.values()),
    backgrounds: str | Path | None = None,
) -> bool:
    """Write ``annotations/{train,val}.json`` and ``{train,val}/*.jpg`` below ``folder``.

    The same arguments and files give the same bytes (with the same OpenCV). Does nothing where the set is there with
    these settings. Photographs and backgrounds of the validation images are none of the training images.

    Args:
        folder: created where needed.
        num_train: images to train on, of the first of ``photographs``.
        num_val: images to evaluate on, of the second.
        seed: from 0 up.
        options: sizes and difficulty.
        photographs: two sources of images with classes, as ``open_classes`` takes them.
        backgrounds: a folder of images, which are cut to size; None draws textures.

    Returns:
        Whether anything was written.

    Raises:
        FileNotFoundError: photographs or backgrounds are not there.
        ValueError: a number is out of range, or the two sources have other classes.
        FileExistsError: the folder holds a set with other settings.
    """
    options = options or SceneOptions()
    if min(num_train, num_val) < 1 or seed < 0:
        raise ValueError(
            f"found num_train {num_train}, num_val {num_val}, seed {seed}; expected at least one image in each split, "
            "and a seed from 0 up"
        )
    opened = dict(zip(PHOTOGRAPHS, map(open_classes, photographs), strict=True))
    train, val = opened.values()
    if train.class_names != val.class_names:
        raise ValueError(
            f"{photographs[0]} has the classes {train.class_names}, {photographs[1]} {val.class_names}; both need the "
            "same"
        )
    files = _split_backgrounds(backgrounds)
    settings = {
        split: {
            "description": "photographs pasted on backgrounds, resnet_backbone",
            "version": _VERSION,
            "split": split,
            "images": number,
            "seed": seed,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items()},
            "photographs": f"{len(opened[split]):,} of {source}",
            "backgrounds": f"{len(files[split]):,} of {backgrounds}" if backgrounds else "textures",
        }
        for split, source, number in zip(PHOTOGRAPHS, photographs, (num_train, num_val), strict=True)
    }

    def draw(rng: np.random.Generator, split: str) -> tuple[np.ndarray, Objects]:
        pixels = _background(rng, files[split], options.image_size)
        return _paste(rng, pixels, opened[split], options)

    return write_generated(folder, settings, train.class_names, draw, _JPEG)


def _split_backgrounds(folder: str | Path | None) -> dict[str, list[Path]]:
    if folder is None:
        return {split: [] for split in PHOTOGRAPHS}
    paths = sorted(Path(folder).rglob("*"))
    files = [path for path in paths if path.suffix.lower() in image_endings() and not is_hidden(path.name)]
    if len(files) < _VAL_BACKGROUNDS:
        raise ValueError(f"{folder} has {len(files)} images; backgrounds need {_VAL_BACKGROUNDS} or more, of any size")
    of_val = files[_VAL_BACKGROUNDS - 1 :: _VAL_BACKGROUNDS]
    return {"train": sorted({*files} - {*of_val}), "val": of_val}


def _background(rng: np.random.Generator, files: Sequence[Path], size: int) -> np.ndarray:
    """A part of an image, half of its shorter side or more, or a texture; uint8 (size, size, 3), BGR."""
    if not files:
        return np.rint(draw_texture(rng, size, size)).astype(np.uint8)
    image = read_image(files[int(rng.integers(len(files)))]).numpy()[::-1].transpose(1, 2, 0)
    side = max(1, round(rng.uniform(0.5, 1) * min(image.shape[:2])))
    top, left = (int(rng.integers(0, length - side + 1)) for length in image.shape[:2])
    return cv2.resize(
        np.ascontiguousarray(image[top : top + side, left : left + side]), (size, size), interpolation=cv2.INTER_AREA
    )


def _paste(
    rng: np.random.Generator, pixels: np.ndarray, photographs: ClassDataset, options: SceneOptions
) -> tuple[np.ndarray, Objects]:
    """Paste photographs and clutter in a random order, each where it hides no more of the earlier ones than allowed."""
    wanted = int(rng.integers(options.objects[0], options.objects[1] + 1))
    kinds = rng.permutation(np.arange(wanted + int(rng.integers(0, options.clutter + 1))) < wanted)
    labels: list[int] = []
    visible: list[np.ndarray] = []
    areas: list[int] = []
    for is_photograph in kinds:
        side = int(rng.integers(options.sizes[0], options.sizes[1] + 1))
        place = _find_place(rng, side, visible, areas, options)
        if place is None:
            continue
        for mask in visible:
            mask[place] = False
        if not is_photograph:
            pixels[place] = np.rint(draw_texture(rng, side, side))
            continue
        image, label = photographs[int(rng.integers(len(photographs)))]
        bgr = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        shrinks = side < min(bgr.shape[:2])
        pixels[place] = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        mask = np.zeros(pixels.shape[:2], bool)
        mask[place] = True
        labels, visible, areas = [*labels, label], [*visible, mask], [*areas, side * side]
    return pixels, list(zip(labels, visible, strict=True))


def _find_place(
    rng: np.random.Generator, side: int, visible: Sequence[np.ndarray], areas: Sequence[int], options: SceneOptions
) -> tuple[slice, slice] | None:
    for _ in range(_ATTEMPTS):
        top, left = (int(value) for value in rng.integers(0, options.image_size - side + 1, 2))
        place = (slice(top, top + side), slice(left, left + side))
        left_over = (np.count_nonzero(mask) - np.count_nonzero(mask[place]) for mask in visible)
        if all(rest >= (1 - options.occlusion) * area for rest, area in zip(left_over, areas, strict=True)):
            return place
    return None
