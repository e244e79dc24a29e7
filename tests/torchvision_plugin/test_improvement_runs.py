"""Whole runs with refinement, multi-scale testing, an ensemble and global context; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resnet_backbone.torchvision_plugin.checkpoint import load_checkpoint
from resnet_backbone.torchvision_plugin.run import Run
from tests.helpers import results_of

CONTEXT = ["MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "True"]
REFINEMENT = ["TEST.BOX_REFINEMENT.ENABLED", "True"]
MULTI_SCALE = [
    *("TEST.MULTI_SCALE.ENABLED", "True", "TEST.MULTI_SCALE.SIZES", "[48, 64, 100]"),
    *("TEST.MULTI_SCALE.MAX_SIZE", "128"),
]
TRAIN = ["SOLVER.MAX_ITER", "2", "DATASETS.TEST", "[]"]
EVALUATE = ["--eval-only", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]


@pytest.fixture
def train_net(load_script, tmp_path, capsys):
    """Runs tools/train_net.py on a dumped config and returns its status, the last line and what it said of errors."""

    def run(cfg, *words: str):
        path = tmp_path / "config.yaml"
        path.write_text(cfg.dump())
        status = load_script("tools/train_net.py").main(["--engine", "torchvision", "--config-file", str(path), *words])
        said = capsys.readouterr()
        return status, said.out.splitlines()[-1:], said.err

    return run


@pytest.mark.slow
def test_a_run_with_everything_from_the_command_line(tiny, train_net, tmp_path):
    """Two detectors that differ in head, colours and size are trained, then evaluated together, every switch on."""
    own = tiny("quickstart.yaml", *CONTEXT, *TRAIN, "OUTPUT_DIR", str(tmp_path / "own"))
    assert train_net(own)[0] == 0
    other = tiny(
        "Base-RCNN-C4.yaml",
        *("MODEL.RESNET_BACKBONE.ARCH", "resnet18", "MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.WEIGHTS", ""),
        *("MODEL.BACKBONE.FREEZE_AT", "0", "INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "48"),
        *("DATASETS.TRAIN", "['shapes_train']", *TRAIN, "OUTPUT_DIR", str(tmp_path / "other")),
    )
    assert train_net(other)[0] == 0
    weights = ["MODEL.WEIGHTS", str(tmp_path / "own" / "model_final.pth")]
    base = [*EVALUATE, *weights, "DATASETS.TEST", "['shapes_val']", "TEST.DETECTIONS_PER_IMAGE", "20"]
    ensemble = ["TEST.ENSEMBLE", f"['{tmp_path / 'other'}']"]
    switches = {"none": [], "all": [*REFINEMENT, *MULTI_SCALE, *ensemble], "refinement": REFINEMENT}
    results = {}
    for name, keys in switches.items():
        output = tmp_path / name
        status, line, error = train_net(own, *base, *keys, "OUTPUT_DIR", str(output))
        assert status == 0, error
        assert json.loads(line[0])["shapes_val"] == json.loads((output / "inference" / "metrics.json").read_text())
        assert len(list((output / "inference" / "pictures").glob("*.png"))) == 5 + 1
        assert json.loads((output / "inference" / "facts.json").read_text())["num_images"] == 5
        results[name] = results_of(output)
    assert all(len(found) >= 25 for found in results.values())
    assert len({json.dumps(found) for found in results.values()}) == 3
    costs = [json.loads((tmp_path / name / "inference" / "facts.json").read_text()) for name in ("none", "all")]
    assert costs[1]["parameters"] > costs[0]["parameters"] and costs[1]["multiply_adds"] > costs[0]["multiply_adds"]


def test_they_are_for_the_last_evaluation_and_not_for_those_on_the_way(tiny):
    """The last evaluation gives what --eval-only gives; one on the way gives the plain detector's figures."""
    keys = ["SOLVER.MAX_ITER", "2", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"]
    cfg = tiny("quickstart.yaml", *keys, *REFINEMENT)
    output = Path(cfg.OUTPUT_DIR)
    Run(cfg).start()
    at_the_end = results_of(output)
    keys += ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    again = Run(tiny("quickstart.yaml", *keys, *REFINEMENT), eval_only=True)
    again.start()
    assert results_of(output) == at_the_end
    again._score(over=False)
    on_the_way = results_of(output)
    plain = tiny("quickstart.yaml", *keys, "OUTPUT_DIR", f"{output}_plain")
    Run(plain, eval_only=True).start()
    assert results_of(Path(plain.OUTPUT_DIR)) == on_the_way != at_the_end


@pytest.mark.slow
def test_two_processes_train_with_context_and_share_the_images(tiny, command_line, tmp_path):
    cfg = tiny("quickstart.yaml", *CONTEXT, *REFINEMENT, "SOLVER.MAX_ITER", "2")
    done = command_line(cfg, nproc=2)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = tiny(
        "quickstart.yaml",
        *(*CONTEXT, *REFINEMENT, "MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / "model_final.pth")),
        *("OUTPUT_DIR", str(tmp_path / "alone")),
    )
    Run(alone, eval_only=True).start()
    assert results_of(tmp_path / "alone") == results_of(Path(cfg.OUTPUT_DIR)) != []


def test_a_checkpoint_without_context_does_not_load_with_it(tiny):
    cfg = tiny("quickstart.yaml", *TRAIN)
    Run(cfg).start()
    weights = ["MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / "model_final.pth"), "DATASETS.TEST", "['shapes_val']"]
    with pytest.raises(
        ValueError, match=r"box_predictor.cls_score.weight \(\(\d+, 256\) in the file, \(\d+, 512\) in the model"
    ):
        Run(tiny("quickstart.yaml", *CONTEXT, *weights, "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}_eval"), eval_only=True)


def test_context_trains_in_mixed_precision(tiny):
    cfg = tiny("quickstart.yaml", *CONTEXT, *TRAIN, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    Run(cfg).start()
    state = load_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_an_ensemble_says_what_is_wrong_with_a_folder(tiny, tmp_path):
    def ensemble(folder: Path) -> Run:
        return Run(tiny("quickstart.yaml", "TEST.ENSEMBLE", f"['{folder}']"))

    with pytest.raises(FileNotFoundError, match=r"TEST.ENSEMBLE .*is not the output folder of a run: it has no config"):
        ensemble(tmp_path)
    cfg = tiny("quickstart.yaml", *TRAIN, "OUTPUT_DIR", str(tmp_path / "member"))
    Run(cfg).start()
    ensemble(tmp_path / "member")
    path = tmp_path / "member" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("NUM_FC: 2", "NUM_FC: 1"))
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .*another detector than the config describes"):
        ensemble(tmp_path / "member")
    path.write_text(f"{text}\nEXPERIMENT: 3\n")
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .*does not obey the key EXPERIMENT"):
        ensemble(tmp_path / "member")
    path.write_text(text)
    checkpoint = tmp_path / "member" / "model_final.pth"
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "class_names": state["class_names"][::-1]}, checkpoint)
    with pytest.raises(
        ValueError, match=r"TEST.ENSEMBLE .*it learned the classes \['cross', .*, this run has \['circle"
    ):
        ensemble(tmp_path / "member")
    theirs = {"proposal_generator.rpn_head.conv.weight": torch.zeros(1), "backbone.stem.conv1.weight": torch.zeros(1)}
    torch.save({**state, "model": theirs}, checkpoint)
    with pytest.raises(
        ValueError, match=r"TEST.ENSEMBLE .*is of the detectron2 engine; evaluate with --engine detectron2"
    ):
        ensemble(tmp_path / "member")


def test_an_ensemble_has_no_retinanet(tiny, tmp_path):
    one_stage = tiny(
        "retinanet/r18_fpn.yaml",
        *("MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "16"),
        *("DATASETS.TRAIN", "['shapes_train']", *TRAIN, "OUTPUT_DIR", str(tmp_path / "retinanet")),
    )
    Run(one_stage).start()
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .*boxes of two stages, not for .* RetinaNet"):
        Run(tiny("quickstart.yaml", "TEST.ENSEMBLE", f"['{tmp_path / 'retinanet'}']"))


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("retinanet/r18_fpn.yaml", CONTEXT, "GLOBAL_CONTEXT is for detectors with a second stage.* write False"),
        ("retinanet/r18_fpn.yaml", REFINEMENT, "TEST.BOX_REFINEMENT.ENABLED is for .* RetinaNet: write False"),
        ("retinanet/r18_fpn.yaml", MULTI_SCALE, "TEST.MULTI_SCALE.ENABLED is for .* RetinaNet: write False"),
        ("retinanet/r18_fpn.yaml", ["TEST.ENSEMBLE", "['a']"], r"TEST.ENSEMBLE is for .* RetinaNet: write \[\]"),
        (
            "mask/r18_fpn.yaml",
            REFINEMENT,
            "boxes alone, and MODEL.MASK_ON is True: write TEST.BOX_REFINEMENT.ENABLED F",
        ),
        ("mask/r18_fpn.yaml", ["TEST.ENSEMBLE", "['a']"], r"boxes alone, .*: write TEST.ENSEMBLE \[\]"),
        (
            "quickstart.yaml",
            ["TEST.BOX_REFINEMENT.NMS_THRESH", "1.5"],
            "NMS_THRESH is 1.5; it must lie between 0 and 1",
        ),
        ("quickstart.yaml", ["TEST.BOX_REFINEMENT.VOTE_THRESH", "-0.5"], "VOTE_THRESH is -0.5"),
        ("quickstart.yaml", ["TEST.MULTI_SCALE.SIZES", "[]"], r"SIZES is \[\]; it needs numbers"),
        (
            "quickstart.yaml",
            ["TEST.MULTI_SCALE.SIZES", "[200, 100]"],
            r"SIZES is \[200, 100\]; its numbers must be 1 or more, and increase",
        ),
        (
            "quickstart.yaml",
            ["TEST.MULTI_SCALE.SIZES", "[0, 100]"],
            r"SIZES is \[0, 100\]; its numbers must be 1 or more",
        ),
        ("quickstart.yaml", ["TEST.MULTI_SCALE.MAX_SIZE", "0"], "MAX_SIZE is 0; it must be 1 or more"),
        ("quickstart.yaml", ["TEST.MULTI_SCALE.SIZES", "[48.5, 64]"], "wants a list of whole numbers"),
        ("quickstart.yaml", ["TEST.MULTI_SCALE.SIZES", "['a', 64]"], "wants a list of whole numbers"),
        ("quickstart.yaml", ["TEST.ENSEMBLE", "runs/a"], "TEST.ENSEMBLE"),
        ("quickstart.yaml", ["TEST.ENSEMBLE", "[3]"], "TEST.ENSEMBLE wants a list of words"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(tiny, config, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny(config, *overrides)


def test_masks_may_have_context(tiny):
    assert tiny("mask/r18_fpn.yaml", *CONTEXT).MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT
