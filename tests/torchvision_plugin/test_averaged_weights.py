"""SOLVER.EMA, AdamW and TEST.PATIENCE: against sums by hand, stopped and resumed, in detectors and classifiers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_backbone.files.checkpoints import last_checkpoint
from resnet_backbone.metrics.run_facts import read_facts
from resnet_backbone.torchvision_plugin.checkpoint import load_checkpoint
from resnet_backbone.torchvision_plugin.run import Run, Trainer
from tests.helpers import assert_same_tensors, json_lines, stopping_at

EMA = ["SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.4"]
ADAMW = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", "0.0001", "SOLVER.LAYER_DECAY", "0.8"]
SGD = ["SOLVER.OPTIMIZER", "SGD"]


def test_the_mean_is_the_exponential_one(tiny):
    """Of the weights after every step, with a decay of min(DECAY, (1 + n) / (10 + n)) after n steps."""
    cfg = tiny("quickstart.yaml", *EMA, "SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "[]")
    Run(cfg).start()
    steps = [load_checkpoint(Path(cfg.OUTPUT_DIR) / f"model_{number:07d}.pth") for number in range(5)]
    steps.append(load_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    moved = 0
    for name, mean in steps[0]["unaveraged"].items():
        if not mean.is_floating_point():
            continue
        mean = mean.double()
        for number, step in enumerate(steps):
            decay = min(0.4, (1 + number) / (10 + number))
            mean = mean if number == 0 else decay * mean + (1 - decay) * step["unaveraged"][name].double()
            torch.testing.assert_close(step["model"][name].double(), mean, rtol=1e-4, atol=1e-6)
        moved += not torch.equal(steps[-1]["model"][name], steps[-1]["unaveraged"][name])
    assert moved > 50


def test_the_mean_is_what_is_evaluated(tiny, tmp_path):
    """On the way and at the end: the scores are those of the file, whose ``model`` is the mean."""
    cfg = tiny("quickstart.yaml", *EMA, "TEST.EVAL_PERIOD", "3", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    final = Run(cfg).start()["shapes_val"]
    on_the_way = json_lines(Path(cfg.OUTPUT_DIR) / "metrics.json")
    for name, expected in (("model_final", final.scalars()), ("model_0000002", None)):
        weights = ["MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / f"{name}.pth"), "OUTPUT_DIR", str(tmp_path / name)]
        again = tiny("quickstart.yaml", *weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
        found = Run(again, eval_only=True).start()["shapes_val"].scalars()
        if expected is None:
            record = next(r for r in on_the_way if r["iteration"] == 2 and "shapes_val/bbox/AP" in r)
            expected = {figure: record[f"shapes_val/{figure}"] for figure in found if f"shapes_val/{figure}" in record}
        assert found == pytest.approx({**found, **expected}, abs=1e-6)


@pytest.mark.parametrize("keys", [EMA, ADAMW, [*EMA, *ADAMW]], ids=["EMA", "AdamW", "both"])
def test_resuming_gives_the_same_to_the_bit(tiny, tmp_path, keys):
    def config(name: str):
        return tiny("quickstart.yaml", *keys, "OUTPUT_DIR", str(tmp_path / name), "DATASETS.TEST", "[]")

    Run(config("whole")).start()
    with stopping_at(Trainer, 4):
        Run(config("parted")).start()
    assert last_checkpoint(tmp_path / "parted").name == "model_0000002.pth"
    torch.manual_seed(12345)
    Run(config("parted"), resume=True).start()
    a, b = (load_checkpoint(tmp_path / name / "model_final.pth") for name in ("whole", "parted"))
    for name in ("model", "unaveraged") if keys != ADAMW else ("model",):
        assert_same_tensors(a[name], b[name])
    for x, y in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert_same_tensors(x, y)


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (EMA, [], "another SOLVER.EMA.ENABLED"),
        ([], EMA, "another SOLVER.EMA.ENABLED"),
        (SGD, [], "by SGD, this config asks for .* by AdamW"),
        ([], SGD, "by AdamW, this config asks for .* by SGD"),
    ],
)
def test_another_optimizer_or_mean_is_refused_on_resume(tiny, then, now, said):
    short = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"]
    Run(tiny("quickstart.yaml", *then, *short)).start()
    with pytest.raises(ValueError, match=said):
        Run(tiny("quickstart.yaml", *now, "DATASETS.TEST", "[]"), resume=True)


def test_a_training_without_progress_ends(tiny):
    """With no learning the first evaluation stays the best; two more, and the training is over, also when resumed."""
    keys = [
        "SOLVER.BASE_LR",
        "1e-12",
        "TEST.EVAL_PERIOD",
        "1",
        "TEST.PATIENCE",
        "2",
        "MODEL.RESNET_BACKBONE.NORM",
        "GN",
    ]
    keys += ["MODEL.RESNET_BACKBONE.NORM", "GN", "SOLVER.MAX_ITER", "30", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = tiny("quickstart.yaml", *keys)
    Run(cfg).start()
    output = Path(cfg.OUTPUT_DIR)
    final = load_checkpoint(output / "model_final.pth")
    assert (final["iteration"], final["best"][1]) == (3, 1)
    assert read_facts(output / "inference").dataset == "shapes_val"
    again = Run(tiny("quickstart.yaml", *keys), resume=True)
    again.start()
    assert again.trainer.iteration == 3


def test_patience_needs_evaluations(tiny):
    with pytest.raises(ValueError, match="TEST.EVAL_PERIOD is 0: write after how many iterations"):
        Run(tiny("quickstart.yaml", "TEST.PATIENCE", "2", "TEST.EVAL_PERIOD", "0"))
