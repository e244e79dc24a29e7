"""Box refinement, multi-scale testing and the ensemble on Detectron2.

Against its own detectors where nothing is enabled, loops over boxes, and the torchvision engine on the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.config import CfgNode

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetMapper  # noqa: E402
from detectron2.structures import Instances  # noqa: E402

from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.improvements import ImprovedRCNN, TwoStage  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402
from resnet_backbone.engine.improvements import improvement_settings  # noqa: E402
from tests.engine.improvements import reference  # noqa: E402
from tests.helpers import TINY, json_lines, results_of  # noqa: E402

CONTEXT = ["MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "True"]
REFINEMENT = ["TEST.BOX_REFINEMENT.ENABLED", "True"]
MULTI_SCALE = [
    *("TEST.MULTI_SCALE.ENABLED", "True", "TEST.MULTI_SCALE.SIZES", "[48, 120, 250, 280]"),
    *("TEST.MULTI_SCALE.MAX_SIZE", "300"),
]
BGR = ["INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "80", "MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"]
STOCK_RES5 = [
    *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.RESNET_BACKBONE.ARCH", "resnet50", "MODEL.RESNETS.NORM", "GN"),
]


@torch.inference_mode()
def improved(record: dict[str, Any], *parts: tuple[CfgNode, Any]) -> Instances:
    """By the settings of the first part."""
    return ImprovedRCNN(parts, improvement_settings(parts[0][0])).eval()([record])[0]["instances"]


@torch.inference_mode()
def plain(record: dict[str, Any], cfg: CfgNode, model: Any) -> Instances:
    """By Detectron2's own test transform and inference."""
    return model([DatasetMapper(cfg, is_train=False)(dict(record))])[0]["instances"]


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        *(("fpn", []), ("fpn", CONTEXT), ("fpn", BGR), ("fpn", ["INPUT.MIN_SIZE_TEST", "0"])),
        ("fpn", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]),
        *(("c4", []), ("c4", CONTEXT), ("c4", STOCK_RES5), ("vgg_c5", []), ("vgg_c5", CONTEXT)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1::2]),
)
def test_with_nothing_enabled_it_is_detectron2s_to_the_bit(faster_rcnn, photograph, kind, overrides):
    part = faster_rcnn(kind, *overrides)
    labels = set()
    for size in [(90, 131), (131, 90), (40, 200)]:
        record = photograph(*size)
        expected, found = plain(record, *part), improved(record, part)
        assert len(expected) >= 5 and found.image_size == size
        labels |= set(expected.pred_classes.tolist())
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_classes, expected.pred_classes)
    assert len(labels) > 1


