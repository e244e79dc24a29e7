import math
import re

import pytest
import torch
import torchvision

from resnet_backbone.weights import find_entry_by_sha256, get_entry, list_weights
from resnet_backbone.weights.catalog import (
    CATALOG,
    TORCHVISION_RGB,
    TestTransform,
    find_entry_by_address,
    parse_source,
)
from resnet_backbone.weights.errors import WeightsError
from tests.helpers import FAMILY, published_model

ENUMS = {
    "resnet18": "ResNet18_Weights",
    "resnet34": "ResNet34_Weights",
    "resnet50": "ResNet50_Weights",
    "resnet101": "ResNet101_Weights",
    "resnet152": "ResNet152_Weights",
    "resnext50_32x4d": "ResNeXt50_32X4D_Weights",
    "resnext101_32x8d": "ResNeXt101_32X8D_Weights",
    "resnext101_64x4d": "ResNeXt101_64X4D_Weights",
    "wide_resnet50_2": "Wide_ResNet50_2_Weights",
    "wide_resnet101_2": "Wide_ResNet101_2_Weights",
    "vgg16": "VGG16_Weights",
    "vgg16_bn": "VGG16_BN_Weights",
    "vgg19": "VGG19_Weights",
    "vgg19_bn": "VGG19_BN_Weights",
    "googlenet": "GoogLeNet_Weights",
}
IMAGENET = [name for name in list_weights() if CATALOG[name].scheme == "imagenet://"]
CIFAR10 = sorted(set(list_weights()) - set(IMAGENET))
TORCHVISION = [(arch, weights.name) for arch, enum in ENUMS.items() for weights in getattr(torchvision.models, enum)]


@pytest.mark.parametrize(("arch", "name"), TORCHVISION)
def test_facts_are_torchvisions_own(arch, name):
    theirs = getattr(torchvision.models, ENUMS[arch])[name]
    ours = get_entry(arch, name)
    metrics = theirs.meta["_metrics"]["ImageNet-1K"]
    accuracy = [None if math.isnan(metrics[key]) else metrics[key] for key in ("acc@1", "acc@5")]
    transforms = theirs.transforms()
    assert ours.url == theirs.url
    assert [ours.acc1, ours.acc5] == accuracy
    assert ours.num_params == theirs.meta["num_params"]
    assert ours.num_classes == len(theirs.meta["categories"] or range(1000))
    assert [ours.resize] == transforms.resize_size
    assert [ours.crop] == transforms.crop_size
    assert ours.interpolation == transforms.interpolation.value
    assert ours.input_format.mean == pytest.approx([255 * value for value in transforms.mean])
    assert ours.input_format.std == pytest.approx([255 * value for value in transforms.std])


@pytest.mark.parametrize("full_name", IMAGENET)
def test_every_entry_is_consistent(full_name):
    entry = CATALOG[full_name]
    assert entry.full_name == full_name == f"{entry.arch}/{entry.name}"
    assert entry.url.startswith("https://")
    if entry.sha256:
        assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", entry.sha256)
        assert f"-{entry.sha256[:8]}.pth" in entry.url
    else:
        assert entry.url.endswith(".pkl")
    assert entry.stride_in_1x1 == (entry.name == "MSRA")
    with torch.device("meta"):
        options = {"aux_logits": False, "init_weights": False} if entry.arch == "googlenet" else {}
        model = published_model(entry.arch, **options)
    assert entry.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert (entry.acc1 is None) == (entry.acc5 is None)
    if entry.acc1 is not None and entry.acc5 is not None:
        assert 60 < entry.acc1 < entry.acc5 < 100


@pytest.mark.parametrize("full_name", CIFAR10)
def test_the_entries_of_cifar10(full_name):
    """The table of akamaster's README; parameters as counted by arithmetic in tests/models/test_complexity.py."""
    entry = CATALOG[full_name]
    errors = {"20": 8.27, "32": 7.37, "44": 6.90, "56": 6.61}
    depth = entry.arch.removeprefix("cifar_resnet")
    assert entry.url.endswith(f"/resnet{depth}-{entry.sha256[:8]}.th") and re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert (entry.acc1, entry.acc5) == (pytest.approx(100 - errors[depth]), None)
    assert entry.num_classes == len(entry.class_names) == 10 and list(entry.class_names) == sorted(entry.class_names)
    assert (entry.input_format, entry.test_transform) == (TORCHVISION_RGB, TestTransform(32, 32))
    assert (entry.option_a_zeros, entry.licence) == ("both", "BSD-2-Clause")
    assert entry.uri == f"cifar10://{full_name}"
    assert parse_source(f"cifar10://resnet{depth}/AKAMASTER") is entry


