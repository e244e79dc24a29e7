"""Reading weights by a catalog name or from a file: what is known of them, in every published format."""

import hashlib
import pickle

import pytest
import torch

from resnet_backbone.weights import InputFormat, WeightsError, load_weights, read_weights
from resnet_backbone.weights.catalog import CATALOG, get_entry
from resnet_backbone.weights.source import weights_from_state_dict


def put_in_cache(empty_hub, entry, content):
    """Put a file where the entry's would be, and return an entry with that file's hash."""
    path = empty_hub / "cache" / "weights" / entry.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.url.endswith(".pkl"):
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in content.items()}, 2))
    else:
        torch.save(content, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def catalog_with_hash(monkeypatch):
    """Give an entry the hash of a file that a test made."""

    def give(full_name, sha256):
        entry = CATALOG[full_name]
        original = entry.sha256
        object.__setattr__(entry, "sha256", sha256[:8])
        restore.append((entry, original))
        return entry

    restore: list = []
    yield give
    for entry, original in restore:
        object.__setattr__(entry, "sha256", original)


def first_stages(state):
    """The stem, the first stage and the head: small, and as complete as a model that ends there needs."""
    return {n: t for n, t in state.items() if n.startswith(("stem", "conv1", "bn1", "layer1", "res2", "fc", "linear"))}


@pytest.mark.parametrize("source", ["IMAGENET1K_V1", "resnet18/IMAGENET1K_V1", "imagenet://resnet18/IMAGENET1K_V1"])
def test_names_of_the_catalog(empty_model, empty_hub, torchvision_state, catalog_with_hash, source):
    state = first_stages(torchvision_state("resnet18"))
    entry = get_entry("resnet18", "IMAGENET1K_V1")
    sha256 = put_in_cache(empty_hub, entry, state)
    catalog_with_hash("resnet18/IMAGENET1K_V1", sha256)
    weights = read_weights(source, arch="resnet18")
    assert weights.arch == "resnet18"
    assert weights.sha256 == sha256
    assert weights.input_format == entry.input_format
    assert (weights.stride_in_1x1, weights.norm, weights.num_classes) == (False, "BN", 1000)
    assert (weights.licence, weights.acc1) == ("BSD-3-Clause", 69.758)
    model = empty_model("resnet18", num_classes=0, out_features=("res2",))
    assert load_weights(model, source).input_format == entry.input_format
    assert torch.equal(model.res2[1].conv2.weight, state["layer1.1.conv2.weight"])


def test_a_damaged_file_in_the_cache(empty_hub, torchvision_state):
    put_in_cache(empty_hub, get_entry("resnet18", "IMAGENET1K_V1"), {"fc.bias": torch.zeros(1)})
    with pytest.raises(WeightsError, match="delete the file"):
        read_weights("imagenet://resnet18/IMAGENET1K_V1")


def test_a_published_file_is_recognised_by_its_hash(tmp_path, torchvision_state, catalog_with_hash):
    path = tmp_path / "renamed.pth"
    torch.save(first_stages(torchvision_state("resnet18")), path)
    assert read_weights(path).input_format is None
    catalog_with_hash("resnet18/TIMM_A2", hashlib.sha256(path.read_bytes()).hexdigest())
    weights = read_weights(path)
    assert weights.input_format == get_entry("resnet18", "TIMM_A2").input_format
    assert weights.licence == "Apache-2.0"


def test_vgg_features_have_no_classifier(empty_model, refused, tmp_path, torchvision_state, catalog_with_hash):
    """The published file has a classifier without values; recognised or not, it is never loaded."""
    nan = torch.tensor(float("nan"))
    state = torchvision_state("vgg16")
    state = {n: nan.expand(t.shape) if n.startswith("classifier") else t for n, t in state.items()}
    small = {n: t.clone() for n, t in state.items() if not n.startswith("classifier.")}
    torch.save({**small, "classifier.6.bias": torch.full((1000,), float("nan"))}, tmp_path / "f.pth")
    with pytest.raises(WeightsError, match=r"not finite: fc8\.bias"):
        read_weights(tmp_path / "f.pth")
    refused(empty_model("vgg16", num_classes=0), state, "6 tensors", "fc6.weight")
    catalog_with_hash("vgg16/IMAGENET1K_FEATURES", hashlib.sha256((tmp_path / "f.pth").read_bytes()).hexdigest())
    weights = read_weights(tmp_path / "f.pth")
    assert (weights.num_classes, weights.left_out) == (0, ("fc8.bias",))
    assert weights.input_format.std == (1, 1, 1)
    report = load_weights(empty_model("vgg16", num_classes=0), weights)
    assert report.loaded == 26
    refused(empty_model("vgg16"), weights, "num_classes=0")


def caffe2_blobs(state):
    """The blobs of Detectron2's MSRA/R-50.pkl, with the bias of conv1 that no model uses."""
    names = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    branches = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    blobs = {"conv1_b": torch.zeros(64)}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        if module == "linear":
            blobs[f"fc1000_{last[0]}"] = tensor
            continue
        parts = module.removesuffix(".norm").split(".")
        stem = parts[0] == "stem"
        base = ("res_conv1" if ".norm" in name else "conv1") if stem else f"{parts[0]}_{parts[1]}_{branches[parts[2]]}"
        blobs[f"{base}_bn_{names[last]}" if ".norm" in name else f"{base}_w"] = tensor
    return blobs


def test_msra_from_the_zoos_format(empty_model, numbered, refused, empty_hub):
    state = {n: t.clone() for n, t in first_stages(numbered("resnet50", norm="FrozenBN")).items()}
    put_in_cache(empty_hub, get_entry("resnet50", "MSRA"), caffe2_blobs(state))
    weights = read_weights("MSRA", arch="resnet50")
    assert weights.input_format == InputFormat("BGR", (103.53, 116.28, 123.675), (1, 1, 1))
    assert weights.stride_in_1x1 is True
    options = {"num_classes": 0, "out_features": ("res2",), "norm": "FrozenBN"}
    refused(empty_model("resnet50", **options), weights, "stride_in_1x1=True")
    model = empty_model("resnet50", stride_in_1x1=True, **options)
    report = load_weights(model, weights)
    assert report.ignored == {
        "other parts of the file": ["conv1_b"],
        "classifier": ["linear.bias", "linear.weight"],
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_fused_batch_norm_of_the_first_detectron(empty_model, numbered, refused, tmp_path):
    state = first_stages(numbered("resnet50", norm="FrozenBN"))
    blobs = {n: t.numpy() for n, t in caffe2_blobs(state).items() if "running" not in n}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, 2))
    model = empty_model("resnet50", norm="FrozenBN", num_classes=0, out_features=("res2",))
    refused(model, tmp_path / "R-50.pkl", "running_mean", "fused")


