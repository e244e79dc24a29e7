"""What the engines' runs share beside the order of their steps, which tests of each engine hold them to."""

from __future__ import annotations

import signal

import pytest

from resnet_backbone.engine.batches import DataError
from resnet_backbone.engine.checkpoint import warn_of_other_processes
from resnet_backbone.engine.launch import in_any_process
from resnet_backbone.engine.loop import evaluating, keeping_progress
from resnet_backbone.engine.run import refuse_other_classes
from resnet_backbone.engine.signals import Interrupted, catching_signals, deferring_signals


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
