"""What timm's registry and the hub say of weights, and fetching them, from a server on this machine."""

from __future__ import annotations

import http.server
import json
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resnet_backbone import create_model, list_weights
from resnet_backbone.config import required_by_source
from resnet_backbone.weights import DownloadError, InputFormat, WeightsError, package_weights, read_weights
from resnet_backbone.weights.catalog import parse_source

timm = pytest.importorskip("timm", reason="timm is not installed: pip install resnet_backbone[timm]")

ADDRESS = "https://huggingface.co/timm/convnext_atto.d2_in1k/resolve/main/model.safetensors"
CONFIG = {
    "architecture": "test_resnet",
    "num_classes": 7,
    "pretrained_cfg": {
        **{"mean": [0.5, 0.25, 0.125], "std": [0.1, 0.2, 0.4], "input_size": [3, 160, 160], "classifier": "fc"},
        **{"interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "center", "num_classes": 7, "license": "mit"},
    },
}


class Hub:
    """A folder laid out as the hub's addresses, served on this machine, and what was asked of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def put(self, repository: str, state: dict[str, torch.Tensor], file: str = "model.safetensors", **config) -> None:
        folder = self.root / repository.replace("@", "/resolve/") / ("" if "@" in repository else "resolve/main")
        folder.mkdir(parents=True)
        save_file(state, folder / file) if file.endswith(".safetensors") else torch.save(state, folder / file)
        if config:
            (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def hub(tmp_path, monkeypatch, empty_hub):
    served = Hub(tmp_path / "served")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{served.server.server_port}")
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_every_name_of_the_registry_says_its_input():
    seen = 0
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        try:
            entry = parse_source(f"timm://{name}")
        except WeightsError as error:
            assert config.custom_load or config.input_size[0] != 3 or "format of its own" in str(error), error
            continue
        assert entry.uri == f"timm://{name}" and entry.arch == f"timm/{name.partition('.')[0]}"
        assert [entry.input_format.channel_order, entry.num_classes] == ["RGB", config.num_classes]
        assert entry.input_format.mean == pytest.approx([255 * value for value in config.mean])
        assert entry.input_format.std == pytest.approx([255 * value for value in config.std])
        assert entry.acc1 is None
        test = entry.test_transform
        if test is not None:
            assert (test.crop, test.interpolation) == (config.input_size[-1], config.interpolation)
            assert test.resize == int(config.input_size[-1] / config.crop_pct)
        seen += 1
    assert seen > 0.9 * len(timm.list_pretrained())
    names = list_weights("timm/convnext_tiny")
    assert len({parse_source(name).file_name for name in names}) == len(names) > 5


def test_a_name_without_a_tag_is_timms_default(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    entry = parse_source("timm://convnext_atto")
    assert (entry.uri, entry.url) == ("timm://convnext_atto.d2_in1k", ADDRESS)
    assert parse_source("hf-hub:timm/convnext_atto.d2_in1k").url == ADDRESS
    assert (
        parse_source("timm://convnext_tiny").uri
        == f"timm://convnext_tiny.{timm.get_pretrained_cfg('convnext_tiny').tag}"
    )
    assert list_weights("timm/convnext_atto") == ["timm://convnext_atto.d2_in1k"]


def test_one_download_and_the_input_with_it(hub):
    state = timm.create_model("convnext_atto").state_dict()
    hub.put("timm/convnext_atto.d2_in1k", state)
    for source in ("timm://convnext_atto", "timm://convnext_atto.d2_in1k"):
        weights = read_weights(source)
        assert (weights.arch, weights.num_classes, weights.norm) == ("timm/convnext_atto", 1000, "")
        assert weights.input_format.mean == pytest.approx((123.675, 116.28, 103.53))
        assert (weights.test_transform.resize, weights.test_transform.interpolation) == (256, "bicubic")
    model = create_model("timm/convnext_atto", weights="d2_in1k")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert hub.asked == ["/timm/convnext_atto.d2_in1k/resolve/main/model.safetensors"]


def test_a_repository_of_the_hub(hub, tmp_path):
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    hub.put("someone/net", state, "pytorch_model.bin", **CONFIG)
    with pytest.raises(WeightsError, match=r"fetch it first: resnet-backbone package hf-hub:someone/net"):
        required_by_source("hf-hub:someone/net", "timm/test_resnet")
    assert not hub.asked
    weights = read_weights("hf-hub:someone/net")
    assert (weights.arch, weights.num_classes, weights.norm, weights.licence) == ("timm/test_resnet", 7, "BN", "mit")
    assert weights.input_format == InputFormat("RGB", (127.5, 63.75, 31.875), (25.5, 51.0, 102.0))
    assert (weights.test_transform.resize, weights.test_transform.crop) == (200, 160)
    required = required_by_source("hf-hub:someone/net", "timm/test_resnet")
    assert required["MODEL.PIXEL_MEAN"] == [127.5, 63.75, 31.875]

    facts = package_weights("hf-hub:someone/net", tmp_path / "out.pth")
    assert (facts["arch"], facts["test_transform"]["resize"]) == ("timm/test_resnet", 200)
    packaged = read_weights(tmp_path / "out.pth")
    assert packaged.input_format == weights.input_format and packaged.num_classes == 7
    model = create_model("timm/test_resnet", weights=packaged)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items() if "num_batches" not in name)
    assert required_by_source(str(tmp_path / "out.pth"), "timm/test_resnet") == required
    with pytest.raises(WeightsError, match="is of timm/test_resnet, MODEL.RESNET_BACKBONE.ARCH is timm/test_vit"):
        required_by_source(str(tmp_path / "out.pth"), "timm/test_vit")
    paths = [path.rpartition("/")[2] for path in hub.asked]
    assert sorted(set(paths)) == ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert paths.count("pytorch_model.bin") == paths.count("config.json") == 1


def test_a_revision_is_another_file(hub):
    states = [timm.create_model("test_resnet", num_classes=7).state_dict() for _ in range(2)]
    hub.put("someone/net", states[0], **CONFIG)
    hub.put("someone/net@v2", states[1], **CONFIG)
    for source, state in (("hf-hub:someone/net", states[0]), ("hf-hub:someone/net@v2", states[1])):
        assert all(torch.equal(tensor, state[name]) for name, tensor in read_weights(source).state_dict.items())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("timm://convnext_atto.nope", "timm has of convnext_atto timm://convnext_atto.d2_in1k"),
        ("timm://test_nope", "no network 'test_nope'"),
        ("timm://resnet10", "no network 'resnet10'; near are .*resnet101"),
        ("hf-hub:net", "hf-hub:OWNER/REPO"),
        ("hf-hub:../net", "."),
    ],
)
def test_wrong_names(hub, source, said):
    with pytest.raises((WeightsError, DownloadError), match=said):
        read_weights(source)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_args": {"act_layer": "gelu"}}, "was built with act_layer"),
        ({"architecture": "resnet50x"}, "no network 'resnet50x'"),
        ({"architecture": None}, "no network 'None'"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 9, 9]}}, "mean must be three"),
        ({"pretrained_cfg": {"input_size": [1, 9, 9]}}, "1 channels"),
        ({"pretrained_cfg": {"input_size": 3}}, "hf-hub:someone/net: "),
        ({"pretrained_cfg": 3}, "none of timm's"),
    ],
)
def test_a_config_that_is_none_of_timms(hub, changes, said):
    hub.put("someone/net", {"x": torch.zeros(1)}, **{**CONFIG, **changes})
    with pytest.raises(WeightsError, match=said):
        read_weights("hf-hub:someone/net")


def test_weights_of_another_network_are_refused(hub, tmp_path):
    hub.put("timm/convnext_atto.d2_in1k", timm.create_model("convnext_atto").state_dict())
    with pytest.raises(WeightsError, match="timm://convnext_atto is for timm/convnext_atto, not timm/test_resnet"):
        read_weights("timm://convnext_atto", arch="timm/test_resnet")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="say on which pixels it was trained"):
        package_weights(tmp_path / "mine.pth", tmp_path / "out.pth", "timm/test_resnet")
    rgb = InputFormat("RGB", (0, 0, 0), (255, 255, 255))
    assert package_weights(tmp_path / "mine.pth", tmp_path / "out.pth", "timm/test_resnet", rgb)["norm"] == "BN"
    broken = {**timm.create_model("test_resnet").state_dict(), "fc.bias": torch.full((1000,), torch.nan)}
    with pytest.raises(WeightsError, match="not finite"):
        create_model("timm/test_resnet", weights=broken)
