"""A COCO-format data set of made-up photographs: noise whose spectrum falls as that of natural images does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 480, 640  # pixels, of most images of COCO
BOXES = 7  # an image, as in COCO
QUALITY = 92  # of JPEG: files of about 150 kB, the mean of COCO


def write_photographs(folder: Path, num_images: int, seed: int = 0) -> tuple[Path, Path]:
    """Write ``annotations.json`` and ``images/``; return the two paths. The same seed writes the same files."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num_images + 1):
        name = f"{number:06d}.jpg"
        Image.fromarray(_pixels(rng)).save(folder / "images" / name, quality=QUALITY)
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        corners = rng.uniform(0, [0.7 * WIDTH, 0.7 * HEIGHT], (BOXES, 2))
        boxes = np.concatenate([corners, rng.uniform(8, 0.3 * HEIGHT, (BOXES, 2))], axis=1).round(2)
        for box in boxes.tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + len(annotations) % 80,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": key, "name": f"class {key}"} for key in range(1, 81)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path, folder / "images"


def _pixels(rng: np.random.Generator) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): amplitudes fall with the frequency, and the colors of a place are alike."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(3, HEIGHT, WIDTH)) * 0.3 + rng.normal(size=(1, HEIGHT, WIDTH))
    field = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(HEIGHT, WIDTH))
    field = field / field.std() * 55 + 120
    return field.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
