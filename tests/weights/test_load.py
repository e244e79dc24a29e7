import functools
import hashlib
import itertools
import json
import pickle

import pytest
import torch

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import InputFormat, Weights, WeightsError, load_weights, read_weights
from resnet_backbone.weights.architecture import known_archs
from resnet_backbone.weights.catalog import CATALOG, get_entry
from resnet_backbone.weights.source import weights_from_state_dict

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def empty_model(arch, **options):
    """A model without the cost of initialising it; every value is -1."""
    with torch.device("meta"):
        model = create_model(arch, **options)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(-1)
    return model


@functools.cache
def meta_model(arch, num_classes=0, norm=None):
    with torch.device("meta"):
        return create_model(arch, num_classes=num_classes, norm=norm)


def numbered(arch, num_classes=1000, norm=None):
    """A state dict in our names whose n-th tensor is filled with n, without memory."""
    state = meta_model(arch, num_classes, norm).state_dict()
    return {name: torch.full((), i, dtype=t.dtype).expand(t.shape) for i, (name, t) in enumerate(state.items())}


def refused(model, source, *said):
    """Loading must fail, say all of ``said``, and leave the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, source)
    for text in said:
        assert text in str(caught.value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("arch", RESNETS)
def test_a_loaded_resnet_computes_what_torchvisions_does(random_torchvision, arch):
    reference = random_torchvision(arch)
    model = empty_model(arch)
    report = load_weights(model, reference.state_dict())
    assert report.loaded == len(reference.state_dict())
    assert report.ignored == {} and not report.new_head
    images = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["vgg16", "vgg16_bn", "vgg19", "vgg19_bn"])
def test_loaded_vgg_features_are_torchvisions(random_torchvision, arch):
    import torchvision

    with torch.device("meta"):
        reference = getattr(torchvision.models, arch)().features
    reference = reference.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.uniform_(-0.05, 0.05)
    state = {f"features.{name}": tensor for name, tensor in reference.state_dict().items()}
    model = empty_model(arch, num_classes=0)
    load_weights(model, state)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = reference[:-1](images)
        assert expected.abs().max() > 0
        torch.testing.assert_close(model.forward_features(images)["conv5"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("arch", "stride_in_1x1"), sorted({(e.arch, e.stride_in_1x1) for e in CATALOG.values()}))
def test_every_kind_of_published_file_fills_its_model(torchvision_state, arch, stride_in_1x1):
    """Entries of one architecture have the same tensors; MSRA's come without counters. Only the classifier is left."""
    state = numbered(arch, norm="FrozenBN") if stride_in_1x1 else torchvision_state(arch)
    model = empty_model(arch, num_classes=0, stride_in_1x1=stride_in_1x1)
    report = load_weights(model, state)
    assert {why: len(names) for why, names in report.ignored.items()} == {
        "classifier": 6 if arch.startswith("vgg") else 2
    }
    counters = sum(name.endswith("num_batches_tracked") for name in model.state_dict())
    assert report.loaded == len(model.state_dict()) - (counters if stride_in_1x1 else 0)
    for name, tensor in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or tensor.min() >= 0, name


@pytest.mark.parametrize(("of_model", "of_file"), list(itertools.permutations(known_archs(), 2)))
def test_no_architecture_takes_the_weights_of_another(of_model, of_file):
    with pytest.raises(WeightsError, match=f"{of_file}, not of {of_model}"):
        load_weights(meta_model(of_model), numbered(of_file, num_classes=0))


@pytest.mark.parametrize(
    ("of_model", "of_file"),
    [("resnet18", "resnet34"), ("resnet18", "plain18"), ("plain18", "resnet18"), ("resnet50", "resnet34")],
)
def test_a_refused_architecture_leaves_the_model_as_it_was(of_model, of_file):
    refused(empty_model(of_model, num_classes=0), numbered(of_file), of_file, of_model)


@pytest.mark.parametrize(
    ("deep", "shallow", "last"),
    [("resnet101", "resnet50", "res3"), ("resnet34", "resnet18", "res2"), ("vgg19", "vgg16", "conv2")],
)
def test_a_deeper_file_is_refused_by_the_first_stages_too(deep, shallow, last):
    """The stages that the model has are the same in both; what the rest of the file is decides."""
    refused(empty_model(shallow, num_classes=0, out_features=(last,)), numbered(deep), deep)


def test_weights_that_say_what_they_are_beat_what_they_look_like():
    stem = {name: tensor for name, tensor in numbered("resnet50").items() if name.startswith("stem")}
    weights = Weights(stem, "resnet101", None, False, "BN", "here", "", 0)
    refused(empty_model("resnet50", num_classes=0, out_features=("stem",)), weights, "resnet101", "create_model")
    report = load_weights(empty_model("resnet50", num_classes=0, out_features=("stem",)), stem)
    assert report.loaded == 6


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN"])
@pytest.mark.parametrize("counters", [True, False])
def test_counters_of_batch_norm_are_optional_on_both_sides(torchvision_state, norm, counters):
    state = torchvision_state("resnet18")
    if not counters:
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    report = load_weights(empty_model("resnet18", norm=norm), state)
    expected = {"counters of batch norm": 20} if norm == "FrozenBN" and counters else {}
    assert {why: len(names) for why, names in report.ignored.items()} == expected
    assert report.loaded == (122 if counters and norm != "FrozenBN" else 102)


