"""The course of a training, from the lines that both engines write."""

from __future__ import annotations

import json

import pytest

from resnet_backbone.metrics.run_facts import read_training


def write(tmp_path, *records):
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record(iteration, loss=1.0, time=0.5, **more):
    return {"iteration": iteration, "total_loss": loss, "lr": 0.01, "time": time, **more}


def test_nothing_to_read(tmp_path):
    assert read_training(tmp_path / "metrics.json") is None
    assert read_training(write(tmp_path)) is None


def test_loss_rate_ap_and_time(tmp_path):
    path = write(
        tmp_path,
        record(19, 2.0, time=1.0),
        record(29, 1.0, time=0.5, **{"a_val/bbox/AP": 12.5, "a_val/bbox/AP50": 30.0}),
        {"iteration": 29, "b_val/bbox/AP": 3.0, "b_val/segm/AP": 2.0},
    )
    training = read_training(path)
    assert training.iterations == 30
    assert training.loss == ((20, 2.0), (30, 1.0)) and training.lr == ((20, 0.01), (30, 0.01))
    assert training.ap == {"a_val": ((30, 12.5),), "b_val": ((30, 3.0),)}
    assert training.seconds == 20 * 1.0 + 10 * 0.5


def test_what_was_done_again_counts_once(tmp_path):
    """Stopped after 60, gone on from 40."""
    path = write(tmp_path, record(19, 3.0), record(39, 2.0), record(59, 9.0), record(49, 1.5), record(69, 1.0))
    training = read_training(path)
    assert training.loss == ((20, 3.0), (40, 2.0), (50, 1.5), (70, 1.0))
    assert training.iterations == 70 and training.seconds == 35


def test_errors_of_a_classifier(tmp_path):
    """Stopped after 60 and gone on from 40, where it was evaluated: the rules of the loss and of AP."""
    top1, top5 = "cifar10_jpeg_test/classification/top1_error", "cifar10_jpeg_test/classification/top5_error"
    path = write(
        tmp_path,
        record(19, train_error=80.0),
        record(39, train_error=60.0),
        {"iteration": 39, top1: 55.0, top5: 20.0},
        record(59, train_error=50.0),
        {"iteration": 59, top1: 52.0},
        record(49, train_error=51.0),
        record(69, train_error=float("nan")),
        record(79, train_error=40.0, **{top1: 41.0}),
        {"iteration": 79, "b/classification/top1_error": 12.5},
    )
    training = read_training(path)
    assert training.train_error == ((20, 80.0), (40, 60.0), (50, 51.0), (80, 40.0))
    assert training.test_error == {"cifar10_jpeg_test": ((40, 55.0), (80, 41.0)), "b": ((80, 12.5),)}
    assert training.ap == {}


def test_a_detector_has_no_classification_errors(tmp_path):
    training = read_training(write(tmp_path, record(19), {"iteration": 19, "a/bbox/AP": 1.0}))
    assert training.train_error == () and training.test_error == {}


def test_the_same_iteration_again_counts_once(tmp_path):
    path = write(tmp_path, record(19), record(39, time=9.0), record(39, 2.0), record(59))
    training = read_training(path)
    assert training.loss == ((20, 1.0), (40, 2.0), (60, 1.0)) and training.seconds == 30


def test_an_evaluation_written_late_replaces_nothing(tmp_path):
    """As Detectron2's JSONWriter does where TEST.EVAL_PERIOD is no multiple of its period of 20."""
    late = [{"iteration": 29, "a/bbox/AP": 1.0}, {"iteration": 89, "a/bbox/AP": 3.0}]
    path = write(tmp_path, record(19), record(39), late[0], record(59), record(79), record(99), late[1])
    training = read_training(path)
    assert training.iterations == 100 and training.seconds == 50
    assert [iteration for iteration, _ in training.loss] == [20, 40, 60, 80, 100]
    assert training.ap == {"a": ((30, 1.0), (90, 3.0))}


@pytest.mark.parametrize("time", [None, float("nan")])
def test_time_that_was_not_recorded(tmp_path, time):
    assert read_training(write(tmp_path, record(19), record(39, time=time))).seconds == 0


def test_a_run_begun_anew_in_the_same_folder(tmp_path):
    assert read_training(write(tmp_path, record(19), record(39), record(19, 7.0))).loss == ((20, 7.0),)


def test_a_last_line_cut_off_is_left_out_and_another_is_refused(tmp_path):
    path = write(tmp_path, record(19), record(39))
    path.write_text(path.read_text() + '{"iteration": 59, "tot')
    assert read_training(path).iterations == 40
    path.write_text('{"iterat\n' + json.dumps(record(19)) + "\n")
    with pytest.raises(ValueError, match="line 1: no JSON.*delete that line"):
        read_training(path)
    path.write_text('{"loss": 1}\n' + json.dumps(record(19)) + "\n")
    with pytest.raises(ValueError, match="expected an object with an iteration"):
        read_training(path)
