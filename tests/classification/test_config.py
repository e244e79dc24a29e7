"""The configs of classifiers: all load, and what makes no sense is said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_backbone.classification.config import get_cfg, load_config
from resnet_backbone.classification.network import Start, build_network
from resnet_backbone.classification.run import Run
from resnet_backbone.config import config_folder
from resnet_backbone.config.reader import leaves
from resnet_backbone.torchvision_plugin.config import get_cfg as detector_cfg

CONFIGS = sorted(path.name for path in (config_folder() / "classification").glob("*.yaml"))
RUNS = [name for name in CONFIGS if not name.startswith("Base-")]


@pytest.mark.parametrize("name", RUNS)
def test_every_config_builds_its_network(name):
    cfg = load_config(f"classification/{name}")
    with torch.device("meta"):
        network = build_network(cfg, 10, Start())
    assert network.arch == cfg.MODEL.ARCH
    assert cfg.OUTPUT_DIR == f"./output/{Path(name).stem}" or name == "quickstart.yaml"


def test_keys_that_detectors_have_mean_the_same():
    """Same name, same type, same default; but for what a classifier's training takes otherwise."""
    own = {"SOLVER.MAX_ITER", "SOLVER.BASE_LR", "SOLVER.STEPS", "SOLVER.IMS_PER_BATCH", "SOLVER.WEIGHT_DECAY_NORM"}
    own |= {"SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_METHOD", "SOLVER.AMP.DTYPE"}
    own |= {"SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT", "CUDNN_BENCHMARK"}
    ours, theirs = get_cfg(), detector_cfg()
    for key in set(leaves(ours)) & set(leaves(theirs)):
        a, b = ours, theirs
        for part in key.split("."):
            a, b = a[part], b[part]
        assert type(a) is type(b), key
        assert a == b or key in own, key


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["MODEL.ARCH", "resnet19"], "must be one of plain18"),
        (["MODEL.SHORTCUT", "D"], "knows only '' or 'A' or 'B' or 'C'"),
        (["INPUT.RESIZE_TEST", "16"], "must be INPUT.SIZE, 32, or more"),
        (["INPUT.AREA", "[0.0, 1.0]"], "its numbers must be above 0, and 1 or less, and increase"),
        (["INPUT.TRAIN_CROP", "short_side"], "INPUT.SHORT_SIDE|INPUT.TRAIN_CROP pad"),
        (["INPUT.COLOR_AUGMENTATION", "alexnet"], "COLOR_AUGMENTATION none"),
        (
            ["DATALOADER.ON_DEVICE", "False", "INPUT.TRAIN_CROP", "short_side", "INPUT.SHORT_SIDE", "[20, 40]"],
            "from INPUT",
        ),
        (["DATASETS.TRAIN", "['a', 'b']"], "name one data set"),
        (["SOLVER.LABEL_SMOOTHING", "1.0"], "below 1"),
        (["SOLVER.STEPS", "[5, 5]"], "must be 1 or more, and increase"),
        (["SOLVER.IMS_PER_BATCH", "5", "SOLVER.ACCUMULATION_STEPS", "2"], "must be a multiple"),
        (
            ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16", "MODEL.DEVICE", "cpu"],
            "write SOLVER.AMP.DTYPE",
        ),
        (["MODEL.PIXEL_MEAN", "[0.5]"], "must have 3 values"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "does not obey the key"),
        (["INPUT.LARGE_SCALE_JITTER.ENABLED", "True"], "does not obey the key"),
        (["INPUT.COLOR_JITTER", "[0.4, 0.4, 0.4, 0.1]"], "does not obey the key.*COLOR_AUGMENTATION"),
        (["TEST.VIEWS", "2-crop"], "knows only '1-crop'"),
    ],
)
def test_what_makes_no_sense_is_said(overrides, said):
    with pytest.raises(ValueError, match=said):
        load_config("classification/cifar10_resnet20.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["DATASETS.TRAIN", "[]"], "names no data set"),
        (["DATASETS.TRAIN", "['nowhere']"], "neither a folder"),
        (["MODEL.PIXEL_MEAN", "[0.49, 0.48, 0.45]", "MODEL.PIXEL_STD", "[0.25, 0.24, 0.26]"], "multiply both by 255"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "neither a file nor"),
        (["MODEL.ARCH", "plain18", "MODEL.PREACTIVATION", "True"], "has no shortcuts"),
        (["OUTPUT_DIR", __file__], "is a file"),
        (["MODEL.COMPILE", "True"], "there is no no-such-compiler; install it, .*or write MODEL.COMPILE False"),
    ],
)
def test_what_cannot_run_is_said_and_writes_nothing(tiny, tmp_path, monkeypatch, overrides, said):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises((ValueError, OSError), match=said):
        Run(tiny("cifar10_resnet20.yaml", *overrides))
    assert not (tmp_path / "output").exists()


def test_test_sets_with_other_classes_are_refused(tiny, colors, tmp_path):
    (tmp_path / "other" / "blue").mkdir(parents=True)
    (tmp_path / "other" / "blue" / "0.png").symlink_to(colors / "test" / "blue" / "0.png")
    with pytest.raises(ValueError, match="both need the same"):
        Run(tiny("cifar10_resnet20.yaml", "DATASETS.TEST", str([str(tmp_path / "other")])))


def test_an_evaluation_needs_a_trained_classifier_and_leaves_a_training_alone(tiny, tmp_path):
    with pytest.raises(ValueError, match="--eval-only needs"):
        Run(tiny("cifar10_resnet20.yaml"), eval_only=True)
    Run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "1")).start()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output" / "weights.pth")]
    with pytest.raises(ValueError, match="a folder of its own: OUTPUT_DIR"):
        Run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "1", *weights), eval_only=True)
    weights[1] = str(tmp_path / "output" / "model_final.pth")
    Run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "1", *weights), eval_only=True).start()
