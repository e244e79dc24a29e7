"""Plans: the schedules by arithmetic, every command loads, and the hours are those of the measurements."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resnet_backbone.config.merge import find_config_file
from resnet_backbone.reproduce.jobs import Jobs, Schedule, TableOptions, scale_schedule, schedule_of
from resnet_backbone.reproduce.plan import estimate_text, find_gpu, gpu_hours, missing_data, plan_text
from resnet_backbone.reproduce.tables import Cost, all_tables, cited_tables
from resnet_backbone.torchvision_plugin.config import load_config
from tests.helpers import load_training

TOOLS = "tools"
TABLES = all_tables()
COSTS = {row.training.name: row.training.cost for table in TABLES.values() for row in table.rows}


def measured_cost(seconds_per_step: float) -> Cost:
    """Of Detectron2's zoo: 16 images a step, two on each of eight V100."""
    return Cost("", (seconds_per_step / 2, seconds_per_step / 2))


def jobs_of(name: str, **options: object) -> Jobs:
    return Jobs(all_tables()[name], TableOptions(Path("output"), engine="torchvision", **options), load_training)


@pytest.mark.parametrize(("gpus", "images", "rate", "iterations"), [(8, 16, 0.001, 1), (1, 2, 0.000125, 8)])
def test_the_plan_of_table_8(gpus, images, rate, iterations):
    text = plan_text(jobs_of("8", gpus=gpus), TOOLS, "V100")
    # The paper: 240k iterations at the first rate, 80k at a tenth of it.
    schedule = (
        f"{320_000 * iterations:,} iterations of {images} images, learning rate {rate:g}, x0.1 at "
        f"{240_000 * iterations:,}, warm-up 0"
    )
    assert text.count(schedule) == 2
    commands = [shlex.split(line.strip()) for line in text.splitlines() if line.strip().startswith("$ ")]
    configs = ["configs/paper/frcnn_vgg16.yaml", "configs/paper/frcnn_r101.yaml"]
    for words, config in zip(commands, configs, strict=True):
        assert words[1:5] == ["python", "tools/train_net.py", "--config-file", config]
        opts = words[words.index("OUTPUT_DIR") :]
        cfg = load_config(config, opts)
        assert words.count("--num-gpus") == (gpus > 1)
        assert cfg.SOLVER.IMS_PER_BATCH == images
        assert cfg.SOLVER.MAX_ITER == 320_000 * iterations
        assert list(cfg.SOLVER.STEPS) == [240_000 * iterations]
        assert cfg.SOLVER.BASE_LR == pytest.approx(rate)
        assert cfg.SOLVER.MAX_ITER // cfg.SOLVER.CHECKPOINT_PERIOD == 16  # of a gigabyte each, on any number of GPUs
    assert "resnet-backbone prepare coco --year 2014" in text
    assert ("SOLVER.ACCUMULATION_STEPS 8" in text) is (gpus == 1)


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("name", TABLES)
def test_every_command_loads_and_finds_what_came_before_it(name, gpus):
    table = TABLES[name]
    jobs = Jobs(table, TableOptions(Path("output"), gpus), load_training)
    made: set[str] = set()
    names: set[str] = set()
    for job in jobs:
        words = job.command(TOOLS)
        assert find_config_file(words[words.index("--config-file") + 1])
        cfg = load_training(job.training, words[words.index("OUTPUT_DIR") :])
        assert job.eval_only or cfg.SOLVER.IMS_PER_BATCH % gpus == 0
        needed = [cfg.MODEL.WEIGHTS] if cfg.MODEL.WEIGHTS.startswith("output/") else []
        needed += [f"{folder}/model_final.pth" for folder in cfg.TEST.ENSEMBLE]
        assert set(needed) <= made, job.name
        assert bool(needed) or not job.eval_only or job.training.weights
        published = cfg.MODEL.WEIGHTS.startswith("cifar10://") and not job.eval_only  # on what another job evaluates
        assert set(job.needs) <= names and bool(job.needs) == bool(needed or published)
        made |= {f"{cfg.OUTPUT_DIR}/model_final.pth"}
        made |= {f"{cfg.OUTPUT_DIR}/weights.pth"} if job.training.classifier else set()
        names.add(job.name)
    for row in jobs.table.rows:
        assert len(jobs.of_row(row.key)) == (1 if row.members else jobs.table.seeds)
    for pair in jobs.table.pairs:
        assert all(jobs.table.row(key) for key in pair)


