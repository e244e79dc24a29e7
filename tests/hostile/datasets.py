"""Annotations, results and the files of finished runs as an attacker writes them."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from resnet_backbone.data.coco.read import read_coco_json, read_ground_truth
from resnet_backbone.data.prepare.voc_xml import voc_to_coco
from resnet_backbone.metrics.result_table import read_results
from resnet_backbone.metrics.run_facts import read_facts, read_figures
from tests.hostile.case import Case, unique

DEEP = 100_000
IMAGE = {"id": 1, "file_name": "a.jpg", "height": 10, "width": 10}
BOX = [1.0, 1.0, 4.0, 4.0]
NOTE = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 16, "iscrowd": 0,
        "segmentation": [[1, 1, 5, 1, 5, 5]]}  # fmt: skip
RESULT = {
    "image_id": 1,
    "category_id": 1,
    "bbox": BOX,
    "score": 0.5,
    "segmentation": {"size": [10, 10], "counts": "0T3"},
}
HUGE = 10**400

JSON: dict[str, bytes] = {
    "empty": b"",
    "not-json": b"nothing",
    "deep-lists": b"[" * DEEP,
    "deep-lists-closed": b"[" * DEEP + b"]" * DEEP,
    "deep-objects": b'{"a":' * DEEP,
    "deep-in-a-key": b'{"images":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "cut": b'{"images": [{"id"',
    "utf-16": '{"images": 5}'.encode("utf-16"),
    "not-text": b'{"images": "\xff"}',
    "byte-order-mark-and-nothing": b"\xef\xbb\xbf",
    "number-of-5000-digits": b'{"images": ' + b"9" * 5_000 + b"}",
    "number": b"5",
    "null": b"null",
    "text": b'"x"',
    "control-character": b'{"a": "\x01"}',
    "web-page": b"<html></html>",
    "pickle": b"\x80\x04}.",
    "trailing": b"{} {}",
}
MASKS: dict[str, Any] = {
    "counts-short": {"size": [10, 10], "counts": "5"},
    "counts-long": {"size": [10, 10], "counts": "0oooo0"},
    "counts-cut": {"size": [10, 10], "counts": "oo"},
    "counts-negative": {"size": [10, 10], "counts": "0O0"},
    "counts-empty": {"size": [10, 10], "counts": ""},
    "counts-not-ascii": {"size": [10, 10], "counts": "\u1234"},
    "counts-endless-number": {"size": [10, 10], "counts": "o" * 200_000 + "0"},
    "counts-of-zeros": {"size": [10, 10], "counts": "00" * 100_000},
    "counts-that-cancel-out": {"size": [10, 10], "counts": "T3T3dLT3"},
    "counts-number": {"size": [10, 10], "counts": 5},
    "counts-none": {"size": [10, 10], "counts": None},
    "counts-missing": {"size": [10, 10]},
    "size-missing": {"counts": "T3"},
    "size-huge": {"size": [10**6, 10**6], "counts": "T3"},
    "size-text": {"size": "10", "counts": "T3"},
    "size-number": {"size": 10, "counts": "T3"},
    "number": 5,
    "text": "T3",
}
LISTED_MASKS: dict[str, Any] = {
    "runs-negative": {"size": [10, 10], "counts": [-5, 105]},
    "runs-fractional": {"size": [10, 10], "counts": [1.5, 98.5]},
    "runs-short": {"size": [10, 10], "counts": [50]},
    "runs-huge": {"size": [10, 10], "counts": [2**40]},
    "runs-text": {"size": [10, 10], "counts": ["a"]},
    "polygon-far": [[0, 0, 1e9, 0, 1e9, 1e9]],
    "polygon-infinite": [[0, 0, float("inf"), 0, 1, 1]],
    "polygon-nan": [[float("nan")] * 6],
    "polygon-huge-number": [[HUGE] * 6],
    "polygon-text": [["a"] * 6],
    "polygon-nested": [[[1, 2]] * 6],
    "polygon-of-numbers": [1, 2, 3],
}  # fmt: skip


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def truth(note: dict[str, Any] | None = None, image: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "images": [{**IMAGE, **(image or {})}],
        "annotations": [{**NOTE, **(note or {})}],
        "categories": [{"id": 1, "name": "a"}],
        **changes,
    }


# What both readers of ground truth refuse.
TRUTHS: dict[str, Any] = {
    "list": [],
    "no-images": {"annotations": [], "categories": []},
    "images-object": truth(images={"1": IMAGE}),
    "images-of-numbers": truth(images=[1]),
    "images-empty": truth(images=[]),
    "annotations-null": truth(annotations=None),
    "annotations-of-lists": truth(annotations=[[]]),
    "categories-text": truth(categories="abc"),
    "category-without-name": truth(categories=[{"id": 1}]),
    "category-twice": truth(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
    "category-name-list": truth(categories=[{"id": 1, "name": ["a"]}]),
    "image-twice": truth(images=[IMAGE, IMAGE]),
    "image-id-list": truth(image={"id": [1]}),
    "image-id-true": truth(image={"id": True}),
    "image-id-huge": truth(image={"id": HUGE}),
    "image-id-of-70-bits": truth(image={"id": 2**70}, note={"image_id": 2**70}),
    "note-image-id-list": truth({"image_id": [1]}),
    "note-image-id-object": truth({"image_id": {}}),
    "note-category-id-list": truth({"category_id": [1]}),
    "bbox-object": truth({"bbox": {"x": 1}}),
    "bbox-text": truth({"bbox": "abcd"}),
    "bbox-three": truth({"bbox": [1, 2, 3]}),
    "bbox-nan": truth({"bbox": [float("nan")] * 4}),
    "bbox-infinite": truth({"bbox": [0, 0, float("inf"), 1]}),
    "bbox-huge": truth({"bbox": [0, 0, HUGE, 1]}),
    "bbox-nested": truth({"bbox": [[1], 2, 3, 4]}),
    "iscrowd-list": truth({"iscrowd": []}),
    "height-text": truth(image={"height": "10"}),
    "height-negative": truth(image={"height": -10}),
    "height-huge": truth(image={"height": HUGE}),
    "height-absurd": truth({"segmentation": {"size": [2**31, 2**31], "counts": "T3"}}, {"height": 2**31, "width": 2**31}),
    **{f"mask-{name}": truth({"segmentation": mask}) for name, mask in {**MASKS, **LISTED_MASKS}.items()},
}  # fmt: skip
ONLY_EVALUATED: dict[str, Any] = {
    "area-text": truth({"area": "large"}),
    "area-huge": truth({"area": HUGE}),
    "categories-with-one-name": truth(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
}
RESULTS: dict[str, Any] = {
    "object": {"a": 1},
    "of-numbers": [1],
    "of-nulls": [None],
    "without-keys": [{}],
    "image-id-list": [{**RESULT, "image_id": [1]}],
    "image-id-text": [{**RESULT, "image_id": "1"}],
    "image-id-huge": [{**RESULT, "image_id": HUGE}],
    "category-id-object": [{**RESULT, "category_id": {}}],
    "score-nan": [{**RESULT, "score": float("nan")}],
    "score-huge": [{**RESULT, "score": HUGE}],
    "score-text": [{**RESULT, "score": "0.5"}],
    "score-list": [{**RESULT, "score": [0.5]}],
    "bbox-huge": [{**RESULT, "bbox": [HUGE] * 4}],
    "bbox-negative": [{**RESULT, "bbox": [0, 0, -1, 1]}],
    "bbox-object": [{**RESULT, "bbox": {"a": 1}}],
    "bbox-of-a-million": [{**RESULT, "bbox": [1] * 10**6}],
    "keys-of-a-megabyte": [{"a" * 10**6: 1}],
    **{f"mask-{name}": [{**RESULT, "segmentation": mask}] for name, mask in MASKS.items()},
    "mask-list": [{**RESULT, "segmentation": [[1, 1, 5, 1, 5, 5]]}],
    "second-mask-broken": [RESULT, {**RESULT, "segmentation": MASKS["counts-short"]}],
}
FACTS: dict[str, Any] = {
    "engine": "torchvision", "resnet_backbone": "1", "commit": None, "command": "", "torch": "", "torchvision": "",
    "device": "", "processes": 1, "dataset": "", "annotations": "", "annotations_sha256": "", "image_folder": "",
    "num_images": 1, "class_names": ["a"], "parameters": 1, "multiply_adds": None, "images_per_s": None,
    "peak_memory_mib": 1.0,
}  # fmt: skip
ELEMENT = b"<object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>%s</ymax></bndbox></object>"
SIZE = b"<size><width>10</width><height>%s</height></size>"


def xml(ymax: bytes = b"5", height: bytes = b"10", start: bytes = b"", inside: bytes = b"") -> bytes:
    return start + b"<annotation>" + SIZE % height + ELEMENT % ymax + inside + b"</annotation>"


XML: dict[str, bytes] = {
    "empty": b"",
    "not-xml": b"hello",
    "entity-bomb": xml(start=b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>', inside=b"&b;"),
    "external-entity": xml(start=b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', inside=b"&x;"),
    "external-subset": xml(start=b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/evil.dtd">'),
    "parameter-entity": xml(start=b'<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]>'),
    "undefined-entity": xml(inside=b"&evil;"),
    "million-deep": b"<annotation>" + b"<a>" * 10**6,
    "thousand-deep-and-closed": b"<annotation>" + b"<a>" * 1000 + b"</a>" * 1000 + b"</annotation>",
    "twenty-megabytes": xml(inside=b" " * (20 << 20)),
    "million-attributes": b"<annotation " + b" ".join(b'a%d=""' % i for i in range(200_000)) + b"/>" + b"x",
    "other-root": b"<html></html>",
    "other-root-of-a-megabyte": b"<" + b"h" * 10**6 + b"/>",
    "encoding-unknown": b'<?xml version="1.0" encoding="evil"?>' + xml(),
    "encoding-multi-byte": b'<?xml version="1.0" encoding="utf-7"?>' + xml(),
    "encoding-rot13": b'<?xml version="1.0" encoding="rot13"?>' + xml(),
    "encoding-lies": b'<?xml version="1.0" encoding="ascii"?>' + xml(inside=b"\xff"),
    "nul": xml(inside=b"\0"),
    "not-closed": xml()[:-5],
    "two-roots": xml() * 2,
    "number-infinite": xml(ymax=b"1e999"),
    "number-nan": xml(ymax=b"nan"),
    "number-text": xml(ymax=b"five"),
    "number-of-a-megabyte": xml(ymax=b"x" * 10**6),
    "size-absurd": xml(height=b"1e300"),
    "size-infinite": xml(height=b"inf"),
    "object-without-name": xml(inside=b"<object></object>"),
    "object-without-box": xml(inside=b"<object><name>a</name></object>"),
}
SPLITS: dict[str, bytes] = {
    "empty": b"", "not-text": b"\xff\xfe", "outside": b"../../etc/passwd\n", "absolute": b"/etc/passwd\n", "nul": b"a\0b\n",
    "escape-codes": b"\x1b[31m\n", "name-of-4000-characters": b"a" * 4000 + b"\n",
    "half-a-million-twice": b"".join(b"%d\n" % i for i in range(250_000)) * 2,
}  # fmt: skip


def read_voc(path: Path) -> object:
    """A folder of one image around the XML file, or around the split file."""
    root = path.parent.parent if path.suffix == ".xml" else path.parents[2]
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(exist_ok=True)
    (root / "JPEGImages" / "a.jpg").write_bytes(b"not read")
    if path.suffix == ".xml":
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return voc_to_coco(root, "train", ["a"])


def _write(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _facts(path: Path) -> object:
    return read_facts(path.parent)


_TRUTH = read_ground_truth(truth(), ["segm"])
READERS: dict[str, Callable[[Path], object]] = {
    "training": partial(read_coco_json, training=True, with_masks=True),
    "truth": partial(read_ground_truth, iou_types=["segm"]),
    "table": partial(read_results, truth=_TRUTH, iou_types=["bbox", "segm"]),
    "results": partial(read_results, truth=_TRUTH, iou_types=["segm"]),
    "figures": read_figures,
    "facts": _facts,
}


def _cases() -> Iterator[Case]:
    for reader, read in READERS.items():
        for name, content in JSON.items():
            yield Case(f"{reader}-json-{name}", "facts.json", _write(content), read)
    for name, value in TRUTHS.items():
        yield Case(f"training-{name}", "coco.json", partial(dumped, value), READERS["training"])
        yield Case(f"truth-{name}", "coco.json", partial(dumped, value), READERS["truth"])
    for name, value in ONLY_EVALUATED.items():
        yield Case(f"truth-{name}", "coco.json", partial(dumped, value), READERS["truth"])
    for name, value in RESULTS.items():
        yield Case(f"table-{name}", "results.json", partial(dumped, value), READERS["table"])
        if not name.startswith("bbox"):
            yield Case(f"results-{name}", "results.json", partial(dumped, value), READERS["results"])
    yield Case("table-endless-text", "results.json", lambda: b'[{"a": "' + b"x" * (100 << 20), READERS["table"])
    yield Case("table-fault-in-front-of-much", "results.json", lambda: b"[!" + b" " * (100 << 20), READERS["table"])
    for key in FACTS:
        for kind, value in {"object": {}, "true": True}.items():
            yield Case(f"facts-{key}-{kind}", "facts.json", partial(dumped, {**FACTS, key: value}), _facts)
    yield Case("facts-names-of-numbers", "facts.json", partial(dumped, {**FACTS, "class_names": [1]}), _facts)
    yield Case("facts-unknown-key", "facts.json", partial(dumped, {**FACTS, "evil": 1}), _facts)
    for name, content in XML.items():
        yield Case(f"voc-xml-{name}", "Annotations/a.xml", _write(content), read_voc, makes=("JPEGImages", "ImageSets"))
    for name, content in SPLITS.items():
        yield Case(
            f"voc-split-{name}",
            "ImageSets/Main/train.txt",
            _write(content),
            read_voc,
            makes=("Annotations", "JPEGImages"),
        )


def cases() -> list[Case]:
    return unique(_cases())
