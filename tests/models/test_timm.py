"""timm's networks as trunks: equal to timm's own, freezing what they say, refusing what they cannot do."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from resnet_backbone import create_model, list_models, load_weights
from resnet_backbone.models.acceleration import Acceleration, accelerate
from resnet_backbone.models.complexity import build_on_meta, complexity
from resnet_backbone.models.trunk import OptionError
from resnet_backbone.weights import WeightsError

timm = pytest.importorskip("timm", reason="timm is not installed: pip install resnet_backbone[timm]")

from benchmarks.timm_sweep import PASSED, REFUSED, check, table, unlike_their_start  # noqa: E402

LEVELS = ["res2", "res3", "res4", "res5"]
# The smallest members of their families; wrappers of every kind: lists, getters, own classes, maps with channels last.
FAMILIES = [
    "convnext_atto",
    "edgenext_xx_small",
    "efficientvit_b0",
    "ghostnet_050",
    "hrnet_w18_small",
    "lcnet_035",
    "mambaout_femto",
    "mobilevit_xxs",
    "regnety_002",
    "starnet_s050",
    "test_efficientnet",
    "test_resnet",
]
MORE_FAMILIES = [
    "swin_tiny_patch4_window7_224",
    "bat_resnext26ts",
    "caformer_s18",
    "convnextv2_atto",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "darknet17",
    "davit_tiny",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "efficientnet_lite0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "fbnetv3_b",
    "focalnet_tiny_srf",
    "gcresnext26ts",
    "gernet_s",
    "hgnetv2_b0",
    "iformer_t",
    "inception_next_atto",
    "lambda_resnet26t",
    "lowformer_b0",
    "maxvit_pico_rw_256",
    "mixnet_s",
    "mobileone_s1",
    "mobilevitv2_050",
    "mvitv2_tiny",
    "nf_regnet_b0",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetz_005",
    "repvgg_a0",
    "repvit_m1",
    "resnest14d",
    "resnetv2_18",
    "rexnetr_100",
    "selecsls42",
    "skresnet18",
    "swiftformer_xs",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tresnet_m",
    "twins_svt_small",
    "xception41p",
]


def trunk_of(name: str, **options):
    return create_model(f"timm/{name}", num_classes=0, **options)


@pytest.mark.parametrize("name", FAMILIES + [pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES])
def test_a_family(name):
    row = check(name)
    assert (row.status, row.reason) == (PASSED, "")
    assert row.frozen == (0 if name in ("hrnet_w18_small", "mvitv2_tiny", "twins_svt_small", "xception41p") else 5)


@pytest.mark.parametrize("name", ["efficientformerv2_s0", "botnet26t_256", "coatnext_nano_rw_224"])
def test_networks_for_one_size_are_refused_before_they_are_built(name):
    row = check(name)
    assert row.status == REFUSED and "does not take images of any size" in row.reason
    assert row.reason in table([row])


@pytest.mark.parametrize("name", ["convnext_atto", "test_efficientnet", "test_resnet", "mambaout_femto", "pvt_v2_b0"])
def test_names_are_those_of_the_published_network(name):
    with torch.device("meta"):
        published = timm.create_model(name).state_dict()
        trunk = trunk_of(name, out_features=["res2", "res4"])
    own = trunk.state_dict()
    assert own.keys() | trunk.spare == published.keys() and not own.keys() & trunk.spare
    assert all(own[key].shape == published[key].shape for key in own)
    assert list(trunk.feature_info) == ["res2", "res4"]
    assert trunk.stage_names == ("stem", "res2", "res3", "res4")


def test_a_classifier_is_timms():
    torch.manual_seed(0)
    theirs = unlike(timm.create_model("convnext_atto"))
    ours = create_model("timm/convnext_atto").eval()
    assert ours.num_classes == 1000 and not ours.spare
    load_weights(ours, theirs.state_dict())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)
        maps = ours.forward_features(images)
        trunk = trunk_of("convnext_atto", weights=theirs.state_dict()).eval()
        for key, expected in trunk(images).items():
            torch.testing.assert_close(maps[key], expected, rtol=0, atol=0)
    new = create_model("timm/convnext_atto", num_classes=3)
    with pytest.raises(WeightsError, match="new_head=True"):
        load_weights(new, theirs.state_dict())
    assert load_weights(new, theirs.state_dict(), new_head=True).new_head
    assert torch.equal(new.state_dict()["head.norm.weight"], theirs.state_dict()["head.norm.weight"])


def unlike(model: nn.Module) -> nn.Module:
    unlike_their_start(model)
    return model.eval()


def test_weights_load_all_or_nothing():
    state = timm.create_model("test_resnet").state_dict()
    trunk = trunk_of("test_resnet")
    before = copy.deepcopy(trunk.state_dict())
    missing = {key: tensor for key, tensor in state.items() if key != "layer2.0.conv1.weight"}
    for wrong in (
        missing,
        {**state, "layer2.0.conv9.weight": torch.zeros(1)},
        {"layer2.0.conv1.weight": torch.zeros(1)},
    ):
        with pytest.raises(WeightsError, match="nothing was loaded"):
            load_weights(trunk, wrong)
    with pytest.raises(WeightsError, match="nothing was loaded"):
        load_weights(trunk, timm.create_model("test_convnext").state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in trunk.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "backbone.bottom_up.", "backbone.body.", "backbone.bottom_up.model."]
)
@pytest.mark.parametrize("flat", [False, True])
def test_the_names_of_other_wrappers_are_read(prefix, flat):
    theirs = timm.create_model("convnext_atto", features_only=flat)
    state = {f"{prefix}{key}": tensor for key, tensor in theirs.state_dict().items()}
    assert any("stages_0." in key for key in state) is flat
    others = {"roi_heads.box_head.fc1.weight": torch.zeros(2, 2)} if prefix.startswith("backbone") else {}
    trunk = trunk_of("convnext_atto")
    report = load_weights(trunk, {**state, **others})
    assert report.loaded == len(trunk.state_dict())
    assert report.ignored.get("other parts of the file", []) == list(others)
    plain = {
        key.removeprefix(prefix).replace("stages_", "stages.").replace("stem_", "stem."): t for key, t in state.items()
    }
    assert all(torch.equal(tensor, plain[key]) for key, tensor in trunk.state_dict().items())


def test_a_file_in_the_authors_names_is_converted_by_timm():
    """timm's own loading is the oracle; the names are those of facebookresearch/ConvNeXt."""
    published = timm.create_model("convnext_atto")
    replacements = (("stem.", "downsample_layers.0."), ("blocks.", ""), ("conv_dw", "dwconv"), ("mlp.fc", "pwconv"))
    renamed = {}
    for key, tensor in published.state_dict().items():
        for new, old in replacements:
            key = key.replace(new, old)
        key = key.replace("head.fc.", "head.").replace("head.norm.", "norm.")
        if ".downsample." in key:
            key = f"downsample_layers.{key[7]}.{key[20:]}"
        renamed[key] = tensor
    overlay = {"state_dict": renamed}
    expected = timm.create_model("convnext_atto", pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    assert all(torch.equal(tensor, published.state_dict()[key]) for key, tensor in expected.items())
    ours = create_model("timm/convnext_atto", weights=renamed)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.slow
def test_buffers_of_older_files_are_left_out():
    state = timm.create_model("swin_tiny_patch4_window7_224").state_dict()
    older = {**state, "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    older |= {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
    trunk = trunk_of("swin_tiny_patch4_window7_224", weights=older)
    assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.state_dict().items())


def test_norms():
    theirs = unlike(timm.create_model("test_efficientnet", features_only=True))
    images = torch.randn(1, 3, 64, 64)
    for norm in (None, "", "BN", "FrozenBN", "SyncBN"):
        trunk = trunk_of("test_efficientnet", norm=norm, weights=theirs.state_dict()).eval()
        kinds = {type(module).__name__ for module in trunk.modules() if "Norm" in type(module).__name__}
        wanted = {"FrozenBN": "FrozenBatchNormAct2d", "SyncBN": "SyncBatchNormAct"}.get(norm or "", "BatchNormAct2d")
        assert kinds == {wanted}
        frozen = {name for name, _ in trunk.named_buffers()} & {"bn1.weight", "bn1.bias"}
        assert len(frozen) == 2 * (norm == "FrozenBN")
        if norm != "SyncBN":  # which is for GPUs
            for found, expected in zip(trunk(images).values(), theirs(images), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("convnext_atto", {"norm": "FrozenBN"}, "LayerNorm2d: write ''"),
        ("convnext_atto", {"norm": "SyncBN"}, "LayerNorm2d: write ''"),
        ("test_resnet", {"norm": "GN"}, "BatchNorm2d: write ''"),
        ("test_resnet", {"freeze_at": 6}, "freeze_at=6 must be 0 .* to 5 .*stem, res2, res3, res4, res5"),
        ("hrnet_w18_small", {"freeze_at": 1}, "does not tell its stages apart; write 0"),
        ("test_resnet", {"out_features": ["p2"]}, "must name one or more of .*'stem', 'res2'"),
        ("test_resnet", {"shortcut": "A"}, "leave out shortcut"),
        ("test_resnet", {"stem": "deeplab"}, "leave out stem"),
        ("swin_tiny_patch4_window7_224", {"res5_dilation": 2}, "output_stride"),
        ("convmixer_768_32", {}, "strides .* none a power of two"),
    ],
)
def test_what_a_network_lacks_is_refused(name, options, said):
    with pytest.raises(OptionError, match=said) as error:
        trunk_of(name, **options)
    assert set(error.value.options) <= {*options, "res4_dilation", "res5_dilation", "arch"}