def test_names_files_and_hashes_are_unique():
    entries = list(CATALOG.values())
    assert len({entry.url for entry in entries}) == len(entries)
    assert len({entry.file_name for entry in entries}) == len(entries)
    hashes = [entry.sha256 for entry in entries if entry.sha256]
    assert len(set(hashes)) == len(hashes) == len(entries) - 4


def test_parse_source_reads_every_name():
    assert all(parse_source(entry.uri) is entry for entry in CATALOG.values())


def test_list_weights():
    assert list_weights() == sorted(list_weights())
    assert list_weights("vgg16") == ["vgg16/IMAGENET1K_FEATURES", "vgg16/IMAGENET1K_V1"]
    assert {name.split("/")[0] for name in IMAGENET} == {*ENUMS, *FAMILY} - {"resnext152_32x8d"}
    assert list_weights("alexnet") == []


def test_a_name_under_the_scheme_of_another_data_set():
    with pytest.raises(WeightsError, match="write cifar10://cifar_resnet20/AKAMASTER"):
        parse_source("imagenet://cifar_resnet20/AKAMASTER")
    with pytest.raises(WeightsError, match="no weights are published for 'cifar_resnet50'"):
        parse_source("cifar10://resnet50/IMAGENET1K_V1")


@pytest.mark.parametrize(
    "source", ["resnet50/IMAGENET1K_V1", "imagenet://resnet50", "imagenet:resnet50/X", "cifar10://resnet20", ""]
)
def test_parse_source_refuses_another_form(source):
    with pytest.raises(WeightsError, match="imagenet://ARCH/NAME"):
        parse_source(source)


def test_unknown_names_list_the_known():
    with pytest.raises(WeightsError, match=r"IMAGENET1K_V1.*IMAGENET1K_V2.*MSRA"):
        get_entry("resnet101", "IMAGENET1K_V3")
    with pytest.raises(WeightsError, match=r"resnet18.*vgg19_bn"):
        parse_source("imagenet://alexnet/IMAGENET1K_V1")


def test_detectron2s_resnext_has_the_input_of_its_zoo():
    """configs/COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml over Base-RCNN-FPN.yaml."""
    entry = find_entry_by_address("detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl")
    assert entry is CATALOG["resnext101_32x8d/FAIR"] and not entry.stride_in_1x1
    expected = ("BGR", [103.530, 116.280, 123.675], [57.375, 57.120, 58.395])
    found = entry.input_format
    assert (found.channel_order, pytest.approx(found.mean), pytest.approx(found.std)) == expected


@pytest.mark.parametrize("full_name", [name for name in IMAGENET if "/TIMM" in name or "/GLUON" in name])
def test_facts_are_timms_own(full_name):
    entry = CATALOG[full_name]
    timm = pytest.importorskip("timm.models", reason="timm is not installed")
    tag = {"GLUON": "gluon", "TIMM_C1": "c1", "TIMM_RACM": "racm", "TIMM_RA2": "ra2"}.get(entry.name)
    cfg = timm.get_pretrained_cfg(f"{entry.arch}.{tag or entry.name.removeprefix('TIMM_').lower()}_in1k")
    assert entry.url.replace("rwightman", "huggingface") == cfg.url.replace("rwightman", "huggingface")
    assert entry.licence.lower() == cfg.license and entry.interpolation == cfg.interpolation
    crop = (cfg.test_input_size or cfg.input_size)[-1]
    assert (entry.crop, entry.resize) == (crop, math.floor(crop / (cfg.test_crop_pct or cfg.crop_pct)))
    assert entry.input_format.mean == pytest.approx([255 * value for value in cfg.mean])


def test_find_by_hash():
    for entry in CATALOG.values():
        if entry.sha256:
            assert find_entry_by_sha256(entry.sha256.ljust(64, "0")) is entry
            assert find_entry_by_sha256(entry.sha256.upper().ljust(64, "F")) is entry


def test_thirteen_hashes_are_whole_and_one_digit_more_is_another_file():
    whole = [entry for entry in CATALOG.values() if len(entry.sha256) == 64]
    assert len(whole) == 13
    assert all(find_entry_by_sha256(entry.sha256[:8].ljust(64, "0")) is None for entry in whole)


def test_find_by_hash_of_an_unknown_file():
    assert find_entry_by_sha256("f" * 64) is None
    with pytest.raises(ValueError, match="64"):
        find_entry_by_sha256("0676ba61")
