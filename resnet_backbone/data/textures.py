"""Random colored textures for generated images."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np


def draw_texture(rng: np.random.Generator, height: int, width: int, hue: float | None = None) -> np.ndarray:
    """A texture of a random kind between two random colors, with grain.

    Args:
        rng: decides everything.
        height, width: pixels.
        hue: from 0 to 1 around the color circle; the colors are then strong and near it. None gives dull colors.

    Returns:
        float32 (height, width, 3), 0..255.
    """
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, height, width).astype(np.float32)
    first, second = (_dull(rng) if hue is None else _strong(rng, hue) for _ in range(2))
    noise = _noise(rng, height // 2 + 1, width // 2 + 1)
    grain = cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.float32) - 127.5
    grain *= np.float32(rng.uniform(0, 0.15))
    channels = [grain + (start + pattern * (end - start)) for start, end in zip(first, second, strict=True)]
    return cv2.merge(channels).clip(0, 255)


def _dull(rng: np.random.Generator) -> np.ndarray:
    return (rng.uniform(50, 205) + rng.uniform(-15, 15, 3)).astype(np.float32)


def _strong(rng: np.random.Generator, hue: float) -> np.ndarray:
    hsv = (hue + rng.uniform(-0.05, 0.05)) % 1, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv), dtype=np.float32)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width), dtype=np.uint8)


def _plain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.full((height, width), rng.uniform())


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    ramp = _ramp(rng, height, width)
    return (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return (_ramp(rng, height, width) / rng.uniform(6, 40) % 1 < rng.uniform(0.3, 0.7)).astype(np.float64)


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    side = int(rng.integers(6, 32))
    y, x = np.mgrid[:height, :width] + rng.integers(0, side, (2, 1, 1))
    return ((x // side + y // side) % 2).astype(np.float64)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells = int(rng.integers(3, 24))
    coarse = _noise(rng, cells, cells)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT) / 255.0


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Distance in pixels along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * np.arange(width) + np.sin(angle) * np.arange(height)[:, None]


_PATTERNS = (_plain, _gradient, _stripes, _checks, _clouds)
