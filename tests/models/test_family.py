"""ResNeXt, wide ResNets, ResNet-D and deformable stages: against torchvision's, timm's and Detectron2's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.ops import deform_conv2d

from resnet_backbone.models.complexity import build_on_meta, complexity
from resnet_backbone.models.layers import DeformableConv, fold_norms, scale_weights
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.resnet import AveragedShortcut
from resnet_backbone.weights import WeightsError, load_weights, package_weights
from resnet_backbone.weights.architecture import LAYOUTS, deformable_of
from resnet_backbone.weights.catalog import TORCHVISION_RGB
from tests.helpers import FAMILY, published_model, quickly, spread_norms

DEFORMED = {"deform_on_per_stage": (False, True, False, False)}
MODULATED = {**DEFORMED, "deform_modulated": True, "deform_num_groups": 2}
DEFORMABLE = [DEFORMED, MODULATED]
TO_RES3 = {"num_classes": 0, "out_features": ("res3",)}  # a network of which a test needs no more


def test_the_family_is_complete():
    """Every network that torchvision builds of a ResNet's class is here."""
    theirs = [name for name in torchvision.models.list_models(torchvision.models) if "resne" in name]
    assert set(theirs) < set(LAYOUTS)


def pixels(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch", quickly(arch for arch in FAMILY if arch != "resnext152_32x8d"))  # Detectron2's
def test_everything_is_theirs_to_the_bit(arch):
    """Logits and statistics in both modes, and the gradients of a training step."""
    theirs = spread_norms(published_model(arch))
    ours = create_model(arch, weights=theirs.state_dict())
    for training, (height, width) in ((False, (65, 97)), (True, (33, 64)), (False, (32, 47))):
        theirs.train(training), ours.train(training)
        images = pixels(2, 3, height, width)
        with torch.set_grad_enabled(training):
            expected, found = theirs(images), ours(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        if training:
            expected.square().mean().backward(), found.square().mean().backward()
    norm = lambda model: sorted(float(p.grad.norm()) for p in model.parameters())  # noqa: E731
    assert norm(ours) == norm(theirs)


@pytest.mark.parametrize("arch", quickly(FAMILY, keep=["resnet18d", "resnext50_32x4d"]))
def test_folded_and_channels_last_it_is_the_same_within_rounding(arch):
    torch.manual_seed(0)
    model = spread_norms(create_model(arch, num_classes=0, norm="FrozenBN")).eval()
    images = pixels(1, 3, 65, 97)
    with torch.inference_mode():
        expected = model(images)
        scaled, folded = copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)
        scale_weights(scaled)
        fold_norms(folded)
        for found in (scaled(images), folded(images.contiguous(memory_format=torch.channels_last))):
            for name, feature in expected.items():
                assert (found[name] - feature).abs().max() < 1e-5 * feature.abs().max(), name


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("side", [6, 7])
def test_the_shortcut_of_resnet_d_is_timms(stride, dilation, side):
    resnet = pytest.importorskip("timm.models.resnet", reason="timm is not installed")
    theirs = resnet.downsample_avg(4, 6, 1, stride, dilation).eval()
    ours = AveragedShortcut(4, 6, stride, "BN", keeps_size=dilation > 1).eval()
    state = {key.removeprefix("1.").replace("2.", "norm."): value for key, value in theirs.state_dict().items()}
    ours.conv.load_state_dict(state)
    images = pixels(2, 4, side, side + 1)
    assert torch.equal(ours(images), theirs(images))
    assert ours(images).shape[-2:] == (-(-side // stride), -(-(side + 1) // stride))


def with_offsets(arch: str, **options) -> torch.nn.Module:
    """A network whose offsets move samples by pixels, and whose norms have statistics unlike the identity."""
    torch.manual_seed(0)
    model = spread_norms(create_model(arch, **{"num_classes": 0, **options}))
    for name, parameter in model.named_parameters():
        if "conv2_offset" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def sampled(x: torch.Tensor, layer: DeformableConv, offsets: torch.Tensor) -> torch.Tensor:
    """A deformable convolution by arithmetic: samples by bilinear interpolation with zeros around, then a product."""
    groups = offsets.shape[1] // (27 if layer.modulated else 18)
    shifts = offsets[:, : 18 * groups].reshape(len(x), groups, 9, 2, *offsets.shape[-2:])
    weights = torch.ones_like(shifts[:, :, :, 0])
    if layer.modulated:
        weights = offsets[:, 18 * groups :].sigmoid().reshape(weights.shape)
    height, width = x.shape[-2:]
    rows, columns = (layer.stride[0] * torch.arange(n, dtype=x.dtype) for n in offsets.shape[-2:])
    columns_of_input = []
    for group, part in enumerate(x.chunk(groups, dim=1)):
        for k in range(9):
            dy, dx = ((n - 1) * layer.dilation[0] for n in divmod(k, 3))
            ys = rows[:, None] + dy + shifts[:, group, k, 0]
            xs = columns + dx + shifts[:, group, k, 1]
            grid = torch.stack([(2 * xs + 1) / width - 1, (2 * ys + 1) / height - 1], dim=-1)
            taken = F.grid_sample(part, grid, align_corners=False)
            columns_of_input.append(taken * weights[:, group, k, None])
    stacked = torch.stack(columns_of_input).unflatten(0, (groups, 9)).permute(2, 0, 3, 1, 4, 5).flatten(1, 2)
    kernel = layer.weight.flatten(2)  # (out, in / groups, 9)
    parts = zip(stacked.chunk(layer.groups, dim=1), kernel.chunk(layer.groups), strict=True)
    return torch.cat([torch.einsum("nckhw,ock->nohw", part, own) for part, own in parts], dim=1)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_deformable_convolution_is_torchvisions_operator_and_arithmetic(groups, modulated, stride, dilation):
    torch.manual_seed(0)
    layer = DeformableConv(
        8, 8, 3, modulated=modulated, stride=stride, dilation=dilation, groups=2, activation=False
    ).double()
    x = pixels(2, 8, 7, 9).double()
    rows, columns = (-(-side // stride) for side in x.shape[-2:])
    offsets = 2 * pixels(2, (27 if modulated else 18) * groups, rows, columns, seed=2).double()
    found = layer(x, offsets)
    shifts, mask = offsets[:, : 18 * groups], offsets[:, 18 * groups :].sigmoid() if modulated else None
    theirs = deform_conv2d(x, shifts, layer.weight, None, layer.stride, layer.padding, layer.dilation, mask)
    torch.testing.assert_close(found, theirs, rtol=0, atol=0)
    torch.testing.assert_close(found, sampled(x, layer, offsets))


@pytest.mark.parametrize("arch", ["resnet50", "resnext50_32x4d"])
def test_deformable_stages_are_detectron2s(arch):
    """Its modulated operator, and several groups, need a GPU."""
    config = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    resnet = pytest.importorskip("detectron2.modeling.backbone.resnet")
    layers = pytest.importorskip("detectron2.layers")
    cfg = config.get_cfg()
    node = cfg.MODEL.RESNETS
    node.update(
        DEPTH=50,
        NUM_GROUPS=LAYOUTS[arch].groups,
        WIDTH_PER_GROUP=LAYOUTS[arch].width_per_group,
        DEFORM_ON_PER_STAGE=[False, True, False, True],
        RES5_DILATION=2,
        STRIDE_IN_1X1=False,
        OUT_FEATURES=["res2", "res3", "res4", "res5"],
    )
    theirs = resnet.build_resnet_backbone(cfg, layers.ShapeSpec(channels=3)).eval()
    options = {"norm": "FrozenBN", "freeze_at": 2, "res5_dilation": 2, "out_features": node.OUT_FEATURES}
    ours = with_offsets(arch, deform_on_per_stage=node.DEFORM_ON_PER_STAGE, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    images = pixels(1, 3, 65, 97)
    with torch.inference_mode():
        for (name, found), expected in zip(ours(images).items(), theirs(images).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("options", DEFORMABLE, ids=str)
def test_plain_weights_leave_the_offsets_alone_new(options):
    """The network then computes what it did; modulation halves the deformable convolutions at first."""
    plain = spread_norms(create_model("resnet50", **TO_RES3)).eval()
    model = create_model("resnet50", **TO_RES3, **options).eval()
    report = load_weights(model, plain.state_dict())
    offsets = {name for name in model.state_dict() if "conv2_offset" in name}
    assert report.loaded == len(model.state_dict()) - len(offsets) == len(plain.state_dict())
    assert "offsets of its deformable convolutions are new" in report.summary()
    images = pixels(1, 3, 65, 97)
    with torch.inference_mode():
        found, expected = model(images)["res3"], plain(images)["res3"]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) != bool(options.get("deform_modulated"))


@pytest.mark.parametrize("options", DEFORMABLE, ids=str)
def test_the_weights_tell_which_stages_are_deformable(options):
    model = with_offsets("resnet50", **TO_RES3, **options)
    state = model.state_dict()
    assert deformable_of(state) == {"deform_modulated": False, "deform_num_groups": 1, **options}
    again = create_model("resnet50", weights=state, **TO_RES3).eval()
    images = pixels(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(images)["res3"], model(images)["res3"])
    for other in ({}, {"deform_on_per_stage": (True, False, False, False)}, {**options, "deform_num_groups": 8}):
        wanted = {"deform_on_per_stage": (False,) * 4, **other}
        with pytest.raises(WeightsError, match="The deformable convolutions are not the same.*deform_on_per_stage"):
            create_model("resnet50", weights=state, **TO_RES3, **wanted)
    del state["res3.1.conv2_offset.bias"]
    with pytest.raises(WeightsError, match=r"1 tensors of the model are not in the file: res3.1.conv2_offset.bias"):
        create_model("resnet50", weights=state, **TO_RES3)


@pytest.mark.parametrize("options", DEFORMABLE, ids=str)
def test_a_step_reaches_the_offsets_and_freezing_spares_them(options):
    options = {**options, "deform_on_per_stage": (True, True, False, False)}
    model = create_model("resnet50", **TO_RES3, freeze_at=2, **options).train()
    model(pixels(2, 3, 64, 64))["res3"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("res3."), name
        if "conv2_offset.bias" in name and parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", DEFORMABLE, ids=str)
def test_deformable_stages_folded_and_in_half_precision(options):
    """In float64, where rounding does not move samples."""
    model = with_offsets("resnet50", norm="FrozenBN", **TO_RES3, **options)
    images = pixels(1, 3, 64, 96)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)["res3"]
        model, images = model.double(), images.double()
        expected = model(images)["res3"]
        scaled, folded = copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)
        scale_weights(scaled)
        assert fold_norms(folded) > 0
        for network in (scaled, folded):
            assert (network(images)["res3"] - expected).abs().max() < 1e-11 * expected.abs().max()
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.double().flatten(), expected.flatten(), dim=0) > 0.98


def test_what_deformable_stages_cost_on_paper():
    plain = {stage.name: stage for stage in complexity(build_on_meta("resnet50"), 224).stages}
    deformed = {stage.name: stage for stage in complexity(build_on_meta("resnet50", **MODULATED), 224).stages}
    more = deformed.pop("res3"), plain.pop("res3")  # four blocks, whose 3x3 convolutions return 28 x 28 pixels
    assert more[0].multiply_adds - more[1].multiply_adds == 4 * 28**2 * 54 * 9 * 128
    assert more[0].parameters - more[1].parameters == 4 * 54 * (9 * 128 + 1)
    assert deformed == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet50d", "stem": "deeplab"}, "resnet50d has a stem of its own: leave out stem$"),
        ({"arch": "resnet50d", "shortcut": "B"}, "shortcut='B' is not of resnet50d: write 'D', or leave it out"),
        ({"arch": "resnet50", "shortcut": "D"}, "shortcut='D' is not of resnet50: write one of 'A', 'B', 'C'"),
        ({"arch": "resnet18", "deform_on_per_stage": [False, False, False, True]}, "resnet18 has no bottlenecks"),
        ({"arch": "vgg16", "deform_on_per_stage": [False, False, False, True]}, "leave out deform_on_per_stage$"),
        ({"arch": "resnet50", "deform_on_per_stage": [True]}, "must have 4 values, for res2 to res5"),
        ({"arch": "resnet50", "deform_modulated": True}, "need True for a stage in deform_on_per_stage"),
        ({"arch": "resnet50", **DEFORMED, "deform_num_groups": 3}, "deform_num_groups=3 must divide 64"),
        ({"arch": "resnext18"}, "unknown model 'resnext18'; did you mean"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize("arch", ["resnext50_32x4d", "wide_resnet50_2"])
def test_a_packaged_file_loads_into_detectron2s_own_resnet(tmp_path, arch):
    """By its checkpointer, in MODEL.RESNETS.NUM_GROUPS and WIDTH_PER_GROUP; the features are ours to the bit."""
    config = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    resnet = pytest.importorskip("detectron2.modeling.backbone.resnet")
    layers = pytest.importorskip("detectron2.layers")
    checkpoint = pytest.importorskip("detectron2.checkpoint")
    model = spread_norms(published_model(arch)).eval()
    torch.save(model.state_dict(), tmp_path / "raw.pth")
    facts = package_weights(tmp_path / "raw.pth", tmp_path / "w.pth", None, TORCHVISION_RGB, stride_in_1x1=False)
    assert facts["arch"] == arch
    node = (cfg := config.get_cfg()).MODEL.RESNETS
    node.update(NUM_GROUPS=LAYOUTS[arch].groups, WIDTH_PER_GROUP=LAYOUTS[arch].width_per_group, STRIDE_IN_1X1=False)
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    theirs = resnet.build_resnet_backbone(cfg, layers.ShapeSpec(channels=3)).eval()
    checkpoint.DetectionCheckpointer(theirs).load(str(tmp_path / "w.pth"))
    ours = create_model(arch, weights=tmp_path / "w.pth", num_classes=0, norm="FrozenBN", freeze_at=2).eval()
    images = pixels(1, 3, 65, 97)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    for name, feature in expected.items():
        assert torch.equal(found[name], feature), name
