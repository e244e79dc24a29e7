"""The console command ``resnet-backbone``: the scripts of tools/ and datasets/, by a verb each.

A script is imported when its verb is called, and no earlier: it has one definition of its arguments, wherever it runs.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import resnet_backbone
from resnet_backbone.engine.command_line import run_command_line
from resnet_backbone.version import __version__

NAME = "resnet-backbone"
SCRIPTS = {
    "train": "tools.train_net",
    "evaluate": "tools.evaluate_coco",
    "evaluate-voc": "tools.evaluate_voc",
    "predict": "tools.demo",
    "compare": "tools.compare",
    "check": "tools.check_dataset",
    "visualize": "tools.visualize_data",
    "doctor": "tools.doctor",
    "export": "tools.export",
    "package": "tools.package_weights",
    "convert": "tools.convert_voc",
    "reproduce": "tools.reproduce",
    "classify": "tools.train_classifier",
    "evaluate-classifier": "tools.evaluate_classifier",
    "analyze": "tools.analyze_model",
    **{
        f"prepare {name}": f"datasets.prepare_{name}"
        for name in ("bccd", "cifar10", "coco", "ilsvrc", "scenes", "shapes", "voc")
    },
}
"""Verb, and the script that it runs, inside this package or, in a checkout, beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb with the arguments behind it, and return the exit status; 2 where there is no such verb."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command_line(lambda: _run(words), keeps_running=words[:1] in (["train"], ["classify"], ["reproduce"]))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] in ("--version", "weights"):
        found = [f"{NAME} {__version__}"] if words[0] == "--version" else resnet_backbone.list_weights(*words[1:2])
        print("\n".join(found))
        return 0
    count = 2 if words[0] == "prepare" else 1
    verb = " ".join(words[:count])
    if verb not in SCRIPTS:
        near = [known for known in SCRIPTS if known.startswith(verb)]
        near = near or difflib.get_close_matches(verb, [*SCRIPTS, "weights"], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{NAME} --help lists them"
        print(f"error: {NAME} knows no {verb!r}; {hint}", file=sys.stderr)
        return 2
    _find_scripts()
    script = importlib.import_module(f"resnet_backbone.{SCRIPTS[verb]}")
    sys.argv = [f"{NAME} {verb}", *words[count:]]
    return script.main()


def _find_scripts() -> None:
    """Let the scripts of a checkout, which stand beside the package, be found inside it as those of a wheel are."""
    if importlib.util.find_spec("resnet_backbone.tools") is None:
        resnet_backbone.__path__.append(str(Path(__file__).parents[1]))


def _help() -> str:
    _find_scripts()
    lines = [f"usage: {NAME} VERB ...    ({NAME} VERB --help says more)\n"]
    for verb, name in SCRIPTS.items():
        lines.append(f"  {verb:20} {(ast.get_docstring(ast.parse(_text(name))) or '').partition(chr(10))[0]}")
    lines.append(f"  {'weights':20} List the published weights that MODEL.WEIGHTS takes by name, of ARCH or of all.\n")
    lines.append("Configs go by name: --config-file frcnn_r101. In a checkout each verb is a script of tools/, too.")
    return "\n".join(lines)


def _text(name: str) -> str:
    spec = importlib.util.find_spec(f"resnet_backbone.{name}")
    return Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""


def _complete() -> None:
    """Tell a shell, by argcomplete, which verbs, options and configs there are: scripts are read for it, not run."""
    import argcomplete

    _find_scripts()
    parser = argparse.ArgumentParser(NAME)
    groups = {"": parser.add_subparsers()}
    folder = Path(next(iter(importlib.import_module("resnet_backbone.configs").__path__)))
    configs = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    for verb, name in {**SCRIPTS, "weights": "version"}.items():
        group, _, last = verb.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group).add_subparsers()
        script, text = groups[group].add_parser(last), _text(name)
        text += _text("engine.command_line") * ("add_run_arguments" in text)
        for option in set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text)):
            script.add_argument(option, nargs="?", choices=configs if option == "--config-file" else None)
        script.add_argument("words", nargs="*")
    argcomplete.autocomplete(parser)