def test_tables_share_trainings_with_one_schedule():
    """The same folder in two tables must mean the same command."""
    commands: dict[str, list[str]] = {}
    for table in all_tables().values():
        for job in Jobs(table, TableOptions(Path("output"), 1), load_training):
            assert commands.setdefault(job.name, job.command(TOOLS)) == job.command(TOOLS)


@pytest.mark.parametrize(
    ("images", "rate", "iterations", "steps", "warmup"),
    # Detectron2's 1x schedule on fewer images, by the linear rule.
    [
        (16, 0.02, 90_000, (60_000, 80_000), 1_000),
        (8, 0.01, 180_000, (120_000, 160_000), 2_000),
        (4, 0.005, 360_000, (240_000, 320_000), 4_000),
        (2, 0.0025, 720_000, (480_000, 640_000), 8_000),
        (32, 0.04, 45_000, (30_000, 40_000), 500),
    ],
)
def test_the_linear_rule(images, rate, iterations, steps, warmup):
    cfg = load_config("faster/r101_fpn.yaml")
    schedule = scale_schedule(cfg, images)
    assert schedule == Schedule(images, pytest.approx(rate), iterations, steps, warmup, 0, 5_000 * 16 // images)
    assert schedule_of(load_config("faster/r101_fpn.yaml", schedule.overrides(cfg))) == schedule
    assert schedule.overrides(load_config("faster/r101_fpn.yaml", schedule.overrides(cfg))) == ()


def test_the_linear_rule_is_that_of_detectron2():
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.engine import DefaultTrainer

    from resnet_backbone.detectron2_plugin.config import load_config as load_for_detectron2

    cfg = load_for_detectron2("faster/r101_fpn.yaml", ["SOLVER.REFERENCE_WORLD_SIZE", "8", "TEST.EVAL_PERIOD", "5000"])
    for gpus in (1, 3, 4, 16):
        theirs = DefaultTrainer.auto_scale_workers(cfg, gpus)
        assert scale_schedule(cfg, 2 * gpus) == replace(
            schedule_of(theirs), base_lr=pytest.approx(theirs.SOLVER.BASE_LR)
        )


def test_a_rate_of_one_is_a_rate():
    """0.001 for 16 images; as a word, 1 would be no rate but a whole number, which the config refuses."""
    assert next(iter(jobs_of("8", images_per_step=16_000))).cfg.SOLVER.BASE_LR == 1.0


def test_images_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="5 images a step cannot be shared equally among 2 GPUs"):
        jobs_of("8", gpus=2, images_per_step=5)
    assert next(iter(jobs_of("8", gpus=3))).cfg.SOLVER.IMS_PER_BATCH == 6
    assert next(iter(jobs_of("8", gpus=2, images_per_step=8))).cfg.SOLVER.BASE_LR == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("cost", "hours"),
    # s a step x 90,000 steps x 8 GPUs / 3600; VGG-16 is an estimate of 0.30 to 0.45 s.
    [
        (measured_cost(0.619), (124, 124)),
        (COSTS["frcnn_r101"], (57, 57)),
        (measured_cost(0.452), (90, 90)),
        (COSTS["frcnn_vgg16"], (60, 90)),
    ],
)
def test_gpu_hours_on_v100(cost, hours):
    cfg = load_config("faster/r101_fpn.yaml")
    for images in (16, 2):  # the linear rule changes no hour
        found = gpu_hours(cost, scale_schedule(cfg, images), find_gpu("Tesla V100-SXM2-16GB"))
        assert tuple(map(round, found)) == hours


def test_the_counted_hours_are_those_of_the_model():
    """373 G multiply-adds an image, 320,000 x 16 images, 9.45 TFLOP/s."""
    (hours, _) = gpu_hours(COSTS["paper_frcnn_r101"], next(iter(jobs_of("8", gpus=8))).schedule, find_gpu("V100"))
    assert hours == pytest.approx(2 * 373e9 * 320_000 * 16 / 9.45e12 / 3600)
    assert round(hours) == 112