def test_stages_that_the_model_lacks_are_listed_apart():
    model = empty_model("resnet50", num_classes=0, out_features=("res3",))
    report = load_weights(model, numbered("resnet50", norm="FrozenBN"))
    stages = {name.split(".")[0] for name in report.ignored["stages that the model lacks"]}
    assert stages == {"res4", "res5"}
    assert report.ignored["classifier"] == ["linear.bias", "linear.weight"]
    text = report.summary()
    assert "stages that the model lacks" in text and "input format unknown" in text
    assert json.loads(json.dumps(report.to_dict()))["loaded"] == report.loaded


@pytest.mark.parametrize(
    ("arch", "last", "of_model", "of_file"),
    [("resnet18", "linear", 20, 1000), ("resnet18", "linear", 1000, 20), ("vgg16", "fc8", 20, 1000)],
)
def test_another_number_of_classes_leaves_the_last_layer_new(arch, last, of_model, of_file):
    model = empty_model(arch, num_classes=of_model)
    report = load_weights(model, numbered(arch, num_classes=of_file))
    assert report.new_head
    assert report.ignored == {"classifier": [f"{last}.bias", f"{last}.weight"]}
    for name, tensor in model.state_dict().items():
        assert (tensor.flatten()[0] == -1) == name.startswith(last), name
    assert "new" in report.summary()


def test_a_file_without_a_classifier():
    trunk = numbered("resnet18", num_classes=0)
    refused(empty_model("resnet18"), trunk, "no classifier", "num_classes=0")
    assert load_weights(empty_model("resnet18", num_classes=0), trunk).ignored == {}
    assert load_weights(empty_model("resnet18", num_classes=5), trunk).new_head


@pytest.mark.parametrize(("num_classes", "said"), [(1000, "no classifier"), (5, "fc6.bias, fc6.weight")])
def test_a_vgg_file_without_a_classifier_cannot_fill_fc6(num_classes, said):
    with pytest.raises(WeightsError, match=rf"{said}(.|\n)*num_classes=0"):
        load_weights(meta_model("vgg16", num_classes), numbered("vgg16", num_classes=0))


@pytest.mark.parametrize(
    "lost", ["stem.conv1.weight", "res2.0.conv1.norm.running_var", "res5.1.conv2.weight", "linear.bias"]
)
def test_one_missing_tensor(lost):
    state = numbered("resnet18")
    del state[lost]
    refused(empty_model("resnet18"), state, f"1 tensors of the model are not in the file: {lost}", "nothing was loaded")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("arch", ["resnet50", "vgg16_bn", "plain18"])
def test_a_part_of_a_file(arch, keep):
    state = numbered(arch)
    part = dict(itertools.islice(state.items(), int(keep * len(state))))
    refused(empty_model(arch, num_classes=0), part, "tensors of the model are not in the file")


def test_a_file_whose_unused_stage_is_broken_is_refused_too():
    state = {name: tensor for name, tensor in numbered("resnet50").items() if not name.startswith("res5.1.")}
    refused(empty_model("resnet50", num_classes=0, out_features=("res3",)), state, "no whole network")


def test_leftovers_are_an_error():
    state = {**numbered("resnet18", norm="FrozenBN"), "res2.0.conv3.norm.bias": torch.zeros(64)}
    refused(empty_model("resnet18"), state, "1 tensors of the file fit nothing in the model: res2.0.conv3.norm.bias")


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize(("arch", "first"), [("resnet18", "stem.conv1.weight"), ("vgg16", "conv1_1.weight")])
def test_other_input_channels(arch, first, in_channels):
    model = empty_model(arch, num_classes=0, in_channels=in_channels)
    refused(model, numbered(arch), first, "(64, 3,", f"(64, {in_channels},", "in_channels=3")


@pytest.mark.parametrize(
    ("of_model", "of_file", "said"),
    [
        ("GN", "BN", 'norm="BN" or "FrozenBN"'),
        ("GN", "FrozenBN", 'norm="BN" or "FrozenBN"'),
        ("BN", "GN", 'norm="GN"'),
        ("FrozenBN", "GN", "fused"),
    ],
)
def test_norms_of_another_kind(of_model, of_file, said):
    refused(empty_model("resnet18", norm=of_model), numbered("resnet18", norm=of_file), said, "running_mean")


def test_lists_are_shortened():
    with pytest.raises(WeightsError, match=r"and \d\d more") as caught:
        load_weights(empty_model("resnet50", norm="GN"), numbered("resnet50"))
    assert len(str(caught.value)) < 2000


