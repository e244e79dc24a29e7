"""Whole runs, tiny but real: train, stop, resume, evaluate, fine-tune, in one process and in two."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from accelerate.state import AcceleratorState
from fvcore.common.config import CfgNode

from resnet_backbone.files.checkpoints import last_checkpoint
from resnet_backbone.metrics.run_facts import read_facts
from resnet_backbone.torchvision_plugin.checkpoint import load_checkpoint
from resnet_backbone.torchvision_plugin.run import Run, Trainer
from resnet_backbone.weights import InputFormat, package_weights
from tests.helpers import (
    FIGURES,
    assert_same_tensors,
    json_lines,
    mini_sets,
    own_sets,
    pycocotools_figures,
    results_of,
    stopping_at,
)

SHORT = ["SOLVER.MAX_ITER", "2", "DATASETS.TEST", "[]"]


def run(cfg: CfgNode, **options) -> dict:
    return Run(cfg, **options).start()


def model_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["model"]


def test_a_run_leaves_what_detectron2s_leaves(tiny):
    cfg = tiny("quickstart.yaml", "TEST.EVAL_PERIOD", "3")
    ready = Run(cfg)
    figures = ready.start()
    output = Path(cfg.OUTPUT_DIR)
    for name in ("config.yaml", "log.txt", "metrics.json", "model_0000002.pth", "model_final.pth", "last_checkpoint"):
        assert (output / name).stat().st_size > 0, name
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert list(output.glob("events.out.tfevents.*"))
    records = json_lines(output / "metrics.json")
    last = next(r for r in records if r["iteration"] == 5 and "total_loss" in r)
    assert last["total_loss"] == pytest.approx(sum(v for k, v in last.items() if k.startswith("loss_")), rel=0.2)
    assert {"lr", "time", "data_time", "eta_seconds", "peak_memory_mib"} <= last.keys()
    assert [r["iteration"] for r in records if "shapes_val/bbox/AP50" in r] == [2, 5]
    inference = output / "inference"
    assert json.loads((inference / "metrics.json").read_text()) == figures["shapes_val"].to_dict()
    assert len(list((inference / "pictures").glob("*.png"))) == 5 + 1
    facts = read_facts(inference)
    assert (facts.engine, facts.dataset, facts.num_images, facts.processes) == ("torchvision", "shapes_val", 5, 1)
    assert facts.parameters == sum(parameter.numel() for parameter in ready.model.parameters())
    assert facts.multiply_adds > 1e6 and facts.images_per_s > 0


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_resuming_gives_the_same_weights_to_the_bit(tiny, tmp_path, optimizer):
    def config(name: str) -> CfgNode:
        return tiny(
            "quickstart.yaml", "SOLVER.OPTIMIZER", optimizer, "OUTPUT_DIR", str(tmp_path / name), "DATASETS.TEST", "[]"
        )

    run(config("whole"))
    parted = config("parted")
    with stopping_at(Trainer, 4):
        run(parted)
    assert last_checkpoint(Path(parted.OUTPUT_DIR)).name == "model_0000002.pth"
    torch.manual_seed(12345)  # must not matter
    run(config("parted"), resume=True)
    a, b = (load_checkpoint(tmp_path / name / "model_final.pth") for name in ("whole", "parted"))
    assert_same_tensors(a["model"], b["model"])
    for x, y in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert_same_tensors(x, y)
    assert a["iteration"] == b["iteration"] == 6


def test_resuming_where_the_schedule_ends_makes_the_final_checkpoint(tiny):
    """A schedule that was shortened to what is done already; an earlier run's final checkpoint is not taken for it."""
    run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    cfg = tiny("quickstart.yaml", "SEED", "8", "TEST.EVAL_PERIOD", "5")
    with stopping_at(Trainer, 4):
        run(cfg)
    output = Path(cfg.OUTPUT_DIR)
    assert (output / "earlier_model_final.pth").is_file() and not (output / "model_final.pth").exists()
    run(tiny("quickstart.yaml", "SEED", "8", "TEST.EVAL_PERIOD", "5", "SOLVER.MAX_ITER", "3"), resume=True)
    final = load_checkpoint(output / "model_final.pth")
    assert final["iteration"] == 3 and final["seed"] == 8
    assert_same_tensors(final["model"], model_of(output / "model_0000002.pth"))
    assert_same_tensors(final["model"], model_of(output / "model_best.pth"))


def test_a_finished_run_that_is_resumed_records_its_last_evaluation_once(tiny):
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "2")
    records = Path(cfg.OUTPUT_DIR) / "metrics.json"
    run(cfg)
    once = records.read_text()
    run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "2"), resume=True)
    assert records.read_text() == once