def test_detectron2s_converted_torchvision_file(empty_model, numbered, empty_hub):
    state = {n: t.clone() for n, t in first_stages(numbered("resnet50", norm="FrozenBN")).items()}
    content = {name.replace("linear.", "stem.fc."): tensor.numpy() for name, tensor in state.items()}
    path = empty_hub / "cache" / "weights" / get_entry("resnet50", "DETECTRON2_TORCHVISION").file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps({"model": content, "__author__": "torchvision", "matching_heuristics": True}))
    model = empty_model("resnet50", num_classes=0, out_features=("res2",))
    report = load_weights(model, "DETECTRON2_TORCHVISION")
    assert report.input_format.channel_order == "RGB"
    assert report.ignored == {"classifier": ["linear.bias", "linear.weight"]}
    assert torch.equal(model.res2[2].conv3.weight, state["res2.2.conv3.weight"])


@pytest.mark.parametrize(
    ("source", "arch", "error", "said"),
    [
        ("IMAGENET1K_V1", None, WeightsError, "imagenet://ARCH/IMAGENET1K_V1"),
        ("IMAGENET1K_V2", "resnet18", WeightsError, "IMAGENET1K_V1, TIMM_A1"),
        ("IMAGENET22K", "resnet50", WeightsError, "MSRA"),
        ("imagenet://resnet50/IMAGENET22K", None, WeightsError, "MSRA"),
        ("imagenet://resnet50", None, WeightsError, "imagenet://ARCH/NAME"),
        ("imagenet://resnet50/IMAGENET1K_V1", "resnet18", WeightsError, "resnet18/TIMM_A1"),
        ("resnet50/IMAGENET1K_V1", "plain18", WeightsError, "a file"),
        ("nothing.pth", None, FileNotFoundError, "imagenet://ARCH/NAME"),
        ("nothing.pth", "resnet50", FileNotFoundError, "nothing.pth"),
        ("", None, FileNotFoundError, "catalog"),
    ],
)
def test_sources_that_there_are_not(empty_hub, source, arch, error, said):
    with pytest.raises(error, match=said):
        read_weights(source, arch=arch)


def test_the_arch_that_is_expected_settles_what_the_tensors_leave_open(numbered):
    stem = {name: tensor for name, tensor in numbered("resnet50").items() if name.startswith(("stem", "res2", "res3"))}
    assert weights_from_state_dict(stem).arch is None
    assert weights_from_state_dict(stem, arch="resnet101").arch == "resnet101"
    with pytest.raises(WeightsError, match="resnet50 or resnet101, not of resnet18"):
        weights_from_state_dict(stem, arch="resnet18")
