"""Learning rate, parameter groups and clipping, against formulas and against Detectron2's own."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from resnet_backbone.config.schema import ConfigError
from resnet_backbone.engine.solver import build_optimizer, build_schedule, clip_gradients
from resnet_backbone.models.registry import create_model
from resnet_backbone.torchvision_plugin.config import get_cfg, load_config
from resnet_backbone.torchvision_plugin.detector import build_detector

SCHEDULES = [
    ["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60, 80), "SOLVER.WARMUP_ITERS", 10],
    ["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60, 80), "SOLVER.WARMUP_ITERS", 0],
    ["SOLVER.MAX_ITER", 20, "SOLVER.STEPS", (60000, 80000), "SOLVER.WARMUP_ITERS", 1000],
    ["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60,), "SOLVER.WARMUP_ITERS", 10, "SOLVER.WARMUP_METHOD", "constant"],
    ["SOLVER.MAX_ITER", 100, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_ITERS", 10],
    ["SOLVER.MAX_ITER", 50, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1e-4],
]


def detectron2s_learning_rates(cfg, build) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warm_up_and_steps_by_hand():
    cfg = get_cfg()
    cfg.merge_from_list(SCHEDULES[0] + ["SOLVER.BASE_LR", 0.02])
    rates = list(map(build_schedule(cfg), range(100)))
    for iteration, rate in enumerate(rates):
        if iteration < 10:
            expected = 0.02 * (0.001 + (1 - 0.001) * iteration / 10)
        else:
            expected = 0.02 * 0.1 ** ((iteration >= 60) + (iteration >= 80))
        assert rate == pytest.approx(expected, rel=1e-9), iteration


@pytest.mark.parametrize("overrides", SCHEDULES, ids=str)
def test_schedules_are_detectron2s(overrides):
    solver = pytest.importorskip("detectron2.solver", reason="Detectron2 is not installed")
    config = pytest.importorskip("detectron2.config")
    ours, theirs = get_cfg(), config.get_cfg()
    ours.merge_from_list(overrides), theirs.merge_from_list(overrides)
    rates = list(map(build_schedule(ours), range(ours.SOLVER.MAX_ITER)))
    assert rates == pytest.approx(detectron2s_learning_rates(theirs, solver.build_lr_scheduler))


def test_norms_decay_on_their_own_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    groups = build_optimizer(get_cfg(), model).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.0001, 2), (0.0, 4)]


def rates_and_decays(optimizer, model) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("bias", [[], ["SOLVER.BIAS_LR_FACTOR", 2.0], ["SOLVER.WEIGHT_DECAY_BIAS", 0.5]], ids=str)
def test_rates_and_decays_are_detectron2s(bias):
    solver = pytest.importorskip("detectron2.solver", reason="Detectron2 is not installed")
    config = pytest.importorskip("detectron2.config")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    ours, theirs = get_cfg(), config.get_cfg()
    ours.merge_from_list(bias), theirs.merge_from_list(bias)
    expected = rates_and_decays(solver.build_optimizer(theirs, model), model)
    assert rates_and_decays(build_optimizer(ours, model), model) == expected


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_trunk_learns_at_a_rate_of_its_own(optimizer):
    """By the formula of layer-wise decay; the pyramid and the heads are no part of the trunk, res5 of a C4 head is."""
    cfg = get_cfg()
    keys = {"BASE_LR": 1.0, "TRUNK_LR_FACTOR": 0.5, "LAYER_DECAY": 0.1, "OPTIMIZER": optimizer.__name__}
    cfg.merge_from_list([item for name, value in keys.items() for item in (f"SOLVER.{name}", value)])
    fpn = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": create_model("resnet18", num_classes=0)})})
    fpn["backbone"]["fpn"] = nn.ModuleDict({"inner_blocks": nn.Conv2d(3, 3, 1)})
    fpn["backbone"]["fpn_lateral2"] = nn.Conv2d(3, 3, 1)
    trunk = create_model("vgg16", num_classes=0)
    c4 = nn.ModuleDict({"backbone": create_model("resnet50", num_classes=0, out_features=("res4",))})
    c4["roi_heads"] = nn.ModuleDict({"res5": nn.Conv2d(3, 3, 1), "box": nn.Linear(3, 3)})
    stages = {"stem": 5, "res2": 4, "res3": 3, "res4": 2, "res5": 1}
    for model, powers in (
        (fpn, {f"backbone.bottom_up.{stage}.": power for stage, power in stages.items()}),
        (c4, {f"{'roi_heads' if stage == 'res5' else 'backbone'}.{stage}.": power for stage, power in stages.items()}),
        (nn.ModuleDict({"backbone": trunk}), {f"backbone.conv{number}_": 6 - number for number in range(1, 6)}),
    ):
        built = build_optimizer(cfg, model)
        assert type(built) is optimizer
        for name, (rate, _) in rates_and_decays(built, model).items():
            power = next((power for prefix, power in powers.items() if name.startswith(prefix)), None)
            assert rate == pytest.approx(1.0 if power is None else 0.5 * 0.1**power), name


@pytest.fixture(params=["torchvision", "detectron2"])
def of_engine(request):
    """How an engine loads a config, and builds its detector."""
    if request.param == "torchvision":
        return load_config, build_detector
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.checkpoint import build_detector as build
    from resnet_backbone.detectron2_plugin.config import load_config as load

    return load, build


def on_timm(name: str, *keys: str) -> list[str]:
    backbone = {"ARCH": f"timm/{name}", "NORM": ""}
    words = [word for key, value in backbone.items() for word in (f"MODEL.RESNET_BACKBONE.{key}", value)]
    return ["MODEL.DEVICE", "cpu", *words, *keys]


# What the names of timm's parameters begin with, from the stage of stride 32 to the stem.
STAGES = {
    "resnet18": ["layer4", "layer3", "layer2", "layer1", "conv1 bn1"],
    "convnext_atto": ["stages.3", "stages.2", "stages.1", "stages.0", "stem"],
    "swin_tiny_patch4_window7_224": ["layers.3", "layers.2", "layers.1", "layers.0", "patch_embed"],
    "mobilenetv3_small_100": ["blocks.4 blocks.5", "blocks.2 blocks.3", "blocks.1", "blocks.0", "conv_stem bn1"],
}


@pytest.mark.parametrize("name", STAGES)
def test_timms_stages_learn_at_rates_of_their_own(of_engine, name):
    pytest.importorskip("timm", reason="timm is not installed")
    load, build = of_engine
    keys = ["SOLVER.BASE_LR", "1.0", "SOLVER.TRUNK_LR_FACTOR", "0.5", "SOLVER.LAYER_DECAY", "0.1"]
    cfg = load("quickstart.yaml", on_timm(name, *keys))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build(cfg)
    expected = {
        f"backbone.bottom_up.{start}.": 0.5 * 0.1**power
        for power, starts in enumerate(STAGES[name], 1)
        for start in starts.split()
    }
    rates = rates_and_decays(build_optimizer(cfg, model), model)
    for parameter, (rate, _) in rates.items():
        if parameter.startswith("backbone.bottom_up."):
            (factor,) = [factor for start, factor in expected.items() if parameter.startswith(start)]
        else:
            factor = 1.0
        assert rate == pytest.approx(factor), parameter
    assert all(any(parameter.startswith(start) for parameter in rates) for start in expected)


def test_layer_decay_without_stages_is_refused(of_engine):
    pytest.importorskip("timm", reason="timm is not installed")
    load, _ = of_engine
    load("quickstart.yaml", on_timm("hrnet_w18_small"))
    with pytest.raises(ConfigError, match="SOLVER.LAYER_DECAY is 0.9, .*ARCH timm/hrnet_w18_small apart; write 1.0"):
        load("quickstart.yaml", on_timm("hrnet_w18_small", "SOLVER.LAYER_DECAY", "0.9"))


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_clipping(kind):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["SOLVER.CLIP_GRADIENTS", {"ENABLED": True, "CLIP_TYPE": kind, "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0}]
    )
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    accelerator = Accelerator(cpu=True)
    clip_gradients(cfg, accelerator, accelerator.prepare(torch.optim.SGD(parameters, lr=1)))
    expected = {
        "value": [[1.0, 1.0], [0.3, 0.4]],
        "norm": [[0.6, 0.8], [0.3, 0.4]],
        "full_model": [[3 / 25.25**0.5, 4 / 25.25**0.5], [0.3 / 25.25**0.5, 0.4 / 25.25**0.5]],
    }[kind]
    for parameter, values in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of_weight", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_in_another_memory_format_moves_the_right_weights(of_weight, of_gradient):
    """torch's fused SGD on the CPU walks through both in the order of memory, and moves others (2.14.1)."""
    cfg = get_cfg()
    layer = torch.nn.Conv2d(4, 8, 3, bias=False).to(memory_format=of_weight)
    expected = layer.weight.detach().clone()
    optimizer = build_optimizer(cfg, layer)
    velocity = torch.zeros_like(expected)
    for seed in range(3):
        gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
        layer.weight.grad = gradient.contiguous(memory_format=of_gradient)
        optimizer.step()
        velocity = cfg.SOLVER.MOMENTUM * velocity + gradient + cfg.SOLVER.WEIGHT_DECAY * expected
        expected = expected - cfg.SOLVER.BASE_LR * velocity
    torch.testing.assert_close(layer.weight, torch.nn.Parameter(expected))
