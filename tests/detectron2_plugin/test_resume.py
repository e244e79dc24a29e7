"""A training on Detectron2 that ends in the middle goes on to the same weights, to the bit, in the same order."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run, find_resumed_in_all_processes  # noqa: E402
from resnet_backbone.detectron2_plugin.trainer import Trainer  # noqa: E402
from resnet_backbone.engine.batches import DataError  # noqa: E402
from resnet_backbone.engine.command_line import Interrupted  # noqa: E402
from resnet_backbone.engine.signals import catching_signals  # noqa: E402
from resnet_backbone.files.checkpoints import last_checkpoint, write_checkpoint  # noqa: E402
from tests.faults.runs import SMALL, equal  # noqa: E402
from tests.helpers import own_sets  # noqa: E402

KEYS = ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "6", "SOLVER.STEPS", "(6,)"]


class Killed(BaseException):
    """Nothing of ours or Detectron2's catches it."""


@pytest.fixture
def config(load_script, shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    tiny = [*SMALL, *KEYS]

    def load(name, *words, file="quickstart.yaml"):
        return load_config(file, [*tiny, "OUTPUT_DIR", str(tmp_path / name), *words])

    return load


def run(cfg, **options) -> Path:
    with catching_signals():
        Run(cfg, **options).start()
    return Path(cfg.OUTPUT_DIR)


def assert_the_same(a: Path, b: Path) -> None:
    one, other = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (a, b))
    assert equal(one["model"], other["model"])
    assert equal(*(file["trainer"]["_trainer"]["optimizer"]["state"] for file in (one, other)))
    assert one["iteration"] == other["iteration"] and one["best"] == other["best"] is not None
    for folder in (a, b):
        numbers = [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("iteration", [4, 6])
def test_killed(config, monkeypatch, iteration):
    """After 6 iterations a checkpoint is there, and the evaluation that follows it is not: it is made up for."""
    whole = run(config("whole"))
    step, test = Trainer.run_step, Trainer.test

    def killing_step(self):
        if self.iter == iteration:
            raise Killed
        step(self)

    def killing_test(self, *args):
        if self.iter == 5:
            raise Killed
        return test(self, *args)

    name, killing = ("run_step", killing_step) if iteration == 4 else ("test", killing_test)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Trainer, name, killing)
        run(config("parted"))
    torch.manual_seed(12345)  # must not matter
    assert_the_same(whole, run(config("parted"), resume=True))


