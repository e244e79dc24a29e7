"""A real server on this machine, with the faults that servers have."""

import functools
import hashlib
import http.server
import multiprocessing
import threading
from dataclasses import dataclass, field, replace

import pytest

from resnet_backbone.files.atomic import file_hash
from resnet_backbone.weights.catalog import get_entry
from resnet_backbone.weights.download import (
    DownloadError,
    cached_weights_path,
    download,
    download_weights,
    is_offered,
)

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server offers, how it misbehaves, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    etag: str = '"one"'
    ranges: bool = True
    minds_if_range: bool = True
    with_length: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the connection drops, one a request
    answers: list[int] = field(default_factory=list)  # error codes to give first
    redirect: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr("resnet_backbone.weights.download.BACKOFF_S", 0.01)
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(dict(self.headers))
            if site.redirect:
                self.send_response(302)
                self.send_header("Location", site.redirect)
                self.end_headers()
                return
            if site.answers:
                self.send_error(site.answers.pop(0))
                return
            start = self._start()
            if start is not None and start >= len(site.content):
                self.send_error(416)
                return
            self.send_response(200 if start is None else 206)
            body = site.content[start or 0 :]
            if start is not None:
                self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
            if site.with_length:
                self.send_header("Content-Length", str(len(body)))
            if site.etag:
                self.send_header("ETag", site.etag)
            self.end_headers()
            self.wfile.write(body[: site.cut_after.pop(0)] if site.cut_after else body)

        def _start(self):
            asked = self.headers.get("Range")
            if not asked or not site.ranges:
                return None
            if site.minds_if_range and self.headers.get("If-Range") not in (None, site.etag):
                return None
            return int(asked.removeprefix("bytes=").removesuffix("-"))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/file.bin"
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def leftovers(path):
    return sorted(item.name for item in path.parent.iterdir() if item != path)


@pytest.mark.parametrize("hashes", [{}, {"sha256": SHA256}, {"sha256": SHA256[:8].upper()}])
def test_fetches_and_leaves_nothing_else(site, tmp_path, hashes):
    path = tmp_path / "deep" / "er" / "file.bin"
    assert download(site.url, str(path), **hashes) == path
    assert path.read_bytes() == CONTENT
    assert leftovers(path) == ["file.bin.lock"]
    assert site.ranges_asked() == [None]


def test_md5(site, tmp_path):
    download(site.url, tmp_path / "f", md5=hashlib.md5(CONTENT).hexdigest())
    with pytest.raises(DownloadError, match="md5"):
        download(site.url, tmp_path / "g", md5="0" * 32)


def test_an_existing_file_is_not_fetched(site, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"here")
    download(site.url, path)
    assert path.read_bytes() == b"here"
    assert site.asked == []


