import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from resnet_backbone.config.weights_input import required_by_source
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import (
    InputFormat,
    TestTransform,
    WeightsError,
    load_weights,
    package_weights,
    read_weights,
)
from resnet_backbone.weights.catalog import TORCHVISION_RGB

ROOT = Path(__file__).resolve().parents[2]
BGR = InputFormat("BGR", (103.939, 116.779, 123.68), (1, 1, 1))


@pytest.fixture
def raw(tmp_path, random_torchvision):
    """The first stages of a ResNet-152, whose eight blocks in res3 tell it apart, in a small file."""
    state = random_torchvision("resnet152").state_dict()
    first = {name: t for name, t in state.items() if not name.startswith(("layer3", "layer4", "fc"))}
    torch.save(first, tmp_path / "raw.pth")
    return tmp_path / "raw.pth"


TRUNK = {"num_classes": 0, "out_features": ("res3",)}


def test_round_trip(tmp_path, raw):
    out = tmp_path / "out.pth"
    facts = package_weights(raw, out, input_format=BGR, stride_in_1x1=False)
    content = torch.load(out, weights_only=True)
    assert set(content) == {"model", "matching_heuristics", "resnet_backbone"}
    assert content["matching_heuristics"] is True
    assert content["resnet_backbone"] == facts == json.loads(json.dumps(facts))
    assert facts["source"] == "raw.pth"
    assert facts["source_sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert not any(name.endswith("num_batches_tracked") for name in content["model"])

    weights = read_weights(out)
    assert (weights.arch, weights.input_format, weights.stride_in_1x1) == ("resnet152", BGR, False)
    assert (weights.norm, weights.num_classes) == ("BN", 0)
    packaged, direct = create_model("resnet152", **TRUNK), create_model("resnet152", **TRUNK)
    assert load_weights(packaged, out).input_format == BGR
    load_weights(direct, raw)
    for name, tensor in direct.state_dict().items():
        assert torch.equal(packaged.state_dict()[name], tensor), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "raw.pth"]


def test_a_package_of_safetensors_says_the_same(tmp_path, raw):
    facts = package_weights(raw, tmp_path / "a.safetensors", input_format=BGR, stride_in_1x1=False)
    assert facts == package_weights(raw, tmp_path / "a.pth", input_format=BGR, stride_in_1x1=False)
    ours, theirs = (read_weights(tmp_path / name) for name in ("a.safetensors", "a.pth"))
    for field in ("arch", "input_format", "stride_in_1x1", "norm", "test_transform", "licence", "class_names"):
        assert getattr(ours, field) == getattr(theirs, field)
    assert ours.state_dict.keys() == theirs.state_dict.keys() == load_file(tmp_path / "a.safetensors").keys()
    assert all(torch.equal(tensor, theirs.state_dict[name]) for name, tensor in ours.state_dict.items())
    assert required_by_source(str(tmp_path / "a.safetensors"), "resnet152")["INPUT.FORMAT"] == "BGR"
    with pytest.raises(WeightsError, match="is of resnet152"):
        required_by_source(str(tmp_path / "a.safetensors"), "resnet50")