def test_the_records_of_iterations_that_are_done_again(config):
    """Those that a killed run wrote after its last checkpoint are taken out, and what is written then is there."""
    folder = run(config("out", "SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "0"))
    records = folder / "metrics.json"
    expected = [json.loads(line)["iteration"] for line in records.read_text().splitlines()]
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    records.write_text("".join(json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\n" for iteration in (1, 4)))
    run(config("out", "SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "0"), resume=True)
    assert [json.loads(line)["iteration"] for line in records.read_text().splitlines()] == [1, *expected]


ON_SHAPES = [
    *("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNET_BACKBONE.NORM", "BN"),
    *("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)", "MODEL.FPN.OUT_CHANNELS", "16"),
]


@pytest.mark.parametrize(
    ("file", "iteration", "words"),
    [
        ("quickstart.yaml", 4, ()),
        ("quickstart.yaml", 6, ("TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2")),
        ("retinanet/r18_fpn.yaml", 4, ON_SHAPES),
        ("quickstart.yaml", 4, ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.LAYER_DECAY", "0.8", "SOLVER.BASE_LR", "0.0002")),
    ],
    ids=["faster", "precise_bn", "retinanet", "AdamW"],
)
def test_asked_to_end(config, monkeypatch, file, iteration, words):
    whole = run(config("whole", *words, file=file))
    step = Trainer.run_step

    def asking_step(self):
        step(self)
        if self.iter == iteration:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=f"model_000000{iteration}.pth is kept"):
        patched.setattr(Trainer, "run_step", asking_step)
        run(config("parted", *words, file=file))
    torch.manual_seed(12345)  # must not matter
    assert_the_same(whole, run(config("parted", *words, file=file), resume=True))


def test_the_normalizer_of_retinanets_losses(config, monkeypatch, tmp_path, shapes):
    """It is an attribute of Detectron2's RetinaNet that no state_dict has."""
    keys = [
        *("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0"),
        *("MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"),
        *("MODEL.FPN.OUT_CHANNELS", "32", "SOLVER.MAX_ITER", "5"),
    ]
    whole = run(config("whole", *keys, file="retinanet/r18_fpn.yaml"))
    shutil.copytree(whole, tmp_path / "parted")
    (tmp_path / "parted/last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "parted/model_final.pth").unlink()
    parted = run(config("parted", *keys, file="retinanet/r18_fpn.yaml"), resume=True)
    one, other = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole, parted))
    assert one["trainer"]["loss_normalizer"] == other["trainer"]["loss_normalizer"] != 100
    for key, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][key]), key


def test_data_that_has_changed_is_told(config, shapes, tmp_path, capsys):
    path = tmp_path / "train.json"
    document = json.loads((shapes / "shapes/annotations/train.json").read_text())
    path.write_text(json.dumps(document))
    own = own_sets(own=(path, shapes / "shapes/train"))
    words = [*own, "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"]
    words += ["SOLVER.STEPS", "()"]
    run(config("out", *words))
    capsys.readouterr()
    Run(config("out", *words), resume=True)
    assert "is not what it was" not in capsys.readouterr().out
    document["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(document))
    Run(config("out", *words), resume=True)
    assert "DATASETS.TRAIN own is not what it was when the checkpoint was written" in capsys.readouterr().out


def test_a_machine_without_the_checkpoint_is_refused(in_two_processes, tmp_path):
    """Detectron2 reads it in every process from its own OUTPUT_DIR."""
    for rank in range(2):
        write_checkpoint(tmp_path / f"m{rank}", "model_0.pth", {"weight": torch.zeros(3)})

    def find(rank, folder):
        return find_resumed_in_all_processes(folder / f"m{rank}").state.name

    shutil.copy(tmp_path / "m0/model_0.pth", tmp_path / "m1")
    assert in_two_processes(find) == ["model_0.pth"] * 2
    for path in (tmp_path / "m1").iterdir():
        path.unlink()
    for answer in in_two_processes(find):
        assert "the last checkpoint in OUTPUT_DIR" in answer and "'none' in process 1" in answer


def test_an_image_that_turns_unreadable(config, monkeypatch, shapes, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in (shapes / "shapes/train").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    own = own_sets(own=(shapes / "shapes/annotations/train.json", images))
    words = [*own, "DATASETS.TRAIN", "('own',)"]
    whole = run(config("whole", *words))
    step = Trainer.run_step
    kept = {path: path.read_bytes() for path in images.iterdir()}

    def spoiling_step(self):
        if self.iter == 4:
            for path in kept:
                path.write_bytes(b"no image")
        step(self)

    told = pytest.raises(DataError, match=r"(?s)\.jpg: cannot be read as an image .*model_0000003.pth is kept")
    with monkeypatch.context() as patched, told:
        patched.setattr(Trainer, "run_step", spoiling_step)
        run(config("parted", *words))
    for path, content in kept.items():
        path.write_bytes(content)
    assert_the_same(whole, run(config("parted", *words), resume=True))


@pytest.mark.parametrize(("period", "kept"), [("3", "model_0000002.pth"), ("0", "model_final.pth")])
def test_a_test_image_that_turns_unreadable(config, shapes, tmp_path, period, kept):
    """In an evaluation between two steps, and in the last one."""
    images = tmp_path / "images"
    shutil.copytree(shapes / "shapes/val", images)
    own = own_sets(own=(shapes / "shapes/annotations/val.json", images))
    words = [*own, "DATASETS.TEST", "('own',)", "DATALOADER.NUM_WORKERS", "1"]
    words += ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "5", "TEST.EVAL_PERIOD", period]
    prepared = Run(config("out", *words))
    next(images.iterdir()).write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"\A\S+\.jpg: cannot be read as an image .*\n.*{kept} is kept"):
        prepared.start()
    last = last_checkpoint(tmp_path / "out")
    assert last.name == kept
    assert torch.load(last, weights_only=True)["iteration"] == (2 if period == "3" else 3)


def test_an_evaluation_that_fails_keeps_what_was_learned(config, monkeypatch, tmp_path, caplog):
    def failing(*args, **options):
        raise OSError("the test images are gone")

    cfg = config("out", "TEST.EVAL_PERIOD", "5")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="test images are gone"):
        patched.setattr("resnet_backbone.detectron2_plugin.trainer.evaluate", failing)
        run(cfg)
    assert last_checkpoint(tmp_path / "out").name == "model_0000004.pth"
    run(config("out", "TEST.EVAL_PERIOD", "5", "SOLVER.MAX_ITER", "5", "SOLVER.STEPS", "()"), resume=True)
    assert torch.load(tmp_path / "out/model_final.pth", weights_only=True)["iteration"] == 4
    with pytest.raises(ValueError, match="has done 5 iterations: write SOLVER.MAX_ITER 5 or more, not 3"):
        run(config("out", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()"), resume=True)


def test_one_that_diverges_says_why_and_keeps_the_last_good_checkpoint(config, tmp_path):
    run(config("out", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()"))
    with pytest.raises(FloatingPointError) as caught:
        run(config("out", "SOLVER.BASE_LR", "1e12", "SOLVER.MAX_ITER", "50"), resume=True)
    message = str(caught.value)
    for part in ("not finite", "on images [", "times the usual", "The last good checkpoint is"):
        assert part in message
    last = last_checkpoint(tmp_path / "out")
    tensors = torch.load(last, weights_only=True)["model"].values()
    assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point())
