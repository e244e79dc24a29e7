"""COCO and VOC files that a test spoils on purpose, local web servers, and disks that fill up."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes a COCO document with grey-noise images of the stated sizes; returns the JSON and the image folder."""

    def write(document: Any) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in document["images"] if isinstance(document, dict) else []:
            pixels = np.random.default_rng(0).integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(document))
        return path, folder

    return write


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves a folder over HTTP on this machine; returns its URL."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class FaultySite:
    """A folder on the web, how its server misbehaves, and what it was asked."""

    url: str
    folder: Path
    ranges: bool = True
    cuts: dict[str, list[int]] = field(default_factory=dict)  # file name -> bytes sent before the connection drops
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # file name and the range asked for


@pytest.fixture
def faulty_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultySite]:
    """Serves ``tmp_path/web`` with ranges, and the faults that a test asks for."""
    monkeypatch.setattr("resnet_backbone.weights.download.BACKOFF_S", 0.01)
    site = FaultySite("", tmp_path / "web")
    site.folder.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("/")[-1]
            asked = self.headers.get("Range") if site.ranges else None
            site.asked.append((name, self.headers.get("Range")))
            content = (site.folder / self.path.lstrip("/")).read_bytes()
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.end_headers()
            cut = site.cuts[name].pop(0) if site.cuts.get(name) else None
            self.wfile.write(content[start:][:cut])

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many KiB, or grows it; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def of_size(kib: int) -> Path:
        how = f"remount,size={kib}k" if mounted else f"size={kib}k"
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs to mount a small disk, which is not allowed here ({error})")
        mounted.append(kib)
        return place

    yield of_size
    if mounted:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def write_devkit() -> Callable[..., None]:
    """Writes ``VOC<year>`` as the official archives hold it: images with one object each, the second one difficult."""

    def write(root: Path, folder: str, split: str, stems: list[str], annotations: bool = True, side: int = 60) -> None:
        base = root / folder
        for name in ("Annotations", "ImageSets/Main", "ImageSets/Layout", "JPEGImages", "SegmentationClass"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        (base / "ImageSets/Layout" / f"{split}.txt").write_text(f"{stems[0]} 1\n")
        (base / "SegmentationClass" / f"{stems[0]}.png").write_bytes(b"not for detection")
        for number, stem in enumerate(stems):
            pixels = np.random.default_rng(number).integers(0, 256, (side, side + 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(base / "JPEGImages" / f"{stem}.jpg")
            if annotations:
                (base / "Annotations" / f"{stem}.xml").write_text(
                    f"<annotation><size><width>{side + 10}</width><height>{side}</height><depth>3</depth></size>"
                    f"<object><name>cat</name><difficult>{int(number == 1)}</difficult><bndbox><xmin>1</xmin>"
                    f"<ymin>2</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
                )

    return write
