"""JSON files of any encoding against json.loads of the text, and what is said of those that are something else."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from resnet_backbone.files.text import read_json
from resnet_backbone.metrics.result_table import iterate_list

DATA = [{"name": "M\u00fcller \u7ec6\u80de \U0001f600", "boxes": [1, 2.5], "empty": {}}, {"b": None}]
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",  # with its mark
    "utf-32": b"",
    "utf-16-le": b"",
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-be": b"",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_encodings_of_json(encoding, ascii_only, tmp_path):
    path = tmp_path / "a.json"
    text = json.dumps(DATA, ensure_ascii=ascii_only, indent=1)
    path.write_bytes(ENCODINGS[encoding] + text.encode(encoding))
    assert read_json(path) == list(iterate_list(path, 7)) == json.loads(text)
    hooked = read_json(path, lambda entry: sorted(entry))
    assert hooked == [["boxes", "empty", "name"], ["b"]]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.json", "[]")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"[]", mtime=0), "it is a gzip file; unpack it: gunzip"),
        (zipped(), "it is a ZIP file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (json.dumps(DATA[0]["name"][:9], ensure_ascii=False).encode("gb18030"), "iconv -f"),
        ('["caf\u00e9", "na\u00efve"]'.encode("cp1252"), "iconv -f"),
        (b"", "Expecting value"),
        (b"[" * 10**6, "nested too deeply"),
        (b"\xef\xbb\xbf[1", "Expecting"),
    ],
)
def test_what_is_no_json_is_named(content, said, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_json, lambda path: list(iterate_list(path))):
        with pytest.raises(ValueError, match=rf"a\.json is not JSON.*{said.split(';')[0]}"):
            read(path)
    with pytest.raises(ValueError, match=said):
        read_json(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_lists_joined_by_hand_are_refused(indent, tmp_path):
    path = tmp_path / "a.json"
    parts = [json.dumps({"images": [], "annotations": [{"id": n}]}, indent=indent)[1:-1] for n in (1, 2)]
    path.write_text(f"{{{','.join(parts)}}}")
    with pytest.raises(ValueError, match=r"a\.json .*images.* stands 2 times .*of lists with the entries of all"):
        read_json(path)


def test_a_key_twice_in_one_record_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"id": 1, "bbox": [1], "score": 0.5}, {"id": 7, "score": 0.1, "score": 0.9}]')
    for read in (read_json, lambda path: list(iterate_list(path, 3))):
        with pytest.raises(ValueError, match=r"'score' stands 2 times .*'id'.*write it once"):
            read(path)
    path.write_text('[{"a": {"b": 1}, "b": 2}, {"a": 1}]')  # the same key, but in other objects
    assert read_json(path) == list(iterate_list(path)) == [{"a": {"b": 1}, "b": 2}, {"a": 1}]


def test_a_missing_file(tmp_path):
    for read in (read_json, lambda path: list(iterate_list(path))):
        with pytest.raises(FileNotFoundError, match="no file"):
            read(Path(tmp_path / "none.json"))
