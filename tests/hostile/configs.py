"""Configs as an attacker, or a very bad day, writes them."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from resnet_backbone.config.merge import read_run_config
from resnet_backbone.torchvision_plugin.config import load_config
from tests.hostile.case import MARKER, Case, unique

TOUCH = f"touch {MARKER}"
GOOD = b"SOLVER:\n  MAX_ITER: 10\n"
YAML: dict[str, bytes] = {
    "python-apply": f"SOLVER: !!python/object/apply:os.system ['{TOUCH}']".encode(),
    "python-new": f"SOLVER: !!python/object/new:os.system ['{TOUCH}']".encode(),
    "python-object": b"SOLVER: !!python/object:argparse.Namespace {a: 1}",
    "python-name": b"SOLVER: !!python/name:os.system",
    "python-module": b"SOLVER: !!python/module:os",
    "python-tuple": b"SOLVER: {STEPS: !!python/tuple [1, 2]}",
    "own-tag": b"SOLVER: !evil 5",
    "bool-that-is-none": b"SOLVER: {MAX_ITER: !!bool maybe}",
    "int-that-is-none": b"SOLVER: {MAX_ITER: !!int x}",
    "float-that-is-none": b"SOLVER: {BASE_LR: !!float x}",
    "timestamp-that-is-none": b"SOLVER: {MAX_ITER: !!timestamp x}",
    "date-that-is-none": b"SOLVER: {MAX_ITER: 2001-99-99}",
    "binary-that-is-none": b"SOLVER: {MAX_ITER: !!binary '!'}",
    "set-as-config": b"!!set {a, b}",
    "omap-as-config": b"!!omap [a: 1]",
    "laughs": b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 80)),
    "mapping-laughs": b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {p: *a%d, q: *a%d}\n" % (i, i, i - 1, i - 1) for i in range(1, 80)),
    "merge-laughs": b"a0: &a0 {x: 1}\n" + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (i, i, i - 1, i - 1) for i in range(1, 25)),
    "alias-of-itself": b"SOLVER: &a {MAX_ITER: *a}",
    "list-of-itself": b"SOLVER: &a [*a]",
    "unknown-alias": b"SOLVER: *nothing",
    "deep-flow-lists": b"SOLVER: " + b"[" * 100_000,
    "deep-flow-mappings": b"SOLVER: " + b"{a: " * 50_000,
    "deep-closed": b"SOLVER: " + b"[" * 3_000 + b"]" * 3_000,
    "deep-blocks": b"".join(b" " * depth + b"a:\n" for depth in range(1_000)),
    "deep-dashes": b"- " * 50_000,
    "question-marks": b"? " * 50_000,
    "list-as-config": b"- 1\n- 2\n",
    "number-as-config": b"5",
    "text-as-config": b"hello",
    "null-as-config": b"~",
    "empty": b"",
    "only-a-comment": b"# nothing",
    "two-documents": b"a: 1\n---\nb: 2\n",
    "number-as-key": b"5: {a: 1}",
    "null-as-key": b"~: 1",
    "list-as-key": b"? [a]\n: 1",
    "mapping-as-key": b"? {a: 1}\n: 1",
    "bool-as-key": b"SOLVER: {yes: 1}",
    "tabs": b"SOLVER:\n\tMAX_ITER: 10\n",
    "not-text": b"SOLVER: \xff\xfe\xff",
    "utf-16": "SOLVER: {MAX_ITER: 10}".encode("utf-16"),
    "nul": b"SOLVER: \0",
    "control-characters": b"SOLVER: \x07\x1b[31m",
    "lonely-surrogate": b'SOLVER: "\\ud800"',
    "bracket-not-closed": b"SOLVER: {MAX_ITER: 10",
    "quote-not-closed": b'SOLVER: "' + b"x" * 10_000,
    "directive": b"%YAML 9.9\n---\nSOLVER: {MAX_ITER: 10}\n",
    "tag-directive": b"%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nSOLVER: !os.system [x]\n",
    "megabytes": b"# " + b"x" * (3 << 20) + b"\n" + GOOD,
    "a-million-keys": b"".join(b"k%d: 1\n" % i for i in range(200_000)),
    "number-of-5000-digits": b"SOLVER: {MAX_ITER: " + b"9" * 5_000 + b"}",
    "sexagesimal-number": b"SOLVER: {MAX_ITER: 1" + b":59" * 2_000 + b"}",
    "plain-pickle": b"\x80\x04}.",
}  # fmt: skip
# What a run's own config.yaml may hold, and a config that is to be obeyed may not; or the other way round.
MERGED: dict[str, bytes] = {
    "unknown-key": b"EVIL: 1",
    "key-with-dots": b"'MODEL.__class__': 1",
    "class-attribute": b"MODEL: {__class__: 1}",
    "key-twice": b"SOLVER: {MAX_ITER: 1, MAX_ITER: 2}",
    "section-as-number": b"MODEL: 5",
    "section-as-list": b"MODEL: [1]",
    "number-as-section": b"SOLVER: {MAX_ITER: {a: 1}}",
    "text-as-number": b"SOLVER: {MAX_ITER: many}",
    "list-as-number": b"SOLVER: {MAX_ITER: [1]}",
    "null-as-number": b"SOLVER: {MAX_ITER: ~}",
    "nan-as-iterations": b"SOLVER: {MAX_ITER: .nan}",
    "expression-of-parentheses": b"SOLVER: {STEPS: '" + b"(" * 5_000 + b"'}",
    "base-of-itself": b"_BASE_: c.yaml",
    "base-absent": b"_BASE_: nothing.yaml",
    "base-is-a-folder": b"_BASE_: .",
    "base-http": b"_BASE_: http://127.0.0.1:9/evil.yaml",
    "base-https": b"_BASE_: https://127.0.0.1:9/evil.yaml",
    "base-file-scheme": b"_BASE_: file:///etc/passwd",
    "base-passwd": b"_BASE_: /etc/passwd",
    "base-zero": b"_BASE_: /dev/zero",
    "base-number": b"_BASE_: 5",
    "base-null": b"_BASE_: ~",
    "base-list-of-numbers": b"_BASE_: [1, 2]",
    "base-mapping": b"_BASE_: {a: b}",
    "base-with-nul": b'_BASE_: "a\\0b"',
    "base-of-4000-characters": b"_BASE_: " + b"a" * 4_000,
    "base-below-a-section": b"SOLVER: {_BASE_: c.yaml}",
}  # fmt: skip
WORDS: dict[str, list[str]] = {
    "odd": ["SOLVER.MAX_ITER"],
    "parentheses": ["SOLVER.STEPS", "(" * 10_000],
    "brackets": ["SOLVER.STEPS", "[" * 100_000],
    "minus-signs": ["SOLVER.MAX_ITER", "-" * 100_000 + "1"],
    "sum": ["SOLVER.MAX_ITER", "+".join("1" * 50_000)],
    "call": ["SOLVER.MAX_ITER", f"__import__('os').system('{TOUCH}')"],
    "digits": ["SOLVER.MAX_ITER", "9" * 100_000],
    "nul": ["SOLVER.STEPS", "\0"],
    "surrogate": ["SOLVER.MAX_ITER", "\ud800"],
    "nested-closed": ["SOLVER.STEPS", "[" * 500 + "]" * 500],
    "class": ["MODEL.__class__", "5"],
    "empty-key": ["", "5"],
    "dots": ["." * 10_000, "5"],
    "key-of-10000-characters": ["a" * 10**4, "5"],
    "section": ["MODEL", "5"],
    "set-literal": ["SOLVER.STEPS", "{1, 2}"],
    "complex": ["SOLVER.BASE_LR", "1j"],
    "bytes": ["SOLVER.MAX_ITER", "b'x'"],
    "option": ["--evil", "1"],
    "infinite": ["SOLVER.MAX_ITER", "1e999"],
}


def _load_with(words: list[str], path: Path) -> object:
    return load_config(path, words)


def _content(value: bytes) -> Callable[[], bytes]:
    return lambda: value


_NAMED = {"base-passwd": "/etc/passwd", "base-of-4000-characters": "aaaa", "base-zero": "/dev/zero"}
# Read as what they say by YAML: no more than the text, date or number of a run that is compared.
_HARMLESS_IN_RUNS = {"sexagesimal-number", "lonely-surrogate"}


def _cases() -> Iterator[Case]:
    for name, content in YAML.items():
        yield Case(f"config-{name}", "c.yaml", _content(content), load_config)
        if name not in _HARMLESS_IN_RUNS:
            yield Case(f"run-config-{name}", "config.yaml", _content(content), read_run_config)
    for name, content in MERGED.items():
        yield Case(f"config-{name}", "c.yaml", _content(content), load_config, named=_NAMED.get(name, ""))
    for name, words in WORDS.items():
        # What is wrong stands on the command line, not in the file.
        yield Case(f"override-{name}", "c.yaml", _content(GOOD), partial(_load_with, words), named=" ")


def cases() -> list[Case]:
    return unique(_cases())
