"""Reading weights by a catalog name or from a file: what is known of them, in every published format."""

import hashlib
import http.server
import io
import json
import pickle
import threading
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from resnet_backbone.weights import DownloadError, InputFormat, WeightsError, load_weights, read_weights
from resnet_backbone.weights.catalog import CATALOG, get_entry
from resnet_backbone.weights.download import resolve
from resnet_backbone.weights.names import to_our_names
from resnet_backbone.weights.read import read_file
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


NETWORK = {"conv1.weight": torch.ones(2), "fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}
OTHER = {name: tensor + 1 for name, tensor in NETWORK.items()}


@pytest.fixture
def site(empty_hub):
    """A server that offers what ``site.files`` has, and notes in ``site.asked`` what it is asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            content = self.server.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    buffer = io.BytesIO()
    torch.save({"state_dict": NETWORK, "state_dict_ema": OTHER}, buffer)
    server.content = buffer.getvalue()
    server.files, server.asked = {"/a%20b/w.pth.tar?download=true": server.content}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_fetched_once_and_its_hash_told(site, caplog):
    address = f"{site.url}/a%20b/w.pth.tar?download=true"
    sha256 = hashlib.sha256(site.content).hexdigest()
    for part, expected in (("", NETWORK), ("#state_dict_ema", OTHER)):
        weights = read_weights(address + part)
        assert torch.equal(weights.state_dict["stem.conv1.weight"], expected["conv1.weight"])
        assert (weights.source, weights.sha256) == (address + part, sha256)
    assert len(site.asked) == 1
    assert f"write ...#sha256={sha256} to have this file checked" in caplog.text


@pytest.mark.parametrize("digits", [8, 64])
def test_a_hash_that_is_given_is_checked(site, tmp_path, digits, caplog):
    address = f"{site.url}/a%20b/w.pth.tar?download=true"
    sha256 = hashlib.sha256(site.content).hexdigest()[:digits]
    wrong = "0" * digits
    with pytest.raises(
        DownloadError, match=f"its sha256 is {sha256[:8]}.*, expected {wrong}, so the file was thrown away"
    ):
        read_weights(f"{address}#sha256={wrong}")
    weights = read_weights(f"{address}#state_dict_ema&sha256={sha256.upper()}")
    assert torch.equal(weights.state_dict["linear.bias"], OTHER["fc.bias"])
    assert "no hash is known" not in caplog.text
    with pytest.raises(WeightsError, match=f"its SHA-256 is {sha256[:8]}.*, expected was {wrong}"):  # now in the cache
        read_weights(f"{address}#sha256={wrong}")
    path = tmp_path / "own.pth"
    path.write_bytes(site.content)
    assert read_weights(f"{path}#sha256={sha256}").num_classes == 3
    with pytest.raises(WeightsError, match=f"own.pth: its SHA-256 is {sha256[:8]}.*, expected was {wrong}"):
        read_weights(f"{path}#sha256={wrong}")


def test_what_is_no_weight_file_is_not_kept(site, tmp_path):
    site.files["/w.pth"] = b"<!DOCTYPE html><html>sign in</html>"
    with pytest.raises(WeightsError, match="brought no weight file, so it was thrown away: .* is a web page"):
        read_weights(f"{site.url}/w.pth")
    site.files["/w.pth"] = site.content
    assert read_weights(f"{site.url}/w.pth").num_classes == 3


@pytest.mark.parametrize(
    "address",
    ["http://example.org/w.pth", "s3://bucket/w.pth", "gs://bucket/w.pth", "ftp://example.org/w.pth", "file:///w.pth",
     "manifold://w.pth", "ImageNet://resnet50/MSRA", "cifar://resnet20/AKAMASTER",
     "HTTP://example.org/w.pth", "http://127.0.0.1.example.org/w.pth"],
)  # fmt: skip
def test_other_addresses_are_refused_before_anything_is_asked(empty_hub, address):
    with pytest.raises(WeightsError, match="is not fetched: only https:// is.* imagenet://ARCH/NAME and cifar10://"):
        read_weights(address)
    assert not (empty_hub / "cache").exists()


@pytest.fixture
def hub(site, monkeypatch):
    """``site`` as a hub, with one repository: a network in one file, and another in two of them with an index."""
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    names = list(OTHER)
    shards = {f"w-0000{n}-of-00002.safetensors": {name: OTHER[name] for name in names[n - 1 :: 2]} for n in (1, 2)}
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    files = {shard: safetensors.torch.save(tensors) for shard, tensors in shards.items()}
    files["w.safetensors.index.json"] = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    files["model.safetensors"] = safetensors.torch.save(NETWORK)
    folders = {"/us/r.50/resolve/main/": "model.safetensors", "/us/r.50/resolve/v1/sub/": None}
    site.files = {
        folder + name: content
        for folder, only in folders.items()
        for name, content in files.items()
        if only in (None, name)
    }
    return site


def test_a_file_of_a_hub(hub):
    for _ in range(2):
        weights = read_weights("hf://us/r.50/model.safetensors")
        assert torch.equal(weights.state_dict["stem.conv1.weight"], NETWORK["conv1.weight"])
    assert hub.asked == ["/us/r.50/resolve/main/model.safetensors"]


def test_shards_of_a_hub(hub):
    for _ in range(2):
        weights = read_weights("hf://us/r.50@v1/sub/w.safetensors.index.json")
        assert weights.state_dict.keys() == to_our_names(OTHER).keys()
        assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in to_our_names(OTHER).items())
    assert [path.rpartition("/")[2] for path in hub.asked] == [
        "w.safetensors.index.json",
        "w-00001-of-00002.safetensors",
        "w-00002-of-00002.safetensors",
    ]
    with pytest.raises(WeightsError, match=r"is one of 2 parts of a network; name their index, w.safetensors.index"):
        read_weights("hf://us/r.50@v1/sub/w-00001-of-00002.safetensors")


def test_what_the_hubs_own_tools_have_fetched_is_not_fetched_again(hub, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    snapshot = tmp_path / "hub" / "models--us--r.50" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    (snapshot / "model.safetensors").write_bytes(safetensors.torch.save(OTHER))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    weights = read_weights("hf://us/r.50/model.safetensors")
    assert torch.equal(weights.state_dict["stem.conv1.weight"], OTHER["conv1.weight"])
    assert hub.asked == []


@pytest.mark.parametrize("address", ["hf://timm/resnet50", "hf://resnet50", "hf://a/b@/c", "hf://a/b/c?d=1", "hf://"])
def test_names_of_no_file_of_a_hub(empty_hub, address):
    with pytest.raises(WeightsError, match="names no file of a hub; write hf://OWNER/REPO/FILE"):
        read_weights(address)


def test_a_file_that_the_hub_lacks(hub):
    with pytest.raises(DownloadError, match="404"):
        read_weights("hf://us/private/model.safetensors")


@pytest.mark.parametrize("end", ["#sha256=12", "#sha256=xyz", "#a&b", "#sha256=00000000&sha256=00000000"])
def test_ends_that_mean_nothing(end):
    with pytest.raises(WeightsError, match="write #PART, #sha256=DIGITS or #PART&sha256=DIGITS"):
        read_weights(f"w.pth{end}")


def test_addresses_of_published_files_are_their_names_in_the_catalog():
    for entry in CATALOG.values():
        assert resolve(entry.url) == entry.uri
    assert (
        resolve("detectron2://ImageNetPretrained/MSRA/R-50.pkl?matching_heuristics=True") == "imagenet://resnet50/MSRA"
    )
    for name in ("IMAGENET1K_V1", "resnet50/MSRA", "imagenet://resnet50/MSRA", "no/such/file.pth"):
        assert resolve(name) == name


def test_a_published_file_without_a_known_hash_says_so(site, monkeypatch, caplog):
    site.files["/R-50.pkl"] = pickle.dumps({"conv1_w": torch.ones(1).numpy()})
    monkeypatch.setitem(CATALOG, "resnet50/MSRA", replace(CATALOG["resnet50/MSRA"], url=f"{site.url}/R-50.pkl"))
    weights = read_weights("MSRA", arch="resnet50")
    assert weights.input_format.channel_order == "BGR"
    assert f"{site.url}/R-50.pkl: no hash is known to check it by; write ...#sha256={weights.sha256}" in caplog.text


def test_what_was_read_is_not_read_again(tmp_path, numbered, monkeypatch, caplog):
    path = tmp_path / "w.pth"
    torch.save({"model": numbered("resnet18"), "model_ema": numbered("resnet18")}, path)
    expected = read_weights(path)
    raw = read_file(path)
    assert raw.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    caplog.clear()
    monkeypatch.setattr("resnet_backbone.weights.source.read_file", None)
    monkeypatch.setattr("resnet_backbone.weights.read.file_hash", None)
    weights = read_weights(raw, arch="resnet18")
    assert replace(weights, state_dict={}) == replace(expected, state_dict={})
    assert all(torch.equal(tensor, expected.state_dict[name]) for name, tensor in weights.state_dict.items())
    assert "for another write #model_ema behind the file" in caplog.text
