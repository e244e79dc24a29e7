"""What every test may use: the real images beside the project, its scripts, and one thread a process.

With RESNET_BACKBONE_DESK=1 (``make test-desk``) tests run nearly as on Windows: whoever starts processes without saying
how gets new ones, by "spawn", and the modules that only Unix has are absent.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
import torch

from resnet_backbone.data.prepare.shapes import generate_shapes
from resnet_backbone.metrics.voc import SUBMISSION_FOLDER, evaluate_voc
from tests.processes import FORKS, forget_log

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
# Signals, limits, full disks and killed processes are tested on Linux; what needs nothing else of it runs everywhere.
_OF_LINUX = """faults fuzz hostile config/test_command_line.py config/test_interruption.py engine/test_launch.py
files/test_atomic.py files/test_lock.py weights/test_download.py"""
_DESK = bool(os.environ.get("RESNET_BACKBONE_DESK"))
collect_ignore = _OF_LINUX.split() if _DESK or not FORKS else []

torch.set_num_threads(1)
if _DESK:
    multiprocessing.set_start_method("spawn", force=True)
    for name in ("filelock", "portalocker", "psutil"):  # which need what Windows has not
        importlib.import_module(name)
    for name in ("fcntl", "resource"):
        sys.modules[name] = None  # type: ignore[assignment]


def _shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"needs real data at {path}, which are not there")
    return path


def _forget_accelerator() -> None:
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state a process, and refuses another precision after the first."""
    _forget_accelerator()
    yield
    _forget_accelerator()


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    """A handler of a test's captured output would fail on the next message; a run's level would hide a later test's."""
    yield
    forget_log("resnet_backbone", "detectron2", "fvcore", "d2")


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """80 + 79 images of COCO 2017 with their annotations: annotations/, train2017/, val2017/."""
    return _shared("coco_mini")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """364 photographs of blood cells in Pascal VOC's layout."""
    return _shared("bccd")


@pytest.fixture(scope="session")
def cifar10_resnets() -> Path:
    """The published ResNet-20 and -56 of akamaster/pytorch_resnet_cifar10."""
    return _shared("cifar10_resnets")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for $DETECTRON2_DATASETS with a tiny "shapes" set."""
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root / "shapes", num_train=12, num_val=5, seed=0)
    return root


@pytest.fixture(scope="session")
def shapes_as_voc(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root like ``shapes``; its validation images are ``voc07_test``, too, and ``voc12_test`` without annotations."""
    root = tmp_path_factory.mktemp("voc")
    (root / "shapes").symlink_to(shapes / "shapes")
    (root / "voc/annotations").mkdir(parents=True)
    document = json.loads((shapes / "shapes/annotations/val.json").read_text())
    for name, folder in (("voc07_test", "VOC2007"), ("voc12_test", "VOC2012")):
        annotations = [] if name == "voc12_test" else document["annotations"]
        (root / f"voc/annotations/{name}.json").write_text(json.dumps({**document, "annotations": annotations}))
        (root / folder).mkdir()
        (root / folder / "JPEGImages").symlink_to(shapes / "shapes/val")
    return root


@pytest.fixture(scope="session")
def assert_voc_run(shapes_as_voc: Path) -> Callable[[Path, set[str]], None]:
    """Checks the folder of a run on ``shapes_as_voc`` with DATASETS.TEST ``('voc07_test', 'voc12_test')``."""

    def check(output: Path, scored: set[str]) -> None:
        assert scored == {"voc07_test"}
        with_annotations, without = (output / "inference" / name for name in ("voc07_test", "voc12_test"))
        results = with_annotations / "coco_instances_results.json"
        truth = shapes_as_voc / "voc/annotations/voc07_test.json"
        expected = evaluate_voc(truth, results, eleven_points=True)
        written = json.loads((with_annotations / "metrics.json").read_text())
        assert set(written) == {"bbox", "voc"} and written["voc"] == expected.to_dict()["voc"]
        records = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        recorded = [record["voc07_test/voc/mAP"] for record in records if "voc07_test/voc/mAP" in record]
        assert recorded == [pytest.approx(expected.mAP)]
        assert not [key for record in records for key in record if key.startswith("voc12_test")]
        log = (output / "log.txt").read_text()
        assert "Pascal VOC, IoU 0.5, 11 points" in log and "pack it with tar -czf results.tgz" in log

        assert not (without / "metrics.json").exists() and (without / "facts.json").is_file()
        lines = [line for path in (without / SUBMISSION_FOLDER).iterdir() for line in path.read_text().splitlines()]
        assert len(lines) == len(json.loads((without / "coco_instances_results.json").read_text())) > 0

    return check


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Imports a command-line script by its path below the project."""

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def small_files() -> Callable[..., str]:
    """Calls a function in a process that cannot write files beyond so many bytes; returns its error, "" for none."""

    def call(limit: int, function: Callable[[], object]) -> str:
        if not FORKS:
            pytest.skip("limits the size of files of a process that it forks, for Linux only")
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def child() -> None:
            sys.modules.pop("resource", None)
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                function()
                sender.send("")
            except (ValueError, OSError) as error:
                sender.send(str(error))

        process = context.Process(target=child)
        process.start()
        message = receiver.recv() if receiver.poll(60) else "no answer"
        process.join(60)
        return message

    return call


def _process_of_two(rank: int, folder: Path, meeting: str, function: Callable[[int, Path], object], sender) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    try:
        sender.send(function(rank, folder))
    except (OSError, ValueError) as error:
        sender.send(f"{type(error).__name__}: {error}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[[Callable[[int, Path], object]], list[object]]:
    """Calls ``function(rank, folder)`` in two processes that talk by gloo; returns both answers, an error as text."""
    meetings = itertools.count()

    def call(function: Callable[[int, Path], object]) -> list[object]:
        if not FORKS:
            pytest.skip("forks processes that have loaded torch, for Linux only")
        context = multiprocessing.get_context("fork")
        meeting = str(tmp_path / f"meeting{next(meetings)}")
        receivers, processes = [], []
        for rank in range(2):
            receiver, sender = context.Pipe(duplex=False)
            receivers.append(receiver)
            process = context.Process(target=_process_of_two, args=(rank, tmp_path, meeting, function, sender))
            process.start()
            processes.append(process)
        answers = [receiver.recv() if receiver.poll(120) else "no answer" for receiver in receivers]
        for process in processes:
            process.join(10)
            process.kill()
        return answers

    return call
