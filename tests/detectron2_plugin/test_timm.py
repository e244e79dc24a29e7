"""timm's networks under Detectron2's builders: checked, filled, trained as ours."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed: pip install resnet_backbone[timm]")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import instantiate  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from resnet_backbone.config.schema import ConfigError  # noqa: E402
from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.lazy import fpn_node, trunk_node  # noqa: E402
from resnet_backbone.weights import InputFormat, WeightsError, package_weights  # noqa: E402

ARCH = ["MODEL.RESNET_BACKBONE.ARCH", "timm/convnext_atto", "MODEL.RESNET_BACKBONE.NORM", ""]
PIXELS = InputFormat("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


@pytest.fixture
def packaged(tmp_path):
    """A packaged file of ``convnext_atto``, random, with a mean of its own."""
    torch.manual_seed(0)
    state = timm.create_model("convnext_atto").state_dict()
    torch.save(state, tmp_path / "raw.pth")
    package_weights(tmp_path / "raw.pth", tmp_path / "packaged.pth", "timm/convnext_atto", PIXELS)
    return str(tmp_path / "packaged.pth"), state


def config(*words: str):
    small = ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.FPN.OUT_CHANNELS", "16"]
    return load_config("Base-RCNN-FPN.yaml", [*small, *ARCH, "MODEL.WEIGHTS", "", *words])


def right_input(source: str) -> list[str]:
    values = str(list(PIXELS.mean))
    return ["MODEL.WEIGHTS", source, "MODEL.PIXEL_MEAN", values, "MODEL.PIXEL_STD", values]


def test_stock_checkpointer_fills_the_trunk_under_timms_names(packaged, caplog):
    source, state = packaged
    model = build_model(config(*right_input(source)))
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load(source)
    trunk = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.items()) and len(trunk) == 124
    assert "backbone.bottom_up.stages.3.blocks.1.mlp.fc2.weight" in model.state_dict()
    assert "the checkpoint fills all 124 tensors" in caplog.text


def test_an_incomplete_file_is_refused(packaged, tmp_path):
    source, _ = packaged
    content = torch.load(source, weights_only=True)
    del content["model"]["stages.2.blocks.0.conv_dw.weight"]
    torch.save(content, tmp_path / "less.pth")
    model = build_model(config(*right_input(source)))
    with pytest.raises(WeightsError, match=r"1 of 124 tensors are missing.*: stages.2.blocks.0.conv_dw.weight"):
        DetectionCheckpointer(model).load(str(tmp_path / "less.pth"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"),
        ("MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"),
    ],
)
def test_a_wrong_input_is_refused_by_the_builder(packaged, key, value):
    with pytest.raises(ValueError, match=rf"the input does not match the weights .*\n  {key}: "):
        build_model(config(*right_input(packaged[0]), key, value))


def test_a_wrong_input_is_refused_by_name_without_a_download(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:1")
    source = "timm://vit_base_patch16_224.augreg_in21k"  # mean and std 0.5
    words = ["MODEL.RESNET_BACKBONE.ARCH", "timm/vit_base_patch16_224", "MODEL.WEIGHTS", source]
    cfg = config()
    cfg.merge_from_list(words)
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_MEAN: \[127.5, 127.5, 127.5\]   # the config has \[123.675"):
        build_model(cfg)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MODEL.RESNET_BACKBONE.NORM", "FrozenBN"], "LayerNorm2d: write '', for its own .*RESNET_BACKBONE.NORM"),
        (["MODEL.RESNET_BACKBONE.ARCH", "timm/convnext_ato"], "near are .*convnext_atto"),
        (["MODEL.RESNET_BACKBONE.ARCH", "timm/levit_128s"], "does not take images of any size"),
        (["MODEL.RESNET_BACKBONE.PAD_TO", "48"], "PAD_TO is 48; this pyramid needs a multiple of 32"),
        (["MODEL.RESNET_BACKBONE.CHECKPOINT_STAGES", "['res9']"], "must be stages of this trunk: stem, res2"),
        (["MODEL.BACKBONE.FREEZE_AT", "6"], "freeze_at=6 must be 0 .*MODEL.BACKBONE.FREEZE_AT"),
    ],
)
def test_configs_are_refused_before_training(words, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        config(*words)


@pytest.mark.parametrize("heads", ["ImageNetRes5ROIHeads", "Res5ROIHeads"])
def test_res5_is_no_head_here(heads):
    with pytest.raises(ConfigError, match="write StandardROIHeads"):
        load_config("Base-RCNN-C4.yaml", [*ARCH, "MODEL.ROI_HEADS.NAME", heads, "MODEL.DEVICE", "cpu"])


@pytest.mark.slow
def test_maxvit_pads_images_to_its_windows():
    name = ["MODEL.RESNET_BACKBONE.ARCH", "timm/maxvit_pico_rw_256", "MODEL.RESNET_BACKBONE.NORM", "FrozenBN"]
    with torch.device("meta"):
        backbone = build_model(config(*name, "MODEL.DEVICE", "meta")).backbone
    assert backbone.size_divisibility == 256


def test_lazy_config(packaged):
    source, _ = packaged
    node = fpn_node(trunk_node("timm/convnext_atto", ["res3", "res4", "res5"], norm="", freeze_at=1), out_channels=8)
    values = {"pixel_mean": [127.5] * 3, "pixel_std": [127.5] * 3, "input_format": "RGB"}
    cfg = OmegaConf.create(
        {"train": {"init_checkpoint": source}, "model": {**values, "backbone": node}}, flags={"allow_objects": True}
    )
    backbone = instantiate(cfg.model.backbone)
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6"]
    assert not any(one.requires_grad for name, one in backbone.named_parameters() if "bottom_up.stem." in name)
    cfg.model.input_format = "BGR"
    with pytest.raises(ValueError, match="model.input_format = 'RGB'   # the config has 'BGR'"):
        instantiate(cfg.model.backbone)