def test_what_is_not_known_is_said():
    cost, schedule = measured_cost(0.619), next(iter(jobs_of("8"))).schedule
    assert "not known for 'GTX 970' (known: V100, A100, H100, H200)" in estimate_text(cost, schedule, 1, "GTX 970")
    assert "nobody has measured" in estimate_text(None, schedule, 1, "V100")
    assert "this CPU not known: --measure" in estimate_text(cost, schedule, 1, "")
    assert "nobody has measured" in estimate_text(Cost("", core_seconds=1), schedule, 1, "V100")
    assert f"about {schedule.max_iter * schedule.images_per_step / 3600:.1f} h on one core" in estimate_text(
        Cost("", core_seconds=1), schedule, 1, ""
    )
    assert "15 h on 8 V100" in estimate_text(cost, scale_schedule(load_config("faster/r101_c4.yaml"), 16), 8, "V100")
    assert "not measured" in plan_text(jobs_of("8"), TOOLS, "NVIDIA H200")


def test_data_that_is_there_is_not_asked_for(shapes, tiny_table, monkeypatch, tmp_path):
    jobs = Jobs(tiny_table(), TableOptions(tmp_path / "output"), load_training)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    assert missing_data(jobs) == []
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert missing_data(jobs) == [(name, "resnet-backbone prepare shapes") for name in ("shapes_train", "shapes_val")]


def test_the_folders_of_a_table_do_not_depend_on_the_machine(monkeypatch, load_script, capsys):
    """The README's next command names them."""
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "V100")
        assert load_script("tools/reproduce.py").main(["--table", "bccd", "--engine", "torchvision"]) == 0
        folders = re.findall(r"OUTPUT_DIR output/reproduce/(\S+)", capsys.readouterr().out)
        assert folders == [f"bccd_{arch}_s{seed}" for seed in range(3) for arch in ("r18", "r34")]
    assert [job.name for job in jobs_of("bccd-gpu", seeds=1)] == ["bccd_vgg16_s0", "bccd_r101_s0"]


def test_the_command_line(load_script, capsys):
    reproduce = load_script("tools/reproduce.py")
    assert reproduce.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["1", *all_tables(), *cited_tables()]
    assert {str(number) for number in range(1, 15)} <= set(listed)  # every table of the paper
    assert reproduce.main(["--table", "8", "--engine", "torchvision"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"on (\d) GPUs? \(", out) == ["8", "1"]
    assert reproduce.main(["--table", "8", "--engine", "torchvision", "--gpus", "2", "--images-per-step", "3"]) == 1
    assert "error: 3 images a step" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "figures"), [("13", ["33.1", "14.4", "8.9"]), ("14", ["29.9", "26.7", "9.0"])])
def test_a_table_that_can_only_be_cited(name, figures, load_script, capsys):
    main = load_script("tools/reproduce.py").main
    assert main(["--table", name]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"# Table {name} of the paper, cited and not run") and "--ilsvrc loc" in page
    assert all(f"| {figure} " in page for figure in figures)
    for option in ("--run", "--measure"):
        assert main(["--table", name, option]) == 1
        assert f"error: table {name} is cited alone" in capsys.readouterr().err


def test_some_rows_alone(load_script, capsys):
    main = load_script("tools/reproduce.py").main
    assert main(["--table", "9", "--rows", "baseline", "ensemble", "--engine", "torchvision"]) == 0
    plan = capsys.readouterr().out
    assert "frcnn_r101_s0" in plan and "TEST.ENSEMBLE" in plan
    assert "vgg16" not in plan and "multiscale_alone" not in plan
    table = all_tables()["9"].only(["baseline", "ensemble"])
    assert table.pairs == (("baseline", "ensemble"),)
    assert main(["--table", "9", "--rows", "r101"]) == 1
    assert "table 9 has no row r101; it has vgg16, baseline, refinement" in capsys.readouterr().err