@pytest.mark.parametrize("description", ["{", "3", "[]", '{"format_version": 1}', "[" * 100_000])
def test_a_damaged_description_of_safetensors(tmp_path, description):
    save_file(
        {"stem.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "w.safetensors", {"resnet_backbone": description}
    )
    with pytest.raises(WeightsError, match="its description is damaged"):
        read_weights(tmp_path / "w.safetensors")


def test_a_model_card(tool, tmp_path, raw):
    card = tmp_path / "README.md"
    arguments = [*PIXELS, "--stride-in-1x1", "no", "--model-card", str(card)]
    assert tool.main([str(raw), str(tmp_path / "w.safetensors"), *arguments]) == 0
    head = yaml.safe_load(card.read_text().split("---")[1])
    assert head["license"] == "unknown" and head["pipeline_tag"] == "image-feature-extraction"
    assert "| pixels | BGR, 0 to 255, mean [103.939, 116.779, 123.68], std [1.0, 1.0, 1.0] |" in card.read_text()
    assert hashlib.sha256(raw.read_bytes()).hexdigest() in card.read_text()


def test_a_package_of_a_package_is_the_same(tmp_path, raw):
    first = package_weights(raw, tmp_path / "1.pth", input_format=BGR, stride_in_1x1=True)
    second = package_weights(tmp_path / "1.pth", tmp_path / "2.pth")
    assert {k: v for k, v in first.items() if "source" not in k} == {
        k: v for k, v in second.items() if "source" not in k
    }


def test_the_package_knows_its_stride(tmp_path, raw):
    package_weights(raw, tmp_path / "1.pth", input_format=BGR, stride_in_1x1=True)
    with pytest.raises(WeightsError, match="stride_in_1x1=True"):
        load_weights(create_model("resnet152", **TRUNK), tmp_path / "1.pth")


def test_nothing_is_guessed(tmp_path, raw):
    with pytest.raises(WeightsError, match="InputFormat"):
        package_weights(raw, tmp_path / "out.pth", stride_in_1x1=False)
    with pytest.raises(WeightsError, match="stride_in_1x1=False"):
        package_weights(raw, tmp_path / "out.pth", input_format=BGR)
    assert not (tmp_path / "out.pth").exists()


def test_contradictions_are_refused(tmp_path, raw):
    package_weights(raw, tmp_path / "1.pth", input_format=BGR, stride_in_1x1=False)
    for options in ({"input_format": TORCHVISION_RGB}, {"stride_in_1x1": True}, {"arch": "resnet101"}):
        with pytest.raises(WeightsError, match="resnet152|trained with"):
            package_weights(tmp_path / "1.pth", tmp_path / "2.pth", **options)
    assert not (tmp_path / "2.pth").exists()


def test_a_stem_alone_needs_its_arch(tmp_path):
    state = {n: t for n, t in create_model("resnet18").state_dict().items() if n.startswith("stem")}
    torch.save(state, tmp_path / "stem.pth")
    with pytest.raises(WeightsError, match="arch="):
        package_weights(tmp_path / "stem.pth", tmp_path / "out.pth", input_format=BGR)
    assert package_weights(tmp_path / "stem.pth", tmp_path / "out.pth", "resnet18", BGR)["arch"] == "resnet18"
    assert read_weights(tmp_path / "out.pth").arch == "resnet18"


def test_views_are_saved_without_what_they_are_views_of(tmp_path):
    state = create_model("resnet18").state_dict()
    whole = torch.zeros(10_000_000)
    state["linear.bias"] = whole[:1000]
    torch.save(state, tmp_path / "raw.pth")
    package_weights(tmp_path / "raw.pth", tmp_path / "out.pth", input_format=BGR)
    assert (tmp_path / "raw.pth").stat().st_size > 80_000_000
    assert (tmp_path / "out.pth").stat().st_size < 48_000_000


@pytest.mark.parametrize(
    ("name", "error"), [("out.pkl", WeightsError), ("out", WeightsError), ("no/out.pth", FileNotFoundError)]
)
def test_destinations_that_are_refused(tmp_path, raw, name, error):
    with pytest.raises(error):
        package_weights(raw, tmp_path / name, input_format=BGR, stride_in_1x1=False)


def test_the_file_is_replaced_and_not_written_into(tmp_path, raw):
    """Whoever has the old file open, mapped into memory or under another name, keeps it."""
    package_weights(raw, tmp_path / "out.pth", input_format=BGR, stride_in_1x1=False)
    (tmp_path / "old.pth").hardlink_to(tmp_path / "out.pth")
    before = (tmp_path / "old.pth").read_bytes()
    package_weights(raw, tmp_path / "out.pth", input_format=BGR, stride_in_1x1=True)
    assert (tmp_path / "old.pth").read_bytes() == before != (tmp_path / "out.pth").read_bytes()


def test_an_existing_file_stays_when_writing_fails(tmp_path, raw, monkeypatch):
    out = tmp_path / "out.pth"
    out.write_bytes(b"before")

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="No space"):
        package_weights(raw, out, input_format=BGR, stride_in_1x1=False)
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "raw.pth"]


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"input_format": None},
        {"input_format": {"mean": 1}},
        {"arch": "resnet18"},
        None,
        {"drop": "norm"},
    ],
)
def test_a_damaged_description(tmp_path, raw, change):
    package_weights(raw, tmp_path / "out.pth", input_format=BGR, stride_in_1x1=False)
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    facts = content["resnet_backbone"]
    if change is None:
        content["resnet_backbone"] = "facts"
    elif "drop" in change:
        del facts[change["drop"]]
    else:
        facts.update(change)
    torch.save(content, tmp_path / "out.pth")
    with pytest.raises(WeightsError, match="out.pth"):
        read_weights(tmp_path / "out.pth")


@pytest.fixture
def tool(load_script):
    return load_script("tools/package_weights.py")


PIXELS = ["--channel-order", "BGR", "--mean", "103.939", "116.779", "123.68", "--std", "1", "1", "1"]


def test_tool(tool, tmp_path, raw, capsys):
    out = tmp_path / "out.pth"
    transform = ["--resize", "288", "--crop", "256", "--interpolation", "bicubic"]
    assert tool.main([str(raw), str(out), *PIXELS, "--stride-in-1x1", "no", *transform]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert (facts["arch"], facts["output"], facts["stride_in_1x1"]) == ("resnet152", str(out), False)
    weights = read_weights(out)
    assert weights.input_format == BGR and weights.test_transform == TestTransform(288, 256, "bicubic")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "not in the catalog"),
        ([*PIXELS, "--stride-in-1x1", "no", "--arch", "resnet18"], "resnet152"),
        ([*PIXELS[:-3], "0", "1", "1"], "greater than 0"),
    ],
)
def test_tool_says_what_is_wrong_and_returns_1(tool, tmp_path, raw, capsys, arguments, said):
    assert tool.main([str(raw), str(tmp_path / "out.pth"), *arguments]) == 1
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.pth"],
        ["a.pth", "b.pth", "--mean", "1", "2", "3"],
        ["a.pth", "b.pth", "--std", "1"],
        ["a.pth", "b.pth", "--crop", "224"],
    ],
)
def test_tool_refuses_half_of_its_arguments(tool, arguments):
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments)
    assert caught.value.code == 2


def test_tool_lists_the_catalog(tool, capsys):
    assert tool.main(["--list"]) == 0
    assert "imagenet://resnet101/IMAGENET1K_V1" in capsys.readouterr().out.splitlines()
