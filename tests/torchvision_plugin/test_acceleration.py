"""The keys that accelerate a backbone, on detectors of the torchvision engine."""

from __future__ import annotations

import copy
import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from resnet_backbone.config.acceleration import acceleration_of, set_up_process
from resnet_backbone.models.acceleration import finish_for_inference
from resnet_backbone.models.layers import ConvNormActivation
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.run import Run

KEY = "MODEL.RESNET_BACKBONE."
PLAIN = (KEY + "FOLD_NORMS", "False", KEY + "MEMORY_FORMAT", "contiguous")
CONFIGS = ["bccd_r18.yaml", "faster/r18_c4.yaml", "faster/r18_dc5.yaml", "retinanet/r18_fpn.yaml", "mask/r18_fpn.yaml"]
SCRATCH = ("MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0")


def batch() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), generator=generator).to(torch.uint8) for size in ((75, 90), (64, 101))]


def boxes_of(detector: torch.nn.Module) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [found["boxes"] for found in detector.eval()(batch())]


@pytest.mark.parametrize("config", CONFIGS)
def test_as_configured_a_detector_finds_the_same_boxes(tiny, config):
    found = []
    for overrides in (PLAIN, ()):
        torch.manual_seed(0)
        found.append(build_detector(tiny(config, *SCRATCH, KEY + "NORM", "FrozenBN", *overrides)))
    plain, fast = found
    assert list(plain.state_dict()) == list(fast.state_dict())
    finished = copy.deepcopy(fast).eval()
    finish_for_inference(finished)
    layers = [m for m in finished.modules() if isinstance(m, ConvNormActivation)]
    assert layers and all(m.norm is None for m in layers), "res5 of a C4 head is folded, too"
    expected = boxes_of(plain)
    for other in (fast, finished):
        for ours, theirs in zip(boxes_of(other), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)


def test_what_is_on_by_default(tiny):
    how = acceleration_of(tiny("quickstart.yaml"))
    assert how.scale_weights and how.channels_last and how.precision is None and how.compile_mode == ""
    cfg = tiny("quickstart.yaml")
    cfg.MODEL.DEVICE = "cuda"
    assert not acceleration_of(cfg).channels_last, "in float32 on a GPU the memory format stays torch's"
    cfg.SOLVER.AMP.ENABLED = True
    assert acceleration_of(cfg).channels_last


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MEMORY_FORMAT", "nhwc"), "MEMORY_FORMAT is 'nhwc', of which .* knows only 'auto' or 'channels_last'"),
        (("PRECISION", "half"), "PRECISION is 'half', of which"),
        (("PRECISION", "float16"), "PRECISION float16 is for GPUs; on the CPU write bfloat16"),
        (("COMPILE", "fast"), "COMPILE is 'fast', of which"),
    ],
)
def test_a_value_that_nothing_knows_is_refused_when_the_config_is_read(tiny, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny("quickstart.yaml", KEY + overrides[0], overrides[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("CHECKPOINT_STAGES", "['res9']"), r"CHECKPOINT_STAGES \['res9'\] must be stages of this trunk: stem, res2"),
        (("PAD_TO", "100"), "PAD_TO is 100; this pyramid needs a multiple of 32"),
        (("COMPILE", "default", KEY + "CHECKPOINT_STAGES", "['res2']"), "torch.compile decides by itself"),
        (
            ("COMPILE", "reduce-overhead", "SOLVER.ACCUMULATION_STEPS", "2"),
            "COMPILE reduce-overhead records CUDA graphs, .*; write MODEL.RESNET_BACKBONE.COMPILE default",
        ),
        (("COMPILE", "max-autotune", "SOLVER.ACCUMULATION_STEPS", "2"), "COMPILE max-autotune records CUDA graphs"),
    ],
)
def test_what_does_not_fit_the_backbone_is_refused_with_the_config(tiny, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny("quickstart.yaml", KEY + overrides[0], *overrides[1:])


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    cfg = tiny("quickstart.yaml", KEY + "COMPILE", "default")
    with pytest.raises(ValueError, match="there is no no-such-compiler; install it, .*or write .*COMPILE ''"):
        Run(cfg)
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_images_are_padded_as_asked_for(tiny):
    detector = build_detector(tiny("quickstart.yaml", KEY + "PAD_TO", "128"))
    assert detector.transform(batch())[0].tensors.shape == (2, 3, 128, 128)
    detector = build_detector(tiny("quickstart.yaml"))
    assert detector.transform(batch())[0].tensors.shape == (2, 3, 96, 128)


@pytest.mark.parametrize(
    "overrides",
    [
        (KEY + "PRECISION", "bfloat16"),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"),
        (KEY + "CHECKPOINT_STAGES", "['res3', 'res4']", KEY + "PAD_TO", "64"),
        PLAIN,
    ],
    ids=["precision", "amp", "checkpointing", "plain"],
)
def test_a_run_trains_and_evaluates_again_to_the_same_figures(tiny, overrides):
    cfg = tiny("bccd_r18.yaml", *SCRATCH, *DATA, *overrides)
    figures = Run(cfg).start()["shapes_val"]
    again = tiny(
        "bccd_r18.yaml",
        *SCRATCH,
        *DATA,
        *overrides,
        *("MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth", "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}_again"),
    )
    assert Run(again, eval_only=True).start()["shapes_val"].to_dict() == figures.to_dict()
    results = "inference/coco_instances_results.json"
    assert (Path(again.OUTPUT_DIR) / results).read_bytes() == (Path(cfg.OUTPUT_DIR) / results).read_bytes()
    saved = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)["model"]
    assert "backbone.bottom_up.stem.conv1.norm.weight" in saved, "checkpoints are not folded"
    assert {tensor.dtype for tensor in saved.values()} <= {torch.float32, torch.int64}


DATA = ("DATASETS.TRAIN", "['shapes_train']", "DATASETS.TEST", "['shapes_val']", KEY + "NORM", "FrozenBN")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_run_trains_and_counts_its_multiply_adds(tiny):
    figures = {}
    for mode in ("", "default"):
        cfg = tiny("bccd_r18.yaml", *SCRATCH, *DATA, KEY + "COMPILE", mode, KEY + "PAD_TO", "64")
        cfg.OUTPUT_DIR += mode
        Run(cfg).start()
        figures[mode] = (Path(cfg.OUTPUT_DIR) / "inference" / "facts.json").read_text()
    counted = [text.split('"multiply_adds"')[1].split(",")[0] for text in figures.values()]
    assert counted[0] == counted[1]


def test_tf32_is_the_process_s(tiny, monkeypatch):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for value, expected in (
            ("nowhere", (False, False)),
            ("everywhere", (True, True)),
            ("convolutions", (True, False)),
        ):
            set_up_process(tiny("quickstart.yaml", "TF32", value, "KEEP_FREED_MEMORY", "False"))
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == expected
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    with pytest.raises(ValueError, match="TF32 is 'on', of which"):
        tiny("quickstart.yaml", "TF32", "on")


def test_freed_memory_is_kept_only_where_it_is_asked_for(tiny, monkeypatch):
    calls = []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            calls.append(parameter)
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    set_up_process(tiny("quickstart.yaml", "KEEP_FREED_MEMORY", "False"))
    assert calls == []
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    set_up_process(tiny("quickstart.yaml"))
    assert calls == [], "no glibc"
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    set_up_process(tiny("quickstart.yaml"))
    assert calls == [-4, -1, -2]
