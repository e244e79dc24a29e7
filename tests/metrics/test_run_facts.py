"""What is on record of a run: its cost against published figures, its conditions, and the course of its training."""

import hashlib
import json
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from resnet_backbone.metrics.run_facts import (
    CostMeter,
    device_name,
    git_commit,
    peak_memory_mib,
    read_facts,
    read_training,
    write_facts,
)

CPU = torch.device("cpu")


@pytest.fixture
def written(tmp_path):
    annotations = tmp_path / "val.json"
    annotations.write_text("{}")
    model = nn.Linear(2, 3)
    with CostMeter(model, CPU) as meter:
        model(torch.zeros(4, 2))
    return write_facts(
        tmp_path,
        meter,
        engine="torchvision",
        device=CPU,
        processes=2,
        dataset="mine",
        annotations=annotations,
        image_folder=tmp_path,
        num_images=4,
        class_names=("a", "b"),
    )


def test_what_is_written_is_read(written, tmp_path):
    assert read_facts(tmp_path) == written
    assert written.annotations_sha256 == hashlib.sha256(b"{}").hexdigest()
    assert (written.parameters, written.multiply_adds) == (9, 6)
    assert Path(written.annotations).is_absolute() and written.class_names == ["a", "b"]
    assert f"{torch.get_num_threads()} threads" in written.device == device_name(CPU)


def test_the_commit_is_gits():
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(git_commit().removesuffix("-dirty"))


def test_a_run_without_facts_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"facts\.json; evaluate again with resnet-backbone train --eval-only"):
        read_facts(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", json.dumps({"engine": "torchvision"})])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(ValueError, match="is not what resnet-backbone train writes"):
        read_facts(tmp_path)


@pytest.mark.parametrize("name", ["ResNet50", "VGG16"])
def test_multiply_adds_and_parameters_are_the_published_ones(name):
    published = torchvision.models.get_weight(f"{name}_Weights.IMAGENET1K_V1").meta
    model = torchvision.models.get_model(name.lower(), weights=None).eval()
    with torch.inference_mode(), CostMeter(model, CPU) as meter:
        model(torch.zeros(1, 3, 224, 224))
    assert meter.multiply_adds / 1e9 == pytest.approx(published["_ops"], rel=1e-3)
    assert meter.parameters == published["num_params"]


class Areas(nn.Module):
    """Convolves every image of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.conv(image) for image in images]


def test_a_mean_image_of_a_list():
    model = Areas()
    images = [torch.rand(3, 10, 20), torch.rand(3, 30, 20)]
    with CostMeter(model, CPU) as meter:
        measured = model(images)
    torch.testing.assert_close(measured, model(images), rtol=0, atol=0)
    assert meter.multiply_adds == 8 * 3 * 9 * (10 * 20 + 30 * 20) / 2


def test_speed_needs_a_few_images_first():
    model = Areas()
    with CostMeter(model, CPU) as meter:
        assert meter.multiply_adds is None
        for _ in range(4):
            model([torch.rand(3, 8, 8)])
        assert meter.images_per_s is None
        model([torch.rand(3, 8, 8)] * 3)
    assert meter.images_per_s > 0
    counted = meter.multiply_adds
    model([torch.rand(3, 80, 80)])  # over: not measured any more
    assert meter.multiply_adds == counted


class Disturbed(Areas):
    """Takes a second over its sixth call, a tenth over others, as on a machine that does something else for a while."""

    calls = 0
    clock = 0.0

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        self.calls += 1
        self.clock += 1.0 if self.calls == 6 else 0.1
        return super().forward(images)


def test_one_slow_call_does_not_spoil_the_speed(monkeypatch):
    model = Disturbed()
    monkeypatch.setattr("resnet_backbone.metrics.run_facts.time.perf_counter", lambda: model.clock)
    with CostMeter(model, CPU) as meter:
        for _ in range(4 + 7):
            model([torch.rand(3, 8, 8)] * 2)
    assert meter.images_per_s == pytest.approx(20)


def test_memory_of_this_process_is_more_than_torch_and_less_than_the_machine():
    assert 50 < peak_memory_mib(CPU) < 100_000


class Failing(Areas):
    """Fails on two images, after it has computed."""

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        found = super().forward(images)
        if len(images) == 2:
            raise KeyboardInterrupt
        return found


def test_calls_that_fail_do_not_count_and_leave_no_mode_behind():
    model, image = Failing(), torch.rand(3, 8, 8)
    before = torch._C._len_torch_dispatch_stack()
    with pytest.raises(KeyboardInterrupt), CostMeter(model, CPU):
        model([image, image])
    assert torch._C._len_torch_dispatch_stack() == before
    with CostMeter(model, CPU) as meter:
        for images in ([image, image], [image], [image, image], [image]):
            with suppress(KeyboardInterrupt):
                model(images)
    assert torch._C._len_torch_dispatch_stack() == before
    assert meter.multiply_adds == 8 * 3 * 9 * 8 * 8


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
    """Stopped after 60, resumed from 40."""
    path = write(tmp_path, record(19, 3.0), record(39, 2.0), record(59, 9.0), record(49, 1.5), record(69, 1.0))
    training = read_training(path)
    assert training.loss == ((20, 3.0), (40, 2.0), (50, 1.5), (70, 1.0))
    assert training.iterations == 70 and training.seconds == 35


def test_errors_of_a_classifier(tmp_path):
    """Stopped after 60 and resumed from 40, where it was evaluated: the rules of the loss and of AP."""
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


def test_a_run_started_again_in_the_same_folder(tmp_path):
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