def test_unknown_names_get_near_ones():
    with pytest.raises(WeightsError, match=r"no network 'convnext_tinny'; near are .*convnext_tiny"):
        create_model("timm/convnext_tinny")
    with pytest.raises(
        WeightsError, match="write timm/convnext_tiny, and timm://convnext_tiny.fb_in1k for the weights"
    ):
        create_model("timm/convnext_tiny.fb_in1k")
    assert "timm/convnext_tiny" in list_models("timm/convnext_t*")
    assert list_models("timm/*") == [f"timm/{name}" for name in timm.list_models()]
    assert not any(name.startswith("timm/") for name in list_models())


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WeightsError, match=r"pip install 'resnet_backbone\[timm\]'"):
        create_model("timm/convnext_atto")


def test_dilation():
    trunk = trunk_of("test_resnet", res5_dilation=2).eval()
    assert [info.stride for info in trunk.feature_info.values()] == [2, 4, 8, 16, 16]
    theirs = timm.create_model("test_resnet", features_only=True, output_stride=16).eval()
    load_weights(trunk, theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for found, expected in zip(trunk(images).values(), theirs(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["convnext_atto", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)]
)
def test_checkpointed_stages_have_the_same_gradients(name):
    trunk = trunk_of(name, freeze_at=1)
    images = torch.randn(1, 3, 64, 64)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)  # of the paths that training drops
        trunk.zero_grad()
        sum(x.square().mean() for x in trunk.train()(images).values()).backward()
        return [parameter.grad.clone() for parameter in trunk.parameters() if parameter.requires_grad]

    expected = gradients()
    accelerate(trunk, Acceleration(checkpoint_stages=("res3", "res4")), needed=32)
    switched = [key for key, module in trunk.named_modules() if getattr(module, "grad_checkpointing", False)]
    assert len(switched) == 2
    for found, own in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=0, atol=1e-3 * float(own.abs().max()) + 1e-7)


