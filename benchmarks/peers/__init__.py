"""What the benchmarks compare with: one module for each library, imported in the process of its contender alone.

A peer that is not installed is reported as such. To add one, add a module here with the function that a benchmark
asks for, and a line to the ``contenders`` of that benchmark:

* ``build_pyramid(arch)`` -> module from images (N, 3, H, W) to the maps p2 to p6, on the weights of
  :mod:`benchmarks.pyramids`
* ``training_samples(json_path, image_folder, sizes, max_size)`` -> sequence of samples of a COCO-format data set, read,
  resized and flipped as they are asked for
* ``build_detector()`` -> detector that returns losses in training, called as torchvision's
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def peer(module: str, function: str, *args: Any, **options: Any) -> Any:
    """Call ``function`` of ``benchmarks.peers.<module>``, importing it now.

    Raises:
        ImportError: the library is not installed.
    """
    return getattr(import_module(f"benchmarks.peers.{module}"), function)(*args, **options)
