"""The steps of a run, in their order, whatever the engine; and what the engines' runs share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_backbone.engine.batches import DataError
from resnet_backbone.engine.checkpoint import find_resumed, warn_of_other_processes
from resnet_backbone.engine.command_line import Interrupted
from resnet_backbone.engine.loop import evaluating, keeping_progress
from resnet_backbone.engine.processes import in_any_process
from resnet_backbone.engine.run import BaseRun, refuse_other_classes
from resnet_backbone.engine.signals import catching_signals, deferring_signals
from resnet_backbone.files.atomic import writing_alone
from resnet_backbone.files.checkpoints import FINAL, LAST, write_checkpoint
from resnet_backbone.torchvision_plugin.config import load_config

CHECKS = ["join", "data", "weights", "classes", "seed", "model", "fingerprints", "prepare"]


class Recording(BaseRun):
    """An engine of which every step only says that it was taken."""

    def __init__(self, cfg, *, fails_at="", **options):
        self.steps = []
        self.fails_at = fails_at
        super().__init__(cfg, **options)

    def _step(self, name, result=None):
        self.steps.append(name)
        if name == self.fails_at:
            raise ValueError(name)
        return result

    def _join_processes(self):
        self._step("join")

    def _check_data(self):
        self._step("data")

    def _find_checkpoint(self):
        return find_resumed(self.output_dir, lambda path: torch.load(path, weights_only=True))

    def _read_weights(self):
        self._step("weights")

    def _fit_classes(self):
        self._step("classes")

    def _set_seed(self):
        self._step("seed")

    def _build_model(self):
        return self._step("model", nn.Identity())

    def _data_fingerprints(self):
        return self._step("fingerprints", {"DATASETS.TRAIN x": {"sha256": "0" * 64, "images": 3}})

    def _prepare_training(self):
        self._step("prepare")

    def _begin_records(self):
        with pytest.raises(OSError, match="another run writes to"), writing_alone(self.output_dir, 0):
            pass
        self._step("records")

    def _evaluate(self):
        return self._step("evaluate", "figures")

    def _train(self):
        self._forget_earlier_run()
        return self._step("train", "figures")


@pytest.fixture
def load(tmp_path):
    return lambda *words: load_config("quickstart.yaml", ["OUTPUT_DIR", str(tmp_path / "out"), *words])


def test_every_check_comes_before_the_first_byte_in_the_output_folder(load, tmp_path):
    run = Recording(load())
    assert run.steps == CHECKS and not (tmp_path / "out").exists()
    assert run.data == {"DATASETS.TRAIN x": {"sha256": "0" * 64, "images": 3}}
    assert run.start() == "figures" and run.steps == [*CHECKS, "records", "train"]


@pytest.mark.parametrize("step", CHECKS)
def test_a_check_that_fails_leaves_no_folder(load, tmp_path, step):
    with pytest.raises(ValueError, match=step):
        Recording(load(), fails_at=step)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_reads_no_training_data(load, tmp_path):
    torch.save({}, tmp_path / "w.pth")
    run = Recording(load("MODEL.WEIGHTS", str(tmp_path / "w.pth")), eval_only=True)
    assert run.start() == "figures" and run.steps == [*CHECKS[:6], "records", "evaluate"] and run.data == {}


def test_what_training_alone_needs_is_checked_for_training_alone(load, tmp_path):
    torch.save({}, tmp_path / "w.pth")
    cfg = load("MODEL.WEIGHTS", str(tmp_path / "w.pth"))
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = 3, 2
    with pytest.raises(ValueError, match="must be a multiple of"):
        Recording(cfg)
    Recording(cfg, eval_only=True)
    cfg.SOLVER.ACCUMULATION_STEPS, cfg.MODEL.RESNET_BACKBONE.PRECISION = 1, "float16"
    with pytest.raises(ValueError, match="PRECISION float16 is for inference"):
        Recording(cfg)
    Recording(cfg, eval_only=True)


def checkpoint(folder: Path, name: str = FINAL) -> None:
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder, name, {"data": {"DATASETS.TRAIN x": {"sha256": "1" * 64, "images": 4}}})


def test_a_resumed_run_compares_and_keeps_what_is_there(load, tmp_path, caplog):
    checkpoint(tmp_path / "out")
    (tmp_path / "out/config.yaml").write_text(load("SEED", "4").dump())
    run = Recording(load("SEED", "5"), resume=True)
    assert "DATASETS.TRAIN x is not what it was" in caplog.text and "4 images then, 3 now" in caplog.text
    assert "SEED is 4 in the run so far, 5 in this command" in caplog.text
    run.start()
    assert (tmp_path / "out" / LAST).read_text() == FINAL
    Recording(load()).start()  # a new one
    assert not (tmp_path / "out" / LAST).exists() and (tmp_path / "out" / f"earlier_{FINAL}").is_file()


def test_a_checkpoint_that_another_run_has_written_meanwhile_is_not_passed_over(load, tmp_path):
    checkpoint(tmp_path / "out", "model_0000001.pth")
    run = Recording(load(), resume=True)
    checkpoint(tmp_path / "out")
    with pytest.raises(OSError, match="another run has written to"):
        run.start()
    assert run.steps == CHECKS


def test_classes_that_are_not_those_that_were_learned():
    refuse_other_classes("w.pth", ("cat", "dog"), ["cat", "dog"])
    with pytest.raises(
        ValueError, match="w.pth learned 2 classes, .* has 2, and number 0 .* 'cat' there and 'dog' here"
    ):
        refuse_other_classes("w.pth", ["cat", "dog"], ("dog", "cat"))
    with pytest.raises(ValueError, match="learned 1 classes, .* has 2, and number 1 .* is None there and 'dog' here"):
        refuse_other_classes("w.pth", ["cat"], ["cat", "dog"])


def test_what_is_true_in_one_process_all_know(in_two_processes):
    assert in_two_processes(lambda rank, _: in_any_process(rank == 1, "cpu")) == [True, True]
    assert in_two_processes(lambda rank, _: in_any_process(False, "cpu")) == [False, False]
    assert in_any_process(True, "cpu") and not in_any_process(False, "cpu")


def test_a_checkpoint_of_other_processes_is_resumed_with_a_warning(caplog):
    warn_of_other_processes(2, 2)
    assert not caplog.records
    warn_of_other_processes(8, 2)
    assert "written by 8 processes, now there are 2" in caplog.text


def test_a_batch_that_cannot_be_had_keeps_what_was_learned():
    with (
        pytest.raises(DataError, match=r"no image\nPut that right. all is kept"),
        keeping_progress(lambda: "all is kept"),
    ):
        raise DataError("no image")


def test_a_signal_that_has_ended_the_loading_processes_is_the_cause():
    stops = pytest.raises(Interrupted, match="ended by a signal. all is kept")
    with catching_signals(), deferring_signals(), stops, keeping_progress(lambda: "all is kept"):
        signal.raise_signal(signal.SIGTERM)
        raise DataError("a process that loads images has died")


def test_a_signal_ends_an_evaluation_at_once():
    stops = pytest.raises(Interrupted, match="SIGTERM, in an evaluation. all is kept")
    with catching_signals(), deferring_signals(), stops, evaluating(lambda: "all is kept"):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal was not obeyed")


def test_an_evaluation_that_fails_keeps_what_was_learned(caplog):
    with pytest.raises(KeyError, match="score"), evaluating(lambda: "all is kept"):
        raise KeyError("score")
    assert "the evaluation has failed. all is kept" in caplog.text
