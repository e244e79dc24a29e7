"""Training for real on tiny data: it learns, resumes to the bit wherever it was killed, and packages itself."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import resnet_backbone
from resnet_backbone.classification.config import load_config
from resnet_backbone.classification.network import load_checkpoint
from resnet_backbone.classification.run import Run, Trainer
from resnet_backbone.files.checkpoints import last_checkpoint
from resnet_backbone.metrics.run_facts import read_facts
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import read_weights
from tests.faults.runs import equal
from tests.helpers import json_lines, stopping_at
from tests.processes import Forked, script


def run(cfg, **options):
    return Run(cfg, **options).start()


def assert_same_end(first: Path, second: Path) -> None:
    a, b = (load_checkpoint(folder / "model_final.pth") for folder in (first, second))
    for key in ("model", "unaveraged", "optimizer", "iteration", "best"):
        assert equal(a.get(key), b.get(key)), key


def test_it_learns_and_leaves_what_it_should(tiny, tmp_path):
    schedule = ["SOLVER.MAX_ITER", "40", "SOLVER.STEPS", "(30,)", "SOLVER.IMS_PER_BATCH", "12"]
    cfg = tiny("cifar10_resnet20.yaml", *schedule, "TEST.EVAL_PERIOD", "20")
    metrics = run(cfg)
    output = tmp_path / "output"
    assert metrics.num_images == 15 and metrics.top1_error < 10
    names = {path.name for path in output.iterdir() if not path.name.startswith("events.")}
    assert names >= {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth", "weights.pth"}
    written = json.loads((output / "inference/metrics.json").read_text())
    assert written["classification"]["top1_error"] == metrics.top1_error
    facts = read_facts(output / "inference")
    assert (facts.engine, facts.num_images, facts.class_names) == ("classification", 15, ["blue", "green", "red"])
    assert facts.parameters == sum(p.numel() for p in create_model("cifar_resnet20", num_classes=3).parameters())
    training = [record for record in json_lines(output / "metrics.json") if "total_loss" in record]
    assert [record["iteration"] for record in training] == [19, 39]
    assert training[-1]["total_loss"] < training[0]["total_loss"]
    assert training[-1]["lr"] == pytest.approx(0.002)
    assert all(0 <= record["train_error"] <= 100 for record in training)
    key = f"{cfg.DATASETS.TEST[0]}/classification/top1_error"
    assert [record["iteration"] for record in json_lines(output / "metrics.json") if key in record] == [19, 39]


@pytest.mark.parametrize("on_device", ["True", "False"])
def test_a_step_is_that_of_a_plain_loop(tiny, on_device):
    """Loss, gradients, decay, momentum and schedule against torch used by hand on the same batches."""
    cfg = tiny("cifar10_resnet20.yaml", "DATALOADER.ON_DEVICE", on_device, "SOLVER.LABEL_SMOOTHING", "0.1")
    ours = Run(cfg)
    theirs = create_model("cifar_resnet20", num_classes=3).to(memory_format=torch.channels_last)
    theirs.load_state_dict(ours.model.state_dict())
    batches, again = ours._make_batches(0), ours._make_batches(0)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    ours.model.train(), theirs.train()
    for iteration in range(6):
        recorded, _ = ours.trainer._step(batches)
        ours.trainer.iteration += 1
        images, labels = next(again)
        factor = 0.1 if iteration < 2 else 1.0  # the warm-up of 110 layers
        optimizer.param_groups[0]["lr"] = 0.02 * factor * (0.1 if iteration >= 4 else 1.0)
        logits = theirs(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(recorded["total_loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(recorded["train_error"]) == pytest.approx(100 * (logits.argmax(1) != labels).float().mean().item())
    for (name, a), b in zip(ours.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_accumulated_passes_make_the_step_of_the_whole_batch(tiny):
    """Without batch norm, whose statistics are of a pass."""
    weights = {}
    for passes in ("1", "3"):
        keys = ["MODEL.NORM", "GN", "SOLVER.ACCUMULATION_STEPS", passes, "SOLVER.MAX_ITER", "2", "INPUT.PAD", "0"]
        ready = Run(tiny("cifar10_resnet20.yaml", *keys, "INPUT.RANDOM_FLIP", "none", "DATASETS.TEST", "[]"))
        ready.start()
        weights[passes] = ready.model.state_dict()
    for name, tensor in weights["1"].items():
        torch.testing.assert_close(tensor, weights["3"][name], rtol=1e-4, atol=1e-6, msg=name)


VARIANTS = {
    "on the device": [],
    "from files": ["DATALOADER.ON_DEVICE", "False"],
    "from files, by workers": ["DATALOADER.ON_DEVICE", "False", "DATALOADER.NUM_WORKERS", "2"],
    "stochastic depth": ["MODEL.STOCHASTIC_DEPTH", "0.5"],
    "bfloat16": ["SOLVER.AMP.ENABLED", "True"],
    "in parts": ["SOLVER.ACCUMULATION_STEPS", "2"],
    "AdamW, averaged": ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "0.5"],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [1, 4])
def test_resuming_gives_the_same_weights_to_the_bit(tiny, tmp_path, variant, stop):
    """Stopped before the first checkpoint, and between two."""

    def config(folder):
        return tiny("cifar10_resnet20.yaml", *VARIANTS[variant], "OUTPUT_DIR", str(tmp_path / folder))

    run(config("whole"))
    with stopping_at(Trainer, stop):
        run(config("parted"))
    torch.manual_seed(12345)  # must not matter
    run(config("parted"), resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parted")


def test_images_that_changed_class_are_told_on_resume(tiny, tmp_path, colors, capsys):
    data = tmp_path / "data"
    shutil.copytree(colors / "train", data)
    keys = ["DATASETS.TRAIN", f"['{data}']", "DATASETS.TEST", "[]", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"]
    run(tiny("cifar10_resnet20.yaml", *keys))
    capsys.readouterr()
    Run(tiny("cifar10_resnet20.yaml", *keys), resume=True)
    assert "is not what it was" not in capsys.readouterr().out
    (data / "red/0.png").rename(data / "blue/from_red.png")
    Run(tiny("cifar10_resnet20.yaml", *keys), resume=True)
    assert f"DATASETS.TRAIN {data} is not what it was when the checkpoint was written" in capsys.readouterr().out


PATIENT = [*VARIANTS["AdamW, averaged"], "TEST.EVAL_PERIOD", "3", "TEST.PATIENCE", "4", "SOLVER.BASE_LR", "0.0001"]


@pytest.mark.parametrize("more", [[], PATIENT], ids=["SGD", "AdamW, averaged, patient"])
def test_a_process_killed_at_any_moment_goes_on_to_the_same_weights(tiny, tmp_path, more):
    """SIGKILL after random times, a checkpoint every second iteration: whatever was being done is done again."""
    keys = ["SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "(20,)", *more]
    whole = tiny("cifar10_resnet20.yaml", *keys, "OUTPUT_DIR", str(tmp_path / "whole"))
    run(whole)
    cfg = tiny("cifar10_resnet20.yaml", *keys, "OUTPUT_DIR", str(tmp_path / "killed"))
    config = tmp_path / "killed.yaml"
    config.write_text(cfg.dump())
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(30):
        process = Forked(script("tools/train_classifier.py", "--config-file", config, "--resume"))
        begun = process.wait_for(lambda process=process: "decoding the 24 images" in process.output)
        if begun and kills < 3:
            time.sleep(rng.uniform(0, 0.6))
            process.send(signal.SIGKILL)
            kills += process.finish()[0] == -signal.SIGKILL
            continue
        status, output = process.finish()
        assert status == 0, output
        break
    assert kills == 3
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_share_the_images_and_leave_none_out(tiny, command_line, tmp_path):
    cfg = tiny("cifar10_resnet20.yaml", "DATALOADER.ON_DEVICE", "False")
    done = command_line(cfg, "--num-gpus", "2")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.strip().splitlines()[-1])
    assert printed[cfg.DATASETS.TEST[0]]["classification"]["num_images"] == 15  # odd: one process has one more
    weights = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/weights.pth", "OUTPUT_DIR", str(tmp_path / "alone")]
    figures = run(tiny("cifar10_resnet20.yaml", *weights), eval_only=True)
    together = printed[cfg.DATASETS.TEST[0]]["classification"]
    assert figures.top1_error == together["top1_error"]
    assert figures.loss == pytest.approx(together["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", []),
        ("resnet18", ["MODEL.SHORTCUT", "A"]),
        ("resnet50", ["MODEL.STRIDE_IN_1X1", "True"]),
        ("plain18", []),
        ("cifar_resnet20", ["MODEL.PREACTIVATION", "True"]),
        ("cifar_fitnet19", []),
        ("cifar_highway32", []),
        pytest.param("vgg16_bn", [], marks=pytest.mark.slow),  # a gigabyte
    ],
)
def test_the_packaged_weights_say_what_they_are(tiny, tmp_path, arch, options):
    size = "64" if arch.startswith("vgg") else "32"
    keys = ["MODEL.ARCH", arch, *options, "SOLVER.MAX_ITER", "1", "INPUT.SIZE", size, "INPUT.RESIZE_TEST", size]
    ready = Run(tiny("cifar10_resnet20.yaml", *keys, "DATASETS.TEST", "[]"))
    ready.start()
    weights = read_weights(tmp_path / "output" / "weights.pth")
    assert weights.arch == arch and weights.class_names == ("blue", "green", "red")
    assert weights.input_format == ready.input_format and weights.test_transform == ready.test_transform
    assert (weights.shortcut or "", weights.preactivation) == (ready.model.shortcut, ready.model.preactivation)
    assert bool(weights.stride_in_1x1) is ready.model.stride_in_1x1
    again = resnet_backbone.create_model(arch, weights=tmp_path / "output" / "weights.pth", num_classes=3).eval()
    ready.model.eval()
    with torch.inference_mode():
        images = torch.rand(1, 3, int(size), int(size))
        torch.testing.assert_close(again(images), ready.model(images), rtol=1e-4, atol=1e-5)


def test_training_goes_on_from_packaged_weights_with_other_classes(tiny, tmp_path):
    run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    state = load_checkpoint(tmp_path / "output" / "model_final.pth")["model"]
    only_two = tmp_path / "two"
    for split in ("train", "test"):
        for name in ("blue", "red"):
            (only_two / split).mkdir(parents=True, exist_ok=True)
            (only_two / split / name).symlink_to(Path(tiny("cifar10_resnet20.yaml").DATASETS.TRAIN[0]) / name)
    data = ["DATASETS.TRAIN", str([str(only_two / "train")]), "DATASETS.TEST", str([str(only_two / "test")])]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output" / "weights.pth"), "OUTPUT_DIR", str(tmp_path / "fine")]
    ready = Run(tiny("cifar10_resnet20.yaml", *data, *weights))
    assert ready.model.linear.out_features == 2
    assert torch.equal(ready.model.res4[2].conv2.weight, state["res4.2.conv2.weight"])


@pytest.mark.parametrize("where", ["loss", "weight"])
def test_what_diverges_stops_and_writes_no_checkpoint(tiny, monkeypatch, where):
    ready = Run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "60", "SOLVER.CHECKPOINT_PERIOD", "3"))
    step = Trainer._step

    def spoil(self, batches):
        done = step(self, batches)
        if self.iteration == 4:
            value = torch.tensor(float("nan"))
            if where == "weight":
                with torch.no_grad():
                    self.module.linear.bias[0] = value
            else:
                self._unchecked = self._unchecked + value
        return done

    monkeypatch.setattr(Trainer, "_step", spoil)
    with pytest.raises(FloatingPointError, match=r"SOLVER.BASE_LR is 0.02.*\n(.*\n)*.*model_0000002.pth, from before"):
        ready.start()
    assert last_checkpoint(ready.output_dir).name == "model_0000002.pth"


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_weights_up_to_rounding(tiny, tmp_path):
    for name in ("True", "False"):
        keys = ["MODEL.COMPILE", name, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / name)]
        run(tiny("cifar10_resnet20.yaml", *keys, "DATASETS.TEST", "[]"))
    a, b = (load_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in ("True", "False"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-4, msg=name)


def test_the_whole_paper_schedule_is_what_the_config_says():
    cfg = load_config("classification/cifar10_resnet110.yaml")
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, list(solver.STEPS), solver.IMS_PER_BATCH) == (64000, [32000, 48000], 128)
    assert (solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY, solver.GAMMA) == (0.1, 0.9, 1e-4, 0.1)
    assert (solver.WARMUP_METHOD, solver.WARMUP_FACTOR, solver.WARMUP_ITERS) == ("constant", 0.1, 400)
