"""Lists read piece by piece against json.loads of the whole file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_backbone.metrics.result_table import iterate_list

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(st.text(), VALUES, max_size=4)


@given(st.lists(RECORDS, max_size=6), st.integers(1, 40), st.sampled_from([None, 0, 2]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_elements_are_those_of_json(records, chunk, indent, ascii_only):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
        assert list(iterate_list(path, chunk)) == records


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
@pytest.mark.parametrize("text", [" [ ] ", '\n[\t{"a" : 1.5e3}\r\n, {}\n,{"b": "},] [{"}]\n\n', '[{"a": -0.25}]'])
def test_space_anywhere(text, chunk, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(text)
    assert list(iterate_list(path, chunk)) == json.loads(text)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ("[", 1),
        ("[{}", 3),
        ("[{},", 4),
        ("[{},]", 4),
        ("[{} {}]", 4),
        ("[{}] x", 5),
        ('[{"a": 1}, {"a": nothing}]', 17),
        ('[{"a": 1}, {"a": 1', 18),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text, place, chunk, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(ValueError, match=rf"list.json is not JSON: .*: character {place}$"):
        list(iterate_list(path, chunk))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(ValueError, match="list.json is not JSON: 'utf-8' codec.*iconv -f ITS_ENCODING"):
        list(iterate_list(path))


@pytest.mark.parametrize(("text", "kind"), [("{}", "dict"), ("3", "int"), ('"[]"', "str"), ("null", "NoneType")])
def test_what_is_no_list_is_refused(text, kind, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(TypeError, match=f"expected a list in the file .*list.json, got {kind}"):
        next(iterate_list(path))


def test_no_more_than_a_part_of_the_file_is_read_at_a_time(tmp_path):
    """What follows an element is not looked at before it is asked for, so a fault there comes late."""
    path = tmp_path / "list.json"
    path.write_text("[" + '{"a": 1}, ' * 1000 + "!")
    elements = iterate_list(path, chunk=100)
    assert [next(elements) for _ in range(1000)] == [{"a": 1}] * 1000
    with pytest.raises(ValueError, match="character 10001"):
        next(elements)