def test_a_longer_schedule_takes_over_on_resume(tiny):
    """The config decides on learning rate, decay and momentum; a cosine that had ended starts anew at its place."""
    sgd = ["SOLVER.OPTIMIZER", "SGD"]
    run(tiny("quickstart.yaml", *sgd, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "[]"))
    keys = ["SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "0.0005", "SOLVER.MOMENTUM", "0.5", "DATASETS.TEST", "[]"]
    cfg = tiny("quickstart.yaml", *sgd, *keys)
    resumed = Run(cfg, resume=True)
    assert resumed.trainer.iteration == 2
    assert {group["momentum"] for group in resumed.trainer.optimizer.param_groups} == {0.5}
    resumed.start()
    records = json_lines(Path(cfg.OUTPUT_DIR) / "metrics.json")
    assert records[-1]["lr"] == pytest.approx(0.0005 * (1 + math.cos(math.pi * 3 / 4)) / 2)
    with pytest.raises(ValueError, match="write SEED 7"):
        Run(tiny("quickstart.yaml", "SEED", "8"), resume=True)
    with pytest.raises(ValueError, match="trained groups of .* by SGD, this config asks .* write FREEZE_AT and NORM"):
        Run(tiny("quickstart.yaml", *sgd, "MODEL.BACKBONE.FREEZE_AT", "2"), resume=True)


def test_data_that_has_changed_is_told_on_resume(tiny, tmp_path, shapes, capsys):
    path = tmp_path / "train.json"
    document = json.loads((shapes / "shapes/annotations/train.json").read_text())
    boxes, images = copy.deepcopy(document), copy.deepcopy(document)
    boxes["annotations"][0]["bbox"][2] -= 1
    last = images["images"].pop()["id"]
    images["annotations"] = [one for one in images["annotations"] if one["image_id"] != last]
    own = own_sets(own=(path, shapes / "shapes/train"))
    keys = [*own, "DATASETS.TRAIN", "['own']", "DATASETS.TEST", "['own']", "SOLVER.MAX_ITER", "1"]
    path.write_text(json.dumps(document))
    run(tiny("quickstart.yaml", *keys))
    for changed, told in (
        (json.dumps(document), []),
        (json.dumps(boxes), ["(SHA-256"]),
        (json.dumps(images), ["(12 images then, 11 now; SHA-256"]),
        (json.dumps(document, indent=1), ["If only the form of the file has changed, all is well"]),
    ):
        path.write_text(changed)
        capsys.readouterr()
        Run(tiny("quickstart.yaml", *keys), resume=True)
        warnings = [line for line in capsys.readouterr().out.splitlines() if "is not what it was" in line]
        assert len(warnings) == 2 * len(told)  # of DATASETS.TRAIN and TEST
        for line, key, part in zip(warnings, ("TRAIN", "TEST"), 2 * told, strict=False):
            assert f"WARNING DATASETS.{key} own is not" in line and part in line


def test_a_new_run_in_a_used_folder_does_not_resume_the_old_one(tiny):
    run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))

    with stopping_at(Trainer, 0):
        run(tiny("quickstart.yaml"))
    assert last_checkpoint(Path(tiny("quickstart.yaml").OUTPUT_DIR)) is None


def test_a_detector_trained_with_free_norms_can_be_frozen(tiny, tmp_path):
    """Freezing turns batch norms into frozen ones, which count no batches."""
    run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth")]
    frozen = Run(tiny("quickstart.yaml", *weights, "MODEL.BACKBONE.FREEZE_AT", "2")).model.state_dict()
    for key, value in model_of(Path(weights[1])).items():
        assert key.endswith("num_batches_tracked") or torch.equal(frozen[key], value), key


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny, tmp_path):
    finals = []
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        cfg = tiny("quickstart.yaml", "OUTPUT_DIR", str(tmp_path / name), "SEED", seed, *SHORT)
        run(cfg)
        finals.append(model_of(tmp_path / name / "model_final.pth"))
    assert_same_tensors(finals[0], finals[1])
    key = "roi_heads.box_predictor.cls_score.weight"
    assert not torch.equal(finals[0][key], finals[2][key])