COMBINATIONS = {
    "refinement": ("fpn", REFINEMENT, []),
    "multi_scale": ("fpn", MULTI_SCALE, []),
    "ensemble": ("fpn", [], ["c4", "fpn"]),
    "class_agnostic": ("fpn", [*REFINEMENT, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"], []),
    "everything": ("fpn", [*CONTEXT, *REFINEMENT, *MULTI_SCALE], ["c4", "fpn"]),
    "everything_c4": ("c4", [*CONTEXT, *REFINEMENT, *MULTI_SCALE], []),
    "refinement_vgg": ("vgg_c5", REFINEMENT, []),
}


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_it_is_what_loops_over_boxes_find(faster_rcnn, photograph, pixels, combination):
    kind, keys, others = COMBINATIONS[combination]
    record = photograph(90, 131)
    parts = [
        faster_rcnn(kind, *keys, "TEST.DETECTIONS_PER_IMAGE", "12"),
        *(faster_rcnn(other, *BGR) for other in others),
    ]
    cfg = parts[0][0]
    found = improved(record, *parts)
    with torch.inference_mode():
        expected = reference.detect_by(cfg, [TwoStage(*part) for part in parts], pixels(90, 131))
    assert len(expected) >= 5
    assert found.pred_classes.tolist() == [label for label, _, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score, _ in expected], abs=1e-4)
    torch.testing.assert_close(
        found.pred_boxes.tensor, torch.tensor([box for _, _, box in expected]), rtol=0, atol=0.02
    )
    without = plain(record, *parts[0]).scores
    assert without.shape != found.scores.shape or not torch.allclose(without, found.scores, atol=1e-3)


@pytest.mark.parametrize("kind", ["fpn", "c4", "vgg_c5"])
def test_both_engines_find_the_same(faster_rcnn, as_torchvision, photograph, pixels, kind):
    """At the original's own size, since the engines resize by different libraries."""
    from resnet_backbone.torchvision_plugin.improvements import Improved

    record = photograph(64, 96)
    parts = [faster_rcnn(kind, *REFINEMENT, *CONTEXT), faster_rcnn("fpn", *BGR, "INPUT.MIN_SIZE_TEST", "64")]
    found = improved(record, *parts)
    (cfg, first), (member_cfg, member) = parts
    other = Improved(cfg, as_torchvision(cfg, first), [(member_cfg, as_torchvision(member_cfg, member))])
    with torch.inference_mode():
        theirs = other.eval()([pixels(64, 96)])[0]
    assert len(found) >= 5
    assert found.pred_classes.tolist() == theirs["labels"].tolist()
    torch.testing.assert_close(found.scores, theirs["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_boxes.tensor, theirs["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("keys", [[], [*REFINEMENT, *MULTI_SCALE, *CONTEXT]], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_an_image_without_proposals_or_detections(faster_rcnn, photograph, kind, keys):
    cfg, model = faster_rcnn(kind, *keys, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    assert len(improved(photograph(90, 131), (cfg, model))) == 0
    cfg, model = faster_rcnn(kind, *keys)
    model.proposal_generator.min_box_size = 1e6
    found = improved(photograph(90, 131), (cfg, model))
    assert found.pred_boxes.tensor.shape == (0, 4) and found.scores.shape == found.pred_classes.shape == (0,)


def test_features_outlast_the_next_pass_of_a_cuda_graph(faster_rcnn, photograph):
    """Of which the next pass overwrites what this one returned."""
    record = photograph(90, 131)
    parts = [faster_rcnn("fpn", *REFINEMENT, *MULTI_SCALE), faster_rcnn("c4")]
    expected = improved(record, *parts)
    written: list[torch.Tensor] = []

    def overwrite(backbone, images, features):
        for feature in written:
            feature.fill_(torch.nan)
        written[:] = features.values()

    for _, model in parts:
        model.backbone.acceleration = replace(model.backbone.acceleration, compile_mode="reduce-overhead")
        model.backbone.register_forward_hook(overwrite)
    found = improved(record, *parts)
    assert len(expected) >= 5 and torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


def test_a_file_of_another_size_than_the_data_set_says_is_refused(faster_rcnn, photograph):
    with pytest.raises(ValueError, match="the image is 90 x 131, but the annotation file says 91 x 131"):
        improved({**photograph(90, 131), "height": 91}, faster_rcnn("fpn"))


SMALL = [
    *(*TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "2"),
]


@pytest.fixture
def tiny(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """``tiny("quickstart.yaml", "name", "KEY", "VALUE", ...)``: a config of seconds, with its own output folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))

    def load(config: str, name: str, *overrides: str) -> CfgNode:
        return load_config(config, [*SMALL, "OUTPUT_DIR", str(tmp_path / name), *overrides])

    return load


@pytest.fixture
def train_net(load_script, tmp_path, capfd):
    """Runs tools/train_net.py on a dumped config and returns the figures that it printed."""

    def run(cfg: CfgNode, *words: str) -> dict[str, Any]:
        path = tmp_path / "config.yaml"
        path.write_text(cfg.dump())
        status = load_script("tools/train_net.py").main(["--engine", "detectron2", "--config-file", str(path), *words])
        said = capfd.readouterr()
        assert status == 0, said.err
        return json.loads(said.out.splitlines()[-1])

    return run


def test_a_run_with_everything_from_the_command_line(tiny, train_net, tmp_path):
    """Two detectors that differ in head, colours and size are trained, then evaluated together, every switch on."""
    own = tiny("quickstart.yaml", "own", *CONTEXT)
    train_net(own)
    other = tiny(
        *("Base-RCNN-C4.yaml", "other", "MODEL.RESNET_BACKBONE.ARCH", "resnet18"),
        *("MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"),
        *("INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "48"),
        *("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"),
    )
    train_net(other)
    ensemble = ["TEST.ENSEMBLE", f"['{tmp_path / 'other'}']"]
    sizes = ["TEST.MULTI_SCALE.SIZES", "[48, 96]"]
    switches = {"none": [], "all": [*REFINEMENT, *MULTI_SCALE, *sizes, *ensemble]}
    results, facts = {}, {}
    for name, keys in switches.items():
        output = tmp_path / name
        words = ["MODEL.WEIGHTS", str(tmp_path / "own" / "model_final.pth"), *keys, "OUTPUT_DIR", str(output)]
        figures = train_net(own, "--eval-only", *words)
        assert figures["shapes_val"] == json.loads((output / "inference" / "metrics.json").read_text())
        assert len(list((output / "inference" / "pictures").glob("*.png"))) == 5 + 1
        results[name] = results_of(output)
        facts[name] = json.loads((output / "inference" / "facts.json").read_text())
    assert all(len(found) >= 25 for found in results.values())
    assert results["none"] == results_of(tmp_path / "own") != results["all"]
    assert facts["all"]["num_images"] == 5 and facts["all"]["parameters"] > facts["none"]["parameters"]
    assert facts["all"]["multiply_adds"] > facts["none"]["multiply_adds"]


def test_they_are_for_the_last_evaluation_and_not_for_those_on_the_way(tiny):
    """The last evaluation of a training gives what --eval-only gives; the one before it, the plain figures."""
    keys = [*REFINEMENT, "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"]
    Run(tiny("quickstart.yaml", "run", *keys)).start()
    folder = Path(tiny("quickstart.yaml", "run").OUTPUT_DIR)
    last = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    again = tiny("quickstart.yaml", "again", *REFINEMENT, *last)
    Run(again, eval_only=True).start()
    assert results_of(Path(again.OUTPUT_DIR)) == results_of(folder)
    without = tiny("quickstart.yaml", "plain", *last)
    Run(without, eval_only=True).start()
    assert results_of(Path(without.OUTPUT_DIR)) != results_of(folder)

    way = tiny("quickstart.yaml", "way", "MODEL.WEIGHTS", str(folder / "model_0000001.pth"))
    expected = Run(way, eval_only=True).start()["shapes_val"]["bbox"]
    on_the_way = json_lines(folder / "metrics.json")
    recorded = {
        key.removeprefix("shapes_val/bbox/"): value
        for record in on_the_way
        if record["iteration"] == 1
        for key, value in record.items()
        if key.startswith("shapes_val/bbox/")
    }
    assert recorded == {name: expected[name] for name in recorded} and "AP50" in recorded


@pytest.fixture
def member(tiny) -> Path:
    """The folder of a finished run."""
    cfg = tiny("quickstart.yaml", "member", "DATASETS.TEST", "()")
    Run(cfg).start()
    return Path(cfg.OUTPUT_DIR)


def test_an_ensemble_says_what_is_wrong_with_a_folder(tiny, tmp_path, member):
    def ensemble(folder: Path) -> Run:
        return Run(tiny("quickstart.yaml", "run", "TEST.ENSEMBLE", f"['{folder}']"))

    assert len(ensemble(member)._improved.detectors) == 2
    with pytest.raises(FileNotFoundError, match=r"TEST.ENSEMBLE .*there is no such folder"):
        ensemble(tmp_path / "nowhere")
    path = member / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("FC_DIM: 256", "FC_DIM: 128"))
    assert path.read_text() != text
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .*another detector than the config describes"):
        ensemble(member)
    path.write_text(f"{text}\nEXPERIMENT: 3\n")
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .*does not obey the key EXPERIMENT"):
        ensemble(member)
    path.write_text(text)
    checkpoint = member / "model_final.pth"
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "class_names": state["class_names"][::-1]}, checkpoint)
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .*it learned the classes \['cross', .* this run has"):
        ensemble(member)
    torch.save({**state, "model": {"rpn.head.conv.0.0.weight": torch.zeros(1)}}, checkpoint)
    with pytest.raises(ValueError, match=r"TEST.ENSEMBLE .* torchvision engine; evaluate with --engine torchvision"):
        ensemble(member)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_context_does_not_load_with_it(tiny, member):
    words = ["MODEL.WEIGHTS", str(member / "model_final.pth")]
    fault = r"cls_score.weight \(\(\d, 256\) in the file, \(\d, 512\) in the model"
    with pytest.raises(ValueError, match=fault):
        Run(tiny("quickstart.yaml", "run", *CONTEXT, *words), eval_only=True)


@pytest.mark.parametrize("keys", [REFINEMENT, MULTI_SCALE], ids=["refinement", "multi_scale"])
def test_other_heads_cannot_be_taken_apart(tiny, keys):
    cascade = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    with pytest.raises(ValueError, match="found GeneralizedRCNN with CascadeROIHeads.* Write ENABLED: False"):
        Run(tiny("quickstart.yaml", "run", *cascade, *keys))


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("retinanet/r18_fpn.yaml", REFINEMENT, "TEST.BOX_REFINEMENT.ENABLED is for .* RetinaNet: write False"),
        ("retinanet/r18_fpn.yaml", CONTEXT, "GLOBAL_CONTEXT is for detectors with a second stage.* write False"),
        ("panoptic/r50_fpn.yaml", MULTI_SCALE, "TEST.MULTI_SCALE.ENABLED is for .* PanopticFPN: write False"),
        ("mask/r18_fpn.yaml", ["TEST.ENSEMBLE", "['a']"], "TEST.ENSEMBLE improves boxes alone, and MODEL.MASK_ON"),
        ("quickstart.yaml", [*REFINEMENT, "TEST.AUG.ENABLED", "True"], "write TEST.AUG.ENABLED False, or leave"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(tiny, config, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny(config, "run", *overrides)


def test_an_ensemble_has_no_masks(faster_rcnn):
    keys = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    parts = [faster_rcnn("fpn"), faster_rcnn("fpn", *keys, "MODEL.ROI_MASK_HEAD.CONV_DIM", "8")]
    with pytest.raises(ValueError, match="without MODEL.MASK_ON; found .* MASK_ON True"):
        ImprovedRCNN(parts, improvement_settings(parts[0][0]))
