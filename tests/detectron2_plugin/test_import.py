"""Importing the plug-in: without Detectron2, twice, under two names, in another process; and its keys."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def needs_detectron2() -> None:
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")


def test_trap_17_without_detectron2():
    """Its absence is simulated, so that this runs where it is installed, too."""
    done = python("import sys; sys.modules['detectron2'] = None; import resnet_backbone.detectron2_plugin.backbone")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-5:]
    assert "ImportError: Detectron2 is not installed. It is not on PyPI" in done.stderr
    assert f"build it for the torch {torch.__version__} that is here" in done.stderr
    assert any("pip install --no-build-isolation 'git+https://github.com/facebookresearch/" in line for line in message)
    assert "resnet-backbone train --engine torchvision" in message[-1]


def test_trap_17_detectron2_is_not_among_the_requirements():
    """The name on PyPI is somebody else's, and its build needs torch."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    keywords = [keyword for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords]
    (required,) = (ast.literal_eval(keyword.value) for keyword in keywords if keyword.arg == "install_requires")
    assert any(line.startswith("torch>=") for line in required)
    assert not any("detectron2" in line for line in required)


DOUBLE = """
import importlib.util, sys
import resnet_backbone.detectron2_plugin as plugin
from detectron2.modeling import BACKBONE_REGISTRY
first = BACKBONE_REGISTRY.get("build_imagenet_backbone")
for name in ("", ".backbone", ".roi_heads"):
    file = sys.modules[plugin.__name__ + name].__file__
    spec = importlib.util.spec_from_file_location("another" + name.replace(".", "_"), file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
assert BACKBONE_REGISTRY.get("build_imagenet_backbone") is first is not module
"""


def test_trap_13_importing_twice_under_two_names():
    needs_detectron2()
    done = python(DOUBLE)
    assert done.returncode == 0, done.stderr


def test_trap_13_a_name_that_somebody_else_has(tmp_path):
    needs_detectron2()
    (tmp_path / "backbone.py").write_text(
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "@BACKBONE_REGISTRY.register()\n"
        "def build_imagenet_backbone(cfg, input_shape): ...\n"
    )
    found = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    done = python(f"{found}; import backbone, resnet_backbone.detectron2_plugin")
    assert done.returncode == 1
    assert f"build_imagenet_backbone stands in Detectron2's registry already, from {tmp_path}" in done.stderr


SPAWN = """
def build(queue):
    import torch
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone
    from resnet_backbone.detectron2_plugin import add_resnet_backbone_config
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_imagenet_fpn_backbone", "MODEL.RESNET_BACKBONE.ARCH", "resnet18",
                         "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]])
    with torch.device("meta"):
        queue.put(list(build_backbone(cfg).output_shape()))
"""


def test_trap_13_a_spawned_worker_that_imports(tmp_path):
    needs_detectron2()
    (tmp_path / "worker.py").write_text(SPAWN)
    done = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import multiprocessing, worker\n"
        "context = multiprocessing.get_context('spawn'); queue = context.Queue()\n"
        "child = context.Process(target=worker.build, args=(queue,)); child.start()\n"
        "print(queue.get(timeout=150)); child.join(); sys.exit(child.exitcode)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['p3', 'p4', 'p5', 'p6']"


def test_keys_are_added_once_and_unknown_ones_are_errors():
    needs_detectron2()
    from detectron2.config import get_cfg

    from resnet_backbone.detectron2_plugin import add_resnet_backbone_config

    cfg = get_cfg()
    with pytest.raises(AssertionError, match="MODEL.RESNET_BACKBONE.ARCH"):  # vovnet-detectron2 issue 2
        cfg.merge_from_list(["MODEL.RESNET_BACKBONE.ARCH", "resnet18"])
    add_resnet_backbone_config(cfg)
    cfg.MODEL.RESNET_BACKBONE.ARCH = "resnet34"
    add_resnet_backbone_config(cfg)
    assert cfg.MODEL.RESNET_BACKBONE.ARCH == "resnet34"
    with pytest.raises(AssertionError, match="MODEL.RESNET_BACKBONE.FREEZE_AT"):
        cfg.merge_from_list(["MODEL.RESNET_BACKBONE.FREEZE_AT", "2"])
    assert type(cfg)(cfg.clone()) == cfg
    again = get_cfg()
    add_resnet_backbone_config(again)
    again.merge_from_other_cfg(cfg)
    assert again.dump() == cfg.dump()


def test_our_names_do_not_look_like_a_pyramids():
    """Detectron2's FPN looks for its top block's input among the trunk's features first."""
    from resnet_backbone.models.registry import create_model, list_models

    for arch in list_models():
        with torch.device("meta"):
            names = create_model(arch, num_classes=0).feature_info
        assert not {f"p{level}" for level in range(10)} & set(names)