def test_accumulation_is_the_whole_batch_in_parts(tiny, tmp_path):
    """Without batch statistics, and with every anchor and box sampled, the parts add up to the whole."""
    keys = [
        *("MODEL.RESNET_BACKBONE.NORM", "GN", *SHORT, "SOLVER.WARMUP_ITERS", "0"),
        *("DATALOADER.ASPECT_RATIO_GROUPING", "False", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001"),
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POSITIVE_FRACTION", "1.0"),
        *("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", "0.0", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64"),
    ]
    weights = []
    for parts in ("1", "2"):
        cfg = tiny("quickstart.yaml", "OUTPUT_DIR", str(tmp_path / parts), "SOLVER.ACCUMULATION_STEPS", parts, *keys)
        run(cfg)
        weights.append(model_of(tmp_path / parts / "model_final.pth"))
    start = model_of_start(tiny, tmp_path, keys)
    for key in ("rpn.head.conv.0.0.weight", "backbone.bottom_up.res2.0.conv1.weight"):
        moved = (weights[0][key] - start[key]).norm()
        assert (weights[0][key] - weights[1][key]).norm() < 0.2 * moved, key


def model_of_start(tiny, tmp_path, keys) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in Run(tiny("quickstart.yaml", *keys)).model.state_dict().items()}


def test_the_ap_is_pycocotools(tiny, coco_mini):
    """On real images with crowds and small objects; low scores count, so that AP is not zero."""
    cfg = tiny(
        "quickstart.yaml",
        *mini_sets(coco_mini),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "4"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "100", "SOLVER.BASE_LR", "0.002"),
    )
    figures = run(cfg)["mini_val"]
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    truth = coco_mini / "annotations/instances_val2017.json"
    expected = pycocotools_figures(truth, results_of(cfg.OUTPUT_DIR))
    assert expected[0] > 0
    assert [getattr(figures, name) / 100 for name in FIGURES] == pytest.approx(expected, abs=1e-9)


