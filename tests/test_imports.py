"""Imports point one way, Detectron2 stays in its plug-in, and importing the package is cheap."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "resnet_backbone"
# What each layer may import besides itself. The plug-ins and the classifiers' training do not know each other.
FACTS = {"files", "version", "weights"}
CONFIG = {*FACTS, "models", "data", "metrics", "config"}
PLUGIN_MAY = {*CONFIG, "__init__", "engine", "compare", "doctor"}
MAY_IMPORT = {
    "version": set(),
    "files": set(),
    "weights": {"version", "files"},
    "models": {"version", "weights"},
    "data": FACTS,
    "metrics": {*FACTS, "data"},
    "compare": {*FACTS, "data", "metrics"},
    "config": {*FACTS, "models", "data"},
    "engine": CONFIG,
    "doctor": CONFIG,
    "evaluation": {"metrics"},
    "command": {"version", "__init__", "engine"},
    "api": {*PLUGIN_MAY, "torchvision_plugin", "detectron2_plugin"},
    "reproduce": CONFIG,
    "__init__": {"version", "weights", "models", "api"},
    "classification": PLUGIN_MAY,
    "torchvision_plugin": PLUGIN_MAY,
    "detectron2_plugin": PLUGIN_MAY,
    "export": {*PLUGIN_MAY, "torchvision_plugin"},
}
OUTSIDE = {"tools", "datasets", "benchmarks", "tests"}


def imported_modules(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Full names of all that a module imports, anywhere in it: relative ones resolved, ``from x import y`` as x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def layer_of(name: str) -> str:
    """``resnet_backbone.models.resnet`` -> ``models``; what ``resnet_backbone`` itself defines -> ``__init__``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "__init__"


def forbidden_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    own = layer_of(module)
    found = []
    for name in imported_modules(source, module, is_package):
        top = name.split(".")[0]
        if top == "resnet_backbone" and layer_of(name) not in MAY_IMPORT[own] | {own}:
            found.append(name)
        if top in OUTSIDE or (top == "detectron2" and own != "detectron2_plugin"):
            found.append(name)
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    assert forbidden_imports(path.read_text(), module_name(path), path.name == "__init__.py") == []


def test_every_part_of_the_package_has_its_place_in_the_order():
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts <= set(MAY_IMPORT)
    assert {"weights", "models", "data", "metrics"} <= parts


@pytest.mark.parametrize("folder", sorted(OUTSIDE - {"tests"}))
def test_scripts_leave_detectron2_to_the_plugin(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if path.parent == ROOT / "benchmarks" / "peers":  # what is compared with, imported by name where it is timed
            continue
        names = imported_modules(path.read_text(), module_name(path), False)
        assert [name for name in names if name.split(".")[0] == "detectron2"] == [], path


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("resnet_backbone.weights.match", "from ..models import resnet", True),
        ("resnet_backbone.weights.match", "from resnet_backbone.models.registry import create_model", True),
        ("resnet_backbone.weights.match", "import resnet_backbone.models.vgg as vgg", True),
        ("resnet_backbone.weights.match", "from resnet_backbone import models", True),
        ("resnet_backbone.weights.match", "def f():\n    from resnet_backbone import create_model", True),
        ("resnet_backbone.weights.match", "from .catalog import find", False),
        ("resnet_backbone.weights.match", "from . import catalog", False),
        ("resnet_backbone.models.resnet", "from ..weights import catalog", False),
        ("resnet_backbone.data.coco.dataset", "from ...metrics import coco", True),
        ("resnet_backbone.metrics.coco", "from resnet_backbone.models import resnet", True),
        ("resnet_backbone.metrics.coco", "from resnet_backbone.data.coco import read", False),
        ("resnet_backbone.config", "from .data import catalog", False),
        ("resnet_backbone.config", "from .metrics import coco", True),
        ("resnet_backbone.config", "from . import torchvision_plugin", True),
        ("resnet_backbone.torchvision_plugin.train", "from ..config import check", False),
        ("resnet_backbone.torchvision_plugin.train", "from ..detectron2_plugin.config import x", True),
        ("resnet_backbone.torchvision_plugin.train", "import detectron2.layers", True),
        ("resnet_backbone.detectron2_plugin.train", "from detectron2.layers import ShapeSpec", False),
        ("resnet_backbone.detectron2_plugin.train", "from tools import train_net", True),
    ],
)
def test_the_check_itself(module, source, forbidden):
    assert bool(forbidden_imports(source, module)) is forbidden