def test_stages_that_timm_does_not_checkpoint_are_refused():
    with pytest.raises(OptionError, match="CHECKPOINT_STAGES: res3 of timm/test_resnet would count each batch twice"):
        accelerate(trunk_of("test_resnet"), Acceleration(checkpoint_stages=("res3",)), needed=32)
    with pytest.raises(OptionError, match="CHECKPOINT_STAGES: res3 of timm/test_resnet does not recompute"):
        accelerate(trunk_of("test_resnet", norm="FrozenBN"), Acceleration(checkpoint_stages=("res3",)), needed=32)


def test_channels_last_and_bfloat16():
    trunk = unlike(trunk_of("test_efficientnet", norm="FrozenBN"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = trunk(images)
        accelerate(trunk, Acceleration(channels_last=True), needed=32)
        for key, found in trunk(images).items():
            torch.testing.assert_close(found, expected[key], rtol=1e-4, atol=1e-5)
        accelerate(trunk, Acceleration(precision=torch.bfloat16), needed=32)
        for key, found in trunk(images).items():
            assert found.dtype == torch.float32
            assert (found - expected[key]).abs().max() < 0.1 * expected[key].abs().max()


@pytest.mark.parametrize("name", ["convnext_atto", "test_efficientnet", "pvt_v2_b0"])
def test_copies_compute_the_same_and_are_their_own(name):
    trunk = unlike(trunk_of(name, freeze_at=2))
    images = torch.randn(1, 3, 64, 64)
    for other in (copy.deepcopy(trunk), pickle.loads(pickle.dumps(trunk))):  # noqa: S301
        with torch.no_grad():
            for key, expected in trunk(images).items():
                torch.testing.assert_close(other(images)[key], expected, rtol=0, atol=0)
            for parameter in other.parameters():
                parameter.zero_()
            assert float(other(images)["res5"].abs().max()) == 0 < float(trunk(images)["res5"].abs().max())


def test_vit_is_one_map_and_takes_any_size():
    trunk = trunk_of("test_vit").eval()
    assert {key: info.stride for key, info in trunk.feature_info.items()} == {"res4": 16}
    assert trunk(torch.zeros(1, 3, 48, 80))["res4"].shape[2:] == (3, 5)
    frozen = trunk_of("test_vit", freeze_at=1)
    assert {key.partition(".")[0] for key, one in frozen.named_parameters() if one.requires_grad} == {"blocks"}


def test_complexity_is_counted_as_a_whole():
    cost = complexity(build_on_meta("timm/test_resnet"), 224)
    published = timm.create_model("test_resnet")
    assert cost.parameters == sum(parameter.numel() for parameter in published.parameters())
    macs = []
    for module in published.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, y: macs.append(m.weight[0].numel() * y.numel()))
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, _, y: macs.append(m.in_features * y.numel()))
    published.eval()(torch.zeros(1, 3, 224, 224))
    assert cost.multiply_adds == sum(macs)
