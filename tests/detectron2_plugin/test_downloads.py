"""``imagenet://ARCH/NAME`` as Detectron2 opens it, fetched from a server here that notes what it is asked."""

from __future__ import annotations

import hashlib
import http.server
import io
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import DownloadError, WeightsError
from resnet_backbone.weights.catalog import CATALOG

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402

from resnet_backbone.detectron2_plugin.checkpoint import SafeCheckpointer, local_file  # noqa: E402

NAME = "resnet18/IMAGENET1K_V1"
SOURCE = f"imagenet://{NAME}"
MATCHING = ["MODEL.WEIGHTS", SOURCE, "INPUT.FORMAT", "RGB"]
MATCHING += ["MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53], "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]


@dataclass
class Site:
    content: bytes
    port: int = 0
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(tmp_path, monkeypatch, published) -> Iterator[Site]:
    """A server with ResNet-18 as torchvision publishes it, empty caches, and the catalog pointing at it."""
    buffer = io.BytesIO()
    torch.save(published("resnet18"), buffer)
    site = Site(buffer.getvalue())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(site.content)))
            self.end_headers()
            self.wfile.write(site.content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.port = server.server_port
    url = f"http://127.0.0.1:{site.port}/resnet18.pth"
    entry = replace(CATALOG[NAME], url=url, sha256=hashlib.sha256(site.content).hexdigest())
    monkeypatch.setitem(CATALOG, NAME, entry)
    monkeypatch.setattr("resnet_backbone.weights.download.BACKOFF_S", 0.01)
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_is_a_path(site):
    assert PathManager.isfile(SOURCE) and PathManager.exists(SOURCE) and not PathManager.isdir(SOURCE)
    assert not PathManager.exists("imagenet://resnet18/NONE") and not PathManager.isfile("imagenet://alexnet/V1")
    assert PathManager.isfile("cifar10://resnet20/AKAMASTER") and not PathManager.exists("cifar10://resnet20/NONE")
    assert site.asked == []
    path = PathManager.get_local_path(SOURCE)
    with PathManager.open(SOURCE, "rb") as opened:
        assert opened.read() == Path(path).read_bytes()
    facts = torch.load(path, weights_only=True)["resnet_backbone"]
    assert (facts["arch"], facts["source"]) == ("resnet18", SOURCE)
    assert site.asked == ["/resnet18.pth"]


def test_it_cannot_be_written_or_listed(site):
    with pytest.raises(ValueError, match="is read only, it cannot be opened with mode 'wb'"):
        PathManager.open(SOURCE, "wb")
    with pytest.raises(WeightsError, match="no weights 'NONE' for resnet18; write one of .*IMAGENET1K_V1"):
        PathManager.get_local_path("imagenet://resnet18/NONE")
    assert site.asked == []


def test_detectron2s_checkpointer_loads_it_once_a_machine(site, tmp_path, small_model, published):
    torch.save(published("resnet18"), tmp_path / "raw.pth")
    expected = create_model("resnet18", weights=tmp_path / "raw.pth", num_classes=0).state_dict()
    for _ in range(2):
        model = small_model("resnet18", *MATCHING, device="cpu")
        DetectionCheckpointer(model).load(SOURCE)
        trunk = model.backbone.bottom_up.state_dict()
        assert len(trunk) == 100
        for name, tensor in trunk.items():
            assert torch.equal(tensor, expected[name]), name
    assert site.asked == ["/resnet18.pth"]


def test_trap_10_building_and_resuming_download_nothing(site, tmp_path, small_model):
    """A constructor that downloads does so in every process, and again for every resume and evaluation."""
    model = small_model("resnet18", *MATCHING, device="cpu")
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    other = small_model("resnet18", *MATCHING, device="cpu")
    DetectionCheckpointer(other, str(tmp_path)).resume_or_load(SOURCE, resume=True)
    assert site.asked == []


def _resolve(results: multiprocessing.Queue) -> None:
    results.put(PathManager.get_local_path(SOURCE))


def test_processes_of_a_machine_download_once(site):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_resolve, args=(results,)) for _ in range(4)]
    for child in children:
        child.start()
    paths = {results.get(timeout=60) for _ in children}
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 4
    assert len(paths) == 1 and site.asked == ["/resnet18.pth"]


def test_a_damaged_download_leaves_no_file(site, tmp_path):
    site.content = site.content[:-1] + b"?"
    with pytest.raises(DownloadError, match="sha256"):
        PathManager.get_local_path(SOURCE)
    assert list((tmp_path / "cache").rglob("*.pth")) == []


def loaded(model, source):
    """Return the trunk of a detector after a run's own checkpointer has loaded MODEL.WEIGHTS."""
    SafeCheckpointer(model, "", arch="resnet18", facts={}, save_to_disk=False).load(source)
    return model.backbone.bottom_up.state_dict()


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {f"module.{name}": state[name] for name in state}])
@pytest.mark.parametrize("place", ["address", "file"])
def test_a_run_takes_the_network_that_is_named(site, tmp_path, small_model, published, place, wrap, caplog):
    ones = {name: torch.ones_like(tensor) for name, tensor in published("resnet18").items()}
    torch.save({"state_dict": wrap(published("resnet18")), "state_dict_ema": wrap(ones)}, tmp_path / "w.pth.tar")
    site.content = (tmp_path / "w.pth.tar").read_bytes()
    source = str(tmp_path / "w.pth.tar") if place == "file" else f"http://127.0.0.1:{site.port}/w.pth.tar"
    sha256 = hashlib.sha256(site.content).hexdigest()
    trunk = loaded(small_model("resnet18", device="cpu"), f"{source}#sha256={sha256}")
    assert torch.equal(trunk["stem.conv1.weight"], published("resnet18")["conv1.weight"])
    trunk = loaded(small_model("resnet18", device="cpu"), f"{source}#state_dict_ema")
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in trunk.values())
    with pytest.raises(WeightsError, match="expected was 00000000"):
        local_file(f"{source}#sha256=00000000")
    assert site.asked == ([] if place == "file" else ["/w.pth.tar"])


@pytest.mark.parametrize("name", ["w.pth", "w.ckpt", "w.pkl", "w"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_detector_is_told_by_its_content(tmp_path, small_model, name, prefix):
    """A file of torch's that is named .pkl is not unpickled as Detectron2's checkpointer would do."""
    trained = small_model("resnet18", device="cpu")
    torch.save({"model": {f"{prefix}{key}": value for key, value in trained.state_dict().items()}}, tmp_path / name)
    other = small_model("resnet18", device="cpu")
    loaded(other, str(tmp_path / name))
    for key, value in trained.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_addresses_of_the_catalog_and_others(site, monkeypatch):
    assert local_file(CATALOG[NAME].url) == local_file(SOURCE)
    assert site.asked == ["/resnet18.pth"]
    for address in ("http://example.org/w.pth", "s3://bucket/w.pth", "ftp://example.org/w.pkl"):
        with pytest.raises(WeightsError, match="is not fetched: only https:// is"):
            local_file(address)
    with pytest.raises(FileNotFoundError, match="no such file"):
        local_file("nothing.pth#ema")