def test_the_check_itself_in_a_package():
    assert forbidden_imports("from ..models import resnet", "resnet_backbone.weights", is_package=True)
    assert not forbidden_imports("from .load import read", "resnet_backbone.weights", is_package=True)
    assert not forbidden_imports("from .models import resnet", "resnet_backbone", is_package=True)
    assert forbidden_imports("from .data import coco", "resnet_backbone", is_package=True)


PROBE = """
import sys
import resnet_backbone
print(*(name for name in {heavy!r} if name in sys.modules))
"""
HEAVY = (
    "torch",
    "numpy",
    "detectron2",
    "torchvision.models.detection",
    "accelerate",
    "cv2",
    "matplotlib",
    "pycocotools",
    "tensorboard",
)


def test_importing_the_package_is_cheap():
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY)]
    probe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert probe.stdout.strip() == ""


# Modules and attributes that Windows, or macOS, lacks.
_ABSENT = {
    "os": "fork killpg getuid geteuid getpgid setsid statvfs sched_getaffinity sysconf mkfifo uname",
    "signal": "SIGHUP SIGALRM SIGCHLD SIGKILL SIGUSR1 SIGUSR2 SIGPIPE setitimer alarm pthread_sigmask",
}
WITHOUT_UNIX = f"""
import importlib, os, pkgutil, psutil, signal, sys
from pathlib import Path
import resnet_backbone
from resnet_backbone.command import SCRIPTS, _find_scripts
left_out, folder = sys.argv[1].split(), Path(sys.argv[2])
names = [module.name for module in pkgutil.walk_packages(resnet_backbone.__path__, "resnet_backbone.")]
_find_scripts()
names = [name for name in [*names, *(f"resnet_backbone.{{name}}" for name in SCRIPTS.values())] if name not in left_out]
for name in names:  # and with them what others bring
    importlib.import_module(name)
for name in [name for name in sys.modules if name.split(".")[0] == "resnet_backbone"]:
    del sys.modules[name]
sys.modules["fcntl"] = sys.modules["resource"] = None
for module, absent in {_ABSENT!r}.items():
    for name in absent.split():
        delattr(sys.modules[module], name)
import resnet_backbone
_find_scripts.__globals__["resnet_backbone"] = resnet_backbone
_find_scripts()
for name in names:
    importlib.import_module(name)

import torch
from resnet_backbone.config.acceleration import keep_freed_memory
from resnet_backbone.engine.batches import restore_sigchld
from resnet_backbone.engine.run import check_output_dir
from resnet_backbone.engine.signals import catching_signals, deferring_signals, outlive_signal, was_asked_to_stop
from resnet_backbone.files.atomic import write_text, writing_alone
from resnet_backbone.files.checkpoints import last_checkpoint, write_checkpoint
from resnet_backbone.metrics.run_facts import peak_memory_mib
from resnet_backbone.tools.reproduce import end_as_by_ctrl_c

with catching_signals(), deferring_signals(), writing_alone(folder):
    check_output_dir(folder)
    write_text(folder / "text", "a\\nb\\n")
    write_checkpoint(folder, "model.pth", {{"model": torch.ones(2)}})
    restore_sigchld()
    assert not was_asked_to_stop()
assert last_checkpoint(folder) == folder / "model.pth" and (folder / "text").read_bytes() == b"a\\nb\\n"
end_as_by_ctrl_c()
outlive_signal(0)
keep_freed_memory()
assert peak_memory_mib(torch.device("cpu")) > 10
print(*names)
"""


def test_everything_can_be_imported_and_basic_steps_work_where_unix_is_absent(tmp_path):
    """As on Windows."""
    have_detectron2 = importlib.util.find_spec("detectron2") is not None
    modules = {module_name(path) for path in PACKAGE.rglob("*.py")} - {"resnet_backbone"}
    scripts = [path for name in ("tools", "datasets") for path in (ROOT / name).glob("*.py")]
    modules |= {f"resnet_backbone.{module_name(path)}" for path in scripts}
    left_out = {name for name in modules if "detectron2_plugin" in name and not have_detectron2}
    command = [sys.executable, "-c", WITHOUT_UNIX, " ".join(left_out), str(tmp_path)]
    probe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert probe.returncode == 0, probe.stderr
    assert set(probe.stdout.split()) == modules - left_out
