"""Readers of files against what chance makes of valid ones: an error of ours, or what the file says."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile import archives, configs, datasets, images
from tests.hostile.case import OURS
from tests.hostile.mutations import damaged, json_values, pickles, yaml_texts
from tests.hostile.weights import TENSORS, read_weights, rebuilt, torch_bytes, zipped_pickle

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
ARRAYS = {"model": {name: tensor.numpy() for name, tensor in TENSORS.items()}, "note": [1, "a"]}
FILES: dict[str, tuple[Callable[[Path], object], list[bytes]]] = {
    "w.pth": (read_weights, [torch_bytes(TENSORS), torch_bytes(TENSORS, zipped=False),
                             zipped_pickle(rebuilt(b"K\x04\x85", b"K\x01\x85"))]),
    "w.pkl": (read_weights, [pickle.dumps(ARRAYS, protocol) for protocol in range(6)]),
    "w.safetensors": (read_weights, [safetensors.torch.save(TENSORS)]),
    "c.yaml": (configs.load_config, [configs.GOOD, b"MODEL: {RESNETS: {DEPTH: 50}}\n_BASE_: a.yaml\n"]),
    "coco.json": (datasets.READERS["training"], [datasets.dumped(datasets.truth())]),
    "truth.json": (datasets.READERS["truth"], [datasets.dumped(datasets.truth())]),
    "results.json": (datasets.READERS["table"], [datasets.dumped([datasets.RESULT] * 3)]),
    "facts.json": (datasets.READERS["facts"], [datasets.dumped(datasets.FACTS)]),
    "a.jpg": (images.read_image, [images.encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]),
    "x.zip": (archives.unpack, [archives.zipped({"a": b"x" * 99, "b/c": b"y"}, method) for method in (0, 8)]),
    "x.tar": (archives.unpack, [archives.tarred(archives.info("a"), archives.info("b"), data=b"x" * 600, form=form)
                                 for form in (0, 1, 2)]),
}  # fmt: skip


def answer(name: str, content: bytes) -> None:
    """Read it; whatever is raised must be of ours and name the file."""
    read, _ = FILES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            read(path)
        except Exception as error:
            assert type(error).__name__ in OURS, repr(error)  # noqa: PT017
            # What is wrong with the values of a config names their keys.
            key = re.search(r"[A-Z]\.[A-Z]", str(error)) if name == "c.yaml" else None
            assert key or name in str(error) or str(folder) in str(error), str(error)  # noqa: PT017


@pytest.mark.parametrize("name", list(FILES))
def test_damaged_files(name):
    @FEW
    @given(damaged(FILES[name][1]))
    def check(content):
        answer(name, content)

    check()


@FEW
@given(pickles())
def test_pickles_of_any_opcodes(content):
    answer("w.pkl", content)
    answer("w.pth", zipped_pickle(content))


@FEW
@given(json_values(), st.sampled_from(sorted(datasets.NOTE)), st.sampled_from(["coco.json", "truth.json"]))
def test_annotations_with_any_value(value, key, name):
    answer(name, json.dumps(datasets.truth({key: value})).encode())


@FEW
@given(json_values(), st.sampled_from(sorted(datasets.RESULT)))
def test_results_with_any_value(value, key):
    answer("results.json", json.dumps([{**datasets.RESULT, key: value}]).encode())


@FEW
@given(json_values(), st.sampled_from(sorted(datasets.FACTS)))
def test_facts_with_any_value(value, key):
    answer("facts.json", json.dumps({**datasets.FACTS, key: value}).encode())


@FEW
@given(yaml_texts())
def test_yaml_of_any_pieces(content):
    answer("c.yaml", content)


@FEW
@given(st.lists(st.integers(0, 63), max_size=40))
def test_masks_of_any_run_lengths(codes):
    """What is let through fills the image exactly, as pycocotools decodes it."""
    counts = "".join(chr(48 + code) for code in codes)
    answer(
        "results.json", json.dumps([{**datasets.RESULT, "segmentation": {"size": [10, 10], "counts": counts}}]).encode()
    )


def test_good_files_are_read():
    """Without this, a reader that refuses everything would pass."""
    for name, (read, contents) in FILES.items():
        if name == "w.pkl":
            assert np.array_equal(pickle.loads(contents[0])["model"]["bn1.weight"], np.ones(4))  # noqa: S301
        for content in contents:
            if b"_BASE_" not in content and name != "c.yaml":
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / name).write_bytes(content)
                    read(Path(folder) / name)
