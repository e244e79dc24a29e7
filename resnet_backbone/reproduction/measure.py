"""Timing real iterations of a training on this machine, with random weights and generated images."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from resnet_backbone.data.crops import write_crops
from resnet_backbone.data.shapes import generate_shapes
from resnet_backbone.reproduction.jobs import Job

_ITERATIONS = 40  # records are written every 20; the second is without the start
_IMAGES = 16


def measured_text(job: Job, script: str) -> str:
    """Train a few iterations of ``job`` and return what its whole training would take, in words.

    Everything is the config's own (image size, RoIs, images a step, processes) except the weights, which are random and
    barely learn, and the images, which are generated.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_shapes(folder / "shapes", num_train=_IMAGES, num_val=1, seed=0)
        words = job.command(script)
        words += ["MODEL.WEIGHTS", "", "OUTPUT_DIR", f"{folder}/run"]
        if "OWN" in job.cfg.DATASETS:
            own = {
                "NAME": "timed",
                "JSON": f"{folder}/shapes/annotations/train.json",
                "IMAGES": f"{folder}/shapes/train",
            }
            words += ["DATASETS.OWN", str([own]), "DATASETS.TRAIN", "['timed']"]
        else:  # a classifier's: images with a class each
            write_crops(folder / "shapes/annotations/train.json", folder / "shapes/train", folder / "crops")
            words += ["DATASETS.TRAIN", str([f"{folder}/crops"])]
        words += ["DATASETS.TEST", "[]", "TEST.EVAL_PERIOD", "0", "SEED", "0"]
        words += ["SOLVER.MAX_ITER", str(_ITERATIONS), "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "[]"]
        words += ["SOLVER.BASE_LR", "1e-9", "SOLVER.CHECKPOINT_PERIOD", "1000"]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"could not be timed: {' '.join(last)} (exit status {done.returncode} of {shlex.join(words)})"
        seconds = _seconds_per_iteration(folder / "run" / "metrics.json")
    hours = seconds * job.schedule.max_iter / 3600
    return (
        f"about {hours:.2g} h here, without evaluation ({seconds:.3g} s an iteration, measured over the second half of "
        f"{_ITERATIONS} with random weights on generated images)"
    )


def _seconds_per_iteration(path: Path) -> float:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return float([record["time"] for record in records if "time" in record][-1])
