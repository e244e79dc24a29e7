"""Run folders as the torchvision engine leaves them, with made-up detections on the real shapes set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_backbone.compare.compare import Comparison, compare_runs
from resnet_backbone.compare.report import Written, write_comparison
from resnet_backbone.data.coco.read import read_ground_truth
from resnet_backbone.data.images.read import read_image
from resnet_backbone.engine.records import RunWriter
from resnet_backbone.metrics.coco import evaluate_coco
from resnet_backbone.metrics.results import write_results
from resnet_backbone.metrics.run_facts import CostMeter, write_facts
from resnet_backbone.torchvision_plugin.config import load_config

MakeRun = Callable[..., Path]
MAX_ITER = 60


def detections(annotations: Path, noise: float, seed: int, masks: bool) -> list[dict]:
    """The ground truth, moved by ``noise`` of each object's size; some lost, some of another class, some twice."""
    rng = np.random.default_rng(seed)
    truth = read_ground_truth(annotations, ("segm",))
    category_ids = truth.category_ids.tolist()
    found = []
    for row, (x, y, width, height) in enumerate(truth.boxes.tolist()):
        if rng.random() < noise:
            continue
        shift = rng.normal(0, noise / 2, 4) * [width, height, width, height]
        category = int(rng.choice(category_ids)) if rng.random() < noise else category_ids[truth.labels[row]]
        result = {
            "image_id": int(truth.image_ids[truth.images[row]]),
            "category_id": category,
            "score": float(rng.uniform(0.3, 1)),
            "bbox": [x + shift[0], y + shift[1], max(1.0, width + shift[2]), max(1.0, height + shift[3])],
        }
        if masks:
            rle = truth.masks[row]
            counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
            result["segmentation"] = {"size": rle["size"], "counts": counts}
        found += [result] * (2 if rng.random() < noise else 1)
    return found


def write_run(
    folder: Path,
    data: Path,
    *,
    noise: float = 0.1,
    seed: int = 0,
    masks: bool = False,
    trained: bool = True,
    overrides: tuple[str, ...] = (),
) -> Path:
    """Write a finished run on the set ``shapes`` below ``data``, by the code that the engine uses."""
    keys = ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(MAX_ITER), "MODEL.MASK_ON", str(masks), *overrides]
    cfg = load_config("quickstart.yaml", keys)
    inference = folder / "inference"
    inference.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    if trained:
        (folder / "model_final.pth").write_bytes(b"not read")
        writer = RunWriter(folder, MAX_ITER, 0, torch.device("cpu"))
        for iteration in range(MAX_ITER):
            scalars = {"total_loss": 2 / (1 + iteration / 10), "lr": 0.01, "data_time": 0.001}
            writer.step(iteration, scalars, 0.5)
            if iteration in (29, MAX_ITER - 1):
                writer.scalars(iteration, {"shapes_val/bbox/AP": float(iteration)})
        writer.close()
    annotations = data / "shapes/annotations/val.json"
    results = inference / "coco_instances_results.json"
    write_results(results, detections(annotations, noise, seed, masks))
    figures = {}
    for kind in ("bbox", "segm") if masks else ("bbox",):
        figures |= evaluate_coco(annotations, results, iou_type=kind).to_dict()
    (inference / "metrics.json").write_text(json.dumps(figures))
    truth = json.loads(annotations.read_text())
    model = torch.nn.Linear(4, 1 + int(100 * noise))
    with CostMeter(model, torch.device("cpu")) as meter:
        for _ in range(6):
            model(torch.zeros(1, 4))
    write_facts(
        inference,
        meter,
        engine="torchvision",
        device=torch.device("cpu"),
        processes=1,
        dataset="shapes_val",
        annotations=annotations,
        image_folder=data / "shapes/val",
        num_images=len(truth["images"]),
        class_names=[category["name"] for category in sorted(truth["categories"], key=lambda one: one["id"])],
    )
    return folder


@pytest.fixture
def make_run(shapes: Path, tmp_path: Path) -> MakeRun:
    """``make_run("a", noise=0.2, ...)``: see :func:`write_run`; twice the same name is the same folder, replaced."""

    def make(name: str, **options: object) -> Path:
        return write_run(tmp_path / "runs" / name, options.pop("data", shapes), **options)

    return make


@pytest.fixture(scope="session")
def compare() -> Callable[..., Comparison]:
    """``compare(folders, ...)``: with few resamples and no pictures, unless asked for."""

    def call(folders: list[Path], **options: object) -> Comparison:
        return compare_runs(folders, **{"read_image": read_image, "samples": 20, "num_pictures": 0, **options})

    return call


@pytest.fixture(scope="session")
def pair(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs; the second is the better one, and has another backbone and another warm-up."""
    root = tmp_path_factory.mktemp("pair")
    other = ("MODEL.RESNET_BACKBONE.ARCH", "resnet34", "SOLVER.WARMUP_ITERS", "7")
    return [
        write_run(root / "first", shapes, noise=0.4, seed=1),
        write_run(root / "second", shapes, noise=0.05, seed=2, overrides=other),
    ]


@pytest.fixture(scope="session")
def comparison(pair: list[Path], compare: Callable[..., Comparison]) -> Comparison:
    return compare(pair, num_pictures=2)


@pytest.fixture(scope="session")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_comparison(comparison, tmp_path_factory.mktemp("report") / "new")
