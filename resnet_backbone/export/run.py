"""From a subject to a file that is known to agree with it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.export import Dim, ExportedProgram

from resnet_backbone.export import formats as onnx_file
from resnet_backbone.export import formats as torch_file
from resnet_backbone.export.compare import Agreement
from resnet_backbone.export.subject import ExportedFile, Subject
from resnet_backbone.files.atomic import replacing

_TESTED = "2.14"  # of torch


class Format(NamedTuple):
    """How a captured program becomes a file, and comes back."""

    suffix: str
    requirements: tuple[str, ...]
    write: Callable[[ExportedProgram, Subject, Path], None]
    read: Callable[[Path], ExportedFile]
    facts: Callable[[Path], str]


FORMATS = {
    "onnx": Format(
        ".onnx", onnx_file.REQUIREMENTS, onnx_file.write_onnx, onnx_file.OnnxFile, onnx_file.read_onnx_facts
    ),
    "torch": Format(".pt2", (), torch_file.write_torch, torch_file.TorchFile, torch_file.read_torch_facts),
}


def check_destination(path: Path, format_name: str) -> None:
    """Refuse, before any work, what cannot be written.

    Raises:
        ValueError: the name does not end as the format's files do.
        OSError: a folder has this name.
        ImportError: packages that the format needs are not installed.
    """
    form = FORMATS[format_name]
    if path.suffix != form.suffix:
        raise ValueError(f"a file of format {format_name} ends in {form.suffix}; found {path}")
    if path.is_dir():
        raise OSError(f"{path} is a folder; name a file in it")
    missing = [name for name in form.requirements if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"format {format_name} needs packages that are not installed: pip install {' '.join(missing)} (or all of "
            f"them: pip install 'resnet_backbone[export]')"
        )


def capture(subject: Subject) -> ExportedProgram:
    """Trace a network with :func:`torch.export.export`.

    Raises:
        ValueError: this release of torch cannot follow it, or fixes a size that should vary.
    """
    shapes = (dict.fromkeys(subject.axes, Dim.DYNAMIC),)
    with torch.no_grad(), _quiet():
        try:
            return torch.export.export(subject.module, (subject.example,), dynamic_shapes=shapes)
        except RuntimeError as error:
            raise _failed("torch.export", error) from error


def write(program: ExportedProgram, subject: Subject, path: Path, format_name: str) -> Agreement:
    """Write a program, read the file back, run it and compare; the file appears under its name only when it agrees.

    Raises:
        ValueError: torch's exporter cannot write it, or the file does not agree with PyTorch.
        OSError, ImportError: see :func:`check_destination`, or the disk does not take it.
    """
    check_destination(path, format_name)
    form = FORMATS[format_name]
    with replacing(path, "exporting") as part:
        with _quiet():
            try:
                form.write(program, subject, part)
            except RuntimeError as error:
                raise _failed(f"writing format {format_name}", error) from error
        try:
            agreement = subject.check(form.read(part))
        except (RuntimeError, AssertionError) as error:  # of a guard, or an operator that the runtime lacks
            raise _failed(f"{path} was not written: running what was exported", error) from error
        problems = agreement.problems()
        if problems:
            raise ValueError(f"{path} was not written: its outputs are not those of PyTorch: {'; '.join(problems)}")
    return agreement


def export(subject: Subject, path: Path, format_name: str) -> Agreement:
    """Do both of :func:`capture` and :func:`write`."""
    check_destination(path, format_name)
    return write(capture(subject), subject, path, format_name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what libraries warn each other of while a network is traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _failed(step: str, error: Exception) -> ValueError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(f"{step} failed with torch {torch.__version__} (tested with {_TESTED}): {first}")
