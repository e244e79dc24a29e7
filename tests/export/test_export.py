"""A file is there only when it is right; tools/export.py takes what a user has, and says what else to write."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from resnet_backbone.export.trunk import TensorsOfTrunk, describe_trunk
from resnet_backbone.export.write import check_destination, export
from resnet_backbone.models.registry import create_model
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.run import Run
from resnet_backbone.weights import InputFormat
from resnet_backbone.weights.source import weights_from_state_dict

PIXELS = InputFormat("RGB", (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
SMALL_C4 = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.ARCH", "resnet18", "SEED", "7"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "15", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATASETS.TEST", "[]"),
    *("DATASETS.TRAIN", "['shapes_train']", "MODEL.BACKBONE.FREEZE_AT", "0"),
]


@pytest.fixture
def exportable():
    model = create_model("cifar_resnet20", num_classes=3).eval()
    return describe_trunk(model, weights_from_state_dict(model.state_dict()), PIXELS)


@pytest.fixture
def trained(shapes, tmp_path, monkeypatch) -> Path:
    """The output folder of a run of one iteration."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    folder = tmp_path / "run"
    Run(load_config("Base-RCNN-C4.yaml", [*SMALL_C4, "OUTPUT_DIR", str(folder)])).start()
    return folder


@pytest.fixture
def tool(load_script, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        status = load_script("tools/export.py").main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_a_file_of_another_network_is_refused(tmp_path, exportable, form, suffix):
    torch.manual_seed(1)
    other = TensorsOfTrunk(create_model("cifar_resnet20", num_classes=3).eval())
    path = tmp_path / f"trunk{suffix}"
    path.write_text("of before")
    with pytest.raises(ValueError, match="was not written: its outputs are not those of PyTorch: logits differ by"):
        export(dataclasses.replace(exportable, module=other), path, form)
    assert path.read_text() == "of before" and list(tmp_path.iterdir()) == [path]


def test_a_size_that_does_not_vary_is_refused(tmp_path, exportable):
    class OneSize(torch.nn.Module):
        def forward(self, images):
            return (images.reshape(-1, 3, 23, 21).mean(dim=(2, 3)),)

    with pytest.raises(ValueError, match=r"torch.export failed with torch .*tested with"):
        export(dataclasses.replace(exportable, module=OneSize()), tmp_path / "trunk.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"pip install {package} "):
        check_destination(tmp_path / "trunk.onnx", "onnx")
    check_destination(tmp_path / "trunk.pt2", "torch")


def test_other_destinations_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"format onnx ends in \.onnx; found .*trunk\.pt2"):
        check_destination(tmp_path / "trunk.pt2", "onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        check_destination(tmp_path / "folder.onnx", "onnx")


def test_the_tool_on_a_run(trained, tmp_path, tool, shapes):
    image = next((shapes / "shapes" / "val").iterdir())
    path = tmp_path / "new" / "detector.pt2"
    status, out, err = tool("--run", trained, "--output", path, "--images", image)
    assert status == 0, err
    report = json.loads(out)
    assert report["output"] == str(path) and report["format"] == "torch" and report["detections"] > 0
    assert len(report["images"]) == 4 and min(report["images"][3][1:]) == 64
    assert "largest differences: " in err

    status, out, _ = tool("--show", path)
    facts = json.loads(out)
    assert status == 0 and facts["source"] == "model_final.pth" and facts["score_threshold"] == 0.05
    assert "square" in facts["class_names"]

    # As a config with its checkpoint; keys before other options.
    weights = trained / "model_final.pth"
    words = ("--config-file", trained / "config.yaml", "MODEL.WEIGHTS", weights, "TEST.BOX_REFINEMENT.ENABLED", "True")
    status, _, err = tool(*words, "--format", "torch", "--output", path)
    assert status == 1 and "cannot be exported; to export it without, write TEST.BOX_REFINEMENT.ENABLED False" in err
    status, _, err = tool(*words[:2], "--output", path, "MODEL.WEIGHTS", "nowhere.pth")
    assert status == 1 and "'nowhere.pth': no such file" in err

    # Detectron2's names for the same tensors.
    state = torch.load(weights, weights_only=False)
    foreign = {name.replace("rpn.", "proposal_generator."): value for name, value in state["model"].items()}
    torch.save({"model": foreign}, tmp_path / "foreign.pth")
    status, _, err = tool(*words[:2], "--output", path, "MODEL.WEIGHTS", tmp_path / "foreign.pth")
    assert status == 1 and "is of Detectron2" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "x.pth"], "write --output FILE"),
        (["--weights", "x.pth", "--output", "x.bin"], "must end in .onnx or .pt2"),
        (["--weights", "x.pth", "--output", "x.onnx", "MODEL.DEVICE", "cpu"], "are for detectors"),
        (["--run", "x", "--output", "x.onnx", "--out-features", "res2"], "go with --weights"),
        (["--output", "x.onnx"], "one of the arguments"),
        (["--show", "x.bin"], "ends in .onnx or .pt2"),
    ],
)
def test_the_tool_refuses_words_that_do_not_fit(tool, capsys, words, message):
    with pytest.raises(SystemExit):
        tool(*words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "nowhere.pth", "--output", "x.onnx"], "nowhere.pth is neither a file nor a name"),
        (["--run", "nowhere", "--output", "x.onnx"], "nowhere is not the output folder of a run"),
        (["--weights", "x.pth", "--output", "x.pt2", "--format", "onnx"], "a file of format onnx ends in .onnx"),
        (["--show", "nowhere.onnx"], "nowhere.onnx"),
    ],
)
def test_the_tool_reports_errors(tool, words, message):
    status, out, err = tool(*words)
    assert status == 1 and out == "" and message in err