def test_dropped_connections_are_resumed_where_they_ended(site, tmp_path):
    site.cut_after = [100_000, 200_000]
    download(site.url, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.ranges_asked() == [None, "bytes=100000-", "bytes=300000-"]


@pytest.mark.parametrize("site_change", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"weak"'}])
def test_starts_again_where_resuming_is_not_safe(site, tmp_path, site_change):
    for key, value in site_change.items():
        setattr(site, key, value)
    site.cut_after = [100_000]
    download(site.url, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_more_drops_than_attempts_are_fine_while_bytes_arrive(site, tmp_path):
    site.cut_after = [1000] * 12
    download(site.url, tmp_path / "f", sha256=SHA256)
    assert len(site.asked) == 13


def test_gives_up_after_five_attempts_without_bytes_and_resumes_in_the_next_call(site, tmp_path):
    site.cut_after = [5000] + [0] * 5
    with pytest.raises(DownloadError) as caught:
        download(site.url, tmp_path / "f", sha256=SHA256)
    message = str(caught.value)
    assert site.url in message and f"put it at {tmp_path / 'f'}" in message and "5000 of 1048576" in message
    assert not (tmp_path / "f").exists()
    download(site.url, tmp_path / "f", sha256=SHA256)
    assert site.ranges_asked()[-1] == "bytes=5000-"
    assert (tmp_path / "f").read_bytes() == CONTENT


def interrupted(site, path):
    site.cut_after = [5000] + [0] * 5
    with pytest.raises(DownloadError):
        download(site.url, path)
    assert (path.parent / "f.part").stat().st_size == 5000


@pytest.mark.parametrize("etag", ['"two"', '"one"', ""], ids=["other tag", "same tag", "no tag"])
@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 7, 4000])
def test_a_changed_file_is_not_glued_to_the_old_part(site, tmp_path, etag, length):
    """Even where the tag lies (same tag, other bytes), the hash catches the glued file, and the call starts again."""
    interrupted(site, tmp_path / "f")
    site.content, site.etag = bytes(length), etag
    download(site.url, tmp_path / "f", sha256=hashlib.sha256(site.content).hexdigest())
    assert (tmp_path / "f").read_bytes() == site.content


@pytest.mark.parametrize("minds_if_range", [True, False])
@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 7])
def test_a_changed_file_is_noticed_without_a_hash(site, tmp_path, length, minds_if_range):
    interrupted(site, tmp_path / "f")
    site.content, site.etag, site.minds_if_range = bytes(length), '"two"', minds_if_range
    download(site.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == site.content


def test_asks_for_the_rest_of_the_same_file_only(site, tmp_path):
    interrupted(site, tmp_path / "f")
    download(site.url, tmp_path / "f")
    assert (site.asked[-1]["Range"], site.asked[-1]["If-Range"]) == ("bytes=5000-", '"one"')


def test_a_part_of_another_address_is_not_used(site, tmp_path):
    interrupted(site, tmp_path / "f")
    site.content = bytes(len(CONTENT))
    download(site.url + "?version=2", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == site.content


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 1}'])
def test_a_part_with_a_damaged_note_is_not_used(site, tmp_path, note):
    (tmp_path / "f.part").write_bytes(b"wrong")
    (tmp_path / "f.part.json").write_text(note)
    download(site.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_without_a_length_the_end_is_where_the_connection_ends(site, tmp_path):
    site.with_length = False
    download(site.url, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_without_a_length_the_hash_catches_a_cut(site, tmp_path):
    site.with_length, site.cut_after = False, [3000]
    with pytest.raises(DownloadError, match="sha256"):
        download(site.url, tmp_path / "f", sha256=SHA256)
    assert leftovers(tmp_path / "f") == ["f.lock"]


def test_wrong_hash_leaves_no_file(site, tmp_path):
    with pytest.raises(DownloadError, match=f"its sha256 is {SHA256[:8]}, expected deadbeef"):
        download(site.url, tmp_path / "f", sha256="deadbeef")
    assert leftovers(tmp_path / "f") == ["f.lock"]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_missing_file_is_an_error_at_once(site, tmp_path, code):
    site.answers = [code] * 3
    with pytest.raises(DownloadError, match=str(code)):
        download(site.url, tmp_path / "f")
    assert len(site.asked) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(site, tmp_path, code):
    site.answers = [code] * 3
    download(site.url, tmp_path / "f", sha256=SHA256)
    assert len(site.asked) == 4


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_backbone.weights.download.BACKOFF_S", 0.001)
    with pytest.raises(DownloadError, match="connection failed"):
        download("http://127.0.0.1:9/x", tmp_path / "f")


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "x.pth"])
def test_only_https(url, tmp_path):
    with pytest.raises(ValueError, match="https"):
        download(url, tmp_path / "f")


@pytest.mark.parametrize("target", ["http://example.invalid/x", "ftp://127.0.0.1/x"])
def test_no_redirect_away_from_https(site, tmp_path, target):
    site.redirect = target
    with pytest.raises(DownloadError, match="redirect"):
        download(site.url, tmp_path / "f")
    assert len(site.asked) == 1


@pytest.mark.parametrize("hashes", [{"sha256": "xyz"}, {"md5": "0x12"}])
def test_hashes_must_be_hexadecimal(hashes, tmp_path):
    with pytest.raises(ValueError, match="hexadecimal"):
        download("https://example.invalid/x", tmp_path / "f", **hashes)


def test_a_full_disk(site, tmp_path):
    (tmp_path / "f.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="disk is full") as caught:
        download(site.url, tmp_path / "f")
    assert f"put it at {tmp_path / 'f'}" in str(caught.value)
    assert not (tmp_path / "f").exists()
    assert len(site.asked) == 1


def test_too_little_space_is_said_before_the_first_byte(site, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_backbone.files.atomic.shutil.disk_usage", lambda path: type("U", (), {"free": 10}))
    with pytest.raises(DownloadError, match="it needs .* GB in"):
        download(site.url, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="put it at"):
        download("https://example.invalid/x", tmp_path / "file" / "f")


def _download_in_child(url, path):
    download(url, path, sha256=SHA256)


def test_processes_that_start_together_fetch_once(site, tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_download_in_child, args=(site.url, tmp_path / "f")) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 6
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(site.asked) == 1


def test_file_hash_matches_hashlib(tmp_path):
    content = CONTENT * 3 + b"odd"
    (tmp_path / "f").write_bytes(content)
    assert file_hash(tmp_path / "f", "sha256") == hashlib.sha256(content).hexdigest()
    assert file_hash(tmp_path / "f", "md5") == hashlib.md5(content).hexdigest()


@pytest.fixture
def entry(site):
    return replace(get_entry("resnet18", "IMAGENET1K_V1"), url=site.url, sha256=SHA256[:8])


def test_cache_folder(entry, empty_hub, monkeypatch):
    assert cached_weights_path(entry) == empty_hub / "cache" / "weights" / "file.bin"
    monkeypatch.delenv("RESNET_BACKBONE_CACHE")
    monkeypatch.setenv("HOME", str(empty_hub))
    assert cached_weights_path(entry) == empty_hub / ".cache" / "resnet_backbone" / "weights" / "file.bin"


def test_weights_are_fetched_once(site, entry, empty_hub):
    assert download_weights(entry) == download_weights(entry) == cached_weights_path(entry)
    assert len(site.asked) == 1


@pytest.mark.parametrize(("content", "asked"), [(CONTENT, 0), (b"damaged", 1)])
def test_a_file_of_torch_hub_is_used_if_it_is_the_right_one(site, entry, empty_hub, content, asked):
    theirs = empty_hub / "torch" / "hub" / "checkpoints" / "file.bin"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(content)
    path = download_weights(entry)
    assert path.read_bytes() == CONTENT
    assert (path == theirs) == (asked == 0)
    assert len(site.asked) == asked


def test_what_a_server_offers(tmp_path):
    (tmp_path / "there.pth").touch()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert is_offered(f"{url}/there.pth") and not is_offered(f"{url}/missing.pth")
        server.shutdown()
    assert not is_offered(f"{url}/there.pth")