def test_eval_only_repeats_the_evaluation_and_takes_the_input_from_the_checkpoint(tiny, tmp_path):
    cfg = tiny("quickstart.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    run(cfg)
    written = (Path(cfg.OUTPUT_DIR) / "inference/coco_instances_results.json").read_bytes()
    checkpoint = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    # A config with the wrong colours: the checkpoint knows better.
    wrong = ["MODEL.WEIGHTS", checkpoint, "INPUT.FORMAT", "BGR", "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"]
    again = tiny(
        "quickstart.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", str(tmp_path / "again"), *wrong
    )
    run(again, eval_only=True)
    assert again.INPUT.FORMAT == "RGB"
    assert (tmp_path / "again/inference/coco_instances_results.json").read_bytes() == written
    with pytest.raises(ValueError, match="INPUT.FORMAT: RGB   # the config has BGR"):
        wrong += ["MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False", "OUTPUT_DIR", str(tmp_path / "refused")]
        run(tiny("quickstart.yaml", *wrong), eval_only=True)


def test_two_processes_train_and_evaluate_as_one(tiny, command_line, tmp_path):
    cfg = tiny("quickstart.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.MAX_ITER", "3")
    done = command_line(cfg, nproc=2)
    assert done.returncode == 0, done.stderr
    output = Path(cfg.OUTPUT_DIR)
    together = results_of(output)
    figures = json.loads((output / "inference/metrics.json").read_text())
    assert figures["bbox"]["AP"] is not None
    alone = tiny(
        *("quickstart.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", str(tmp_path / "alone")),
        *("MODEL.WEIGHTS", str(output / "model_final.pth")),
    )
    metrics = run(alone, eval_only=True)["shapes_val"].to_dict()
    assert metrics["bbox"]["AP"] == pytest.approx(figures["bbox"]["AP"], abs=1e-6)
    results = results_of(tmp_path / "alone")
    assert len(results) == len(together)
    assert [r["image_id"] for r in results] == [r["image_id"] for r in together]
    assert [r["score"] for r in results] == pytest.approx([r["score"] for r in together], abs=1e-5)


@pytest.mark.slow
def test_num_gpus_starts_the_processes(tiny, command_line):
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "3", "DATASETS.TEST", "[]")
    done = command_line(cfg, "--num-gpus", "2")
    assert done.returncode != 0
    assert "SOLVER.IMS_PER_BATCH 3 must be a multiple of the 2 processes" in done.stderr
    assert command_line(cfg, "--num-gpus", "2", "SOLVER.IMS_PER_BATCH", "2").returncode == 0
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file()


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("vgg16_bn", marks=pytest.mark.slow)])
def test_fine_tuning_from_packaged_imagenet_weights(tiny, tmp_path, arch):
    """The trunk starts as the classifier, its input format comes along, and what is frozen stays to the bit."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, arch)(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "raw.pth")
    bgr = InputFormat("BGR", (100.0, 110.0, 120.0), (50.0, 51.0, 52.0))
    package_weights(tmp_path / "raw.pth", tmp_path / "packed.pth", arch=arch, input_format=bgr, stride_in_1x1=False)
    features = "['conv3', 'conv4', 'conv5', 'pool5']" if "vgg" in arch else "['res2', 'res3', 'res4', 'res5']"
    cfg = tiny(
        "quickstart.yaml",
        *("MODEL.WEIGHTS", str(tmp_path / "packed.pth"), "MODEL.RESNET_BACKBONE.ARCH", arch),
        *("MODEL.RESNET_BACKBONE.OUT_FEATURES", features, "MODEL.FPN.IN_FEATURES", features),
        *("MODEL.RESNET_BACKBONE.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2", *SHORT),
    )
    run(cfg)
    assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == (
        "BGR",
        [100.0, 110.0, 120.0],
        [50.0, 51.0, 52.0],
    )
    final = model_of(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    first, last = ("conv1_1", "conv5_1") if "vgg" in arch else ("stem.conv1", "res5.0.conv1")
    theirs_first = theirs.features[0].weight if "vgg" in arch else theirs.conv1.weight
    theirs_last = theirs.features[34].weight if "vgg" in arch else theirs.layer4[0].conv1.weight
    assert torch.equal(final[f"backbone.bottom_up.{first}.weight"], theirs_first)
    moved = (final[f"backbone.bottom_up.{last}.weight"] - theirs_last).norm()
    assert 0 < moved < 0.5 * theirs_last.norm()


def test_fine_tuning_a_detector_on_other_classes(tiny, tmp_path, coco_mini):
    run(tiny("quickstart.yaml", *SHORT))
    checkpoint = tmp_path / "output" / "model_final.pth"
    keys = [*mini_sets(coco_mini), "DATASETS.TRAIN", "['mini_val']", "DATASETS.TEST", "[]"]
    keys += ["MODEL.WEIGHTS", str(checkpoint)]
    tuned = Run(tiny("quickstart.yaml", *keys))
    state, before = tuned.model.state_dict(), model_of(checkpoint)
    assert state["roi_heads.box_predictor.cls_score.weight"].shape[0] == 81
    assert all(torch.equal(state[k], before[k]) for k in before if "box_predictor" not in k)
    with pytest.raises(ValueError, match="other classes|the network tells"):
        other = ("DATASETS.TEST", "['mini_val']", "OUTPUT_DIR", str(tmp_path / "other"))
        Run(tiny("quickstart.yaml", *keys, *other), eval_only=True)


def test_a_checkpoint_of_another_detector_is_refused(tiny, tmp_path):
    run(tiny("quickstart.yaml", *SHORT))
    checkpoint = str(tmp_path / "output" / "model_final.pth")
    with pytest.raises(ValueError, match="of another detector than the config describes"):
        Run(tiny("quickstart.yaml", "MODEL.WEIGHTS", checkpoint, "MODEL.RESNET_BACKBONE.ARCH", "resnet34"))


def test_a_loss_that_is_not_finite_stops_the_run_with_causes(tiny):
    cfg = tiny("quickstart.yaml", "SOLVER.BASE_LR", "1e9", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "50")
    with pytest.raises(FloatingPointError) as caught:
        run(cfg)
    message = str(caught.value)
    for part in ("not finite at iteration", "on images [", "SOLVER.BASE_LR is 1e+09", "is 0.001;", "INPUT.FORMAT"):
        assert part in message
    assert not (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists()


def test_an_evaluation_is_in_float32_whatever_the_training_was_in(tiny, tmp_path):
    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    trained = tiny("quickstart.yaml", *amp, "SOLVER.MAX_ITER", "2")
    run(trained)
    saved = model_of(tmp_path / "output/model_final.pth")
    assert all(tensor.dtype != torch.bfloat16 for tensor in saved.values())
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "float32")]
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the first run
    evaluated = tiny("quickstart.yaml", *amp, *weights, "SOLVER.AMP.ENABLED", "False")
    run(evaluated, eval_only=True)
    assert results_of(trained.OUTPUT_DIR) == results_of(evaluated.OUTPUT_DIR) != []


def test_two_test_sets_have_folders_of_their_own(tiny):
    cfg = tiny("quickstart.yaml", "DATASETS.TEST", "['shapes_val', 'shapes_train']", "SOLVER.MAX_ITER", "1")
    assert list(run(cfg)) == ["shapes_val", "shapes_train"]
    assert (Path(cfg.OUTPUT_DIR) / "inference/shapes_train/metrics.json").is_file()


def test_resume_without_a_checkpoint_starts_anew(tiny):
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]")
    run(cfg, resume=True)
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file()