def test_values_that_are_not_finite(torchvision_state):
    state = torchvision_state("resnet18")
    state["layer1.0.bn1.bias"] = torch.full((64,), float("nan"))
    state["fc.bias"] = torch.full((1000,), float("inf"))
    refused(empty_model("resnet18"), state, "2 tensors", "res2.0.conv1.norm.bias", "linear.bias")


def test_another_shape_with_as_many_values(torchvision_state):
    state = torchvision_state("resnet18")
    state["layer2.0.downsample.0.weight"] = torch.zeros(64, 128, 1, 1)
    refused(empty_model("resnet18"), state, "res3.0.shortcut.weight ((64, 128, 1, 1) in the file, (128, 64, 1, 1)")


def test_integers_for_weights(torchvision_state):
    state = torchvision_state("resnet18")
    state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
    refused(empty_model("resnet18"), state, "torch.int8", "stem.conv1.weight")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted(dtype):
    """The counters too: ``model.half()`` and ``model.float()`` leave them alone, other tools do not."""
    state = {name: tensor.to(dtype) for name, tensor in numbered("resnet18").items()}
    model = empty_model("resnet18")
    load_weights(model, state)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    assert model.res5[1].conv2.weight.flatten()[0] == state["res5.1.conv2.weight"].flatten()[0].float()


def test_the_model_does_not_share_memory_with_the_source():
    source = {name: tensor.clone() for name, tensor in numbered("resnet18", norm="FrozenBN").items()}
    model = empty_model("resnet18")
    load_weights(model, source)
    source["linear.bias"].fill_(5)
    assert model.linear.bias[0] != 5
    assert model.linear.bias.requires_grad


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = create_model("resnet18")
    with pytest.raises(WeightsError, match="meta device"):
        load_weights(model, numbered("resnet18", norm="FrozenBN"))


@pytest.mark.parametrize(("of_model", "of_file"), [(True, False), (False, True)])
@pytest.mark.parametrize("arch", ["resnet50", "resnet101", "resnet152"])
def test_stride_placement(arch, of_model, of_file):
    weights = Weights(numbered(arch), arch, None, of_file, "BN", "here", "", 1000)
    stem = {"num_classes": 0, "out_features": ("stem",)}
    refused(empty_model(arch, stride_in_1x1=of_model, **stem), weights, f"stride_in_1x1={of_file}")
    load_weights(empty_model(arch, stride_in_1x1=of_file, **stem), weights)


def test_stride_placement_does_not_matter_without_bottlenecks():
    weights = Weights(numbered("resnet18", norm="FrozenBN"), "resnet18", None, True, "BN", "here", "", 1000)
    load_weights(empty_model("resnet18"), weights)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "backbone.body."])
def test_a_detectors_backbone(prefix):
    state = {prefix + name: tensor for name, tensor in numbered("resnet18", norm="FrozenBN", num_classes=0).items()}
    if prefix:
        state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(1)
    report = load_weights(empty_model("resnet18", num_classes=0), state)
    assert report.loaded == 100
    others = ["roi_heads.box_predictor.cls_score.weight"] if prefix else []
    assert report.ignored.get("other parts of the file", []) == others


@pytest.mark.parametrize("model", [torch.nn.Linear(1, 1), torch.nn.Sequential()])
def test_a_model_that_is_not_ours(model):
    with pytest.raises(TypeError, match="create_model"):
        load_weights(model, {})


@pytest.mark.parametrize("source", [None, 5, [1]])
def test_a_source_that_is_none(source):
    with pytest.raises(TypeError, match="expected a catalog name"):
        load_weights(empty_model("resnet18"), source)


def test_a_checkpoint_instead_of_a_state_dict():
    with pytest.raises(TypeError, match=r"optimizer \(dict\)"):
        load_weights(empty_model("resnet18"), {"model": {}, "optimizer": {}})


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
def test_names_of_the_catalog(empty_hub, torchvision_state, catalog_with_hash, source):
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


def test_vgg_features_have_no_classifier(tmp_path, torchvision_state, catalog_with_hash):
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


def test_msra_from_the_zoos_format(empty_hub):
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


def test_fused_batch_norm_of_the_first_detectron(tmp_path):
    state = first_stages(numbered("resnet50", norm="FrozenBN"))
    blobs = {n: t.numpy() for n, t in caffe2_blobs(state).items() if "running" not in n}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, 2))
    model = empty_model("resnet50", norm="FrozenBN", num_classes=0, out_features=("res2",))
    refused(model, tmp_path / "R-50.pkl", "running_mean", "fused")


def test_detectron2s_converted_torchvision_file(empty_hub):
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


def test_the_arch_that_is_expected_settles_what_the_tensors_leave_open():
    stem = {name: tensor for name, tensor in numbered("resnet50").items() if name.startswith(("stem", "res2", "res3"))}
    assert weights_from_state_dict(stem).arch is None
    assert weights_from_state_dict(stem, arch="resnet101").arch == "resnet101"
    with pytest.raises(WeightsError, match="resnet50 or resnet101, not of resnet18"):
        weights_from_state_dict(stem, arch="resnet18")
