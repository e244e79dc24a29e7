"""The two file formats: ONNX and torch.export's .pt2, writing a captured program and running the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  (the operators that the translation table names)
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from resnet_backbone.export.subject import FACTS_KEY, Subject

REQUIREMENTS = ("onnx", "onnxscript", "onnxruntime")
_THRESHOLD = "score_threshold"


def write_onnx(program: ExportedProgram, subject: Subject, path: Path) -> None:
    """Write one file, weights included.

    Raises:
        RuntimeError: torch's exporter does not know an operator.
        ValueError: the weights are too large for one file, which ONNX limits to 2 GiB.
    """
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[subject.input_name],
        output_names=list(subject.facts.outputs),
        custom_translation_table={torch.ops.torchvision.roi_pool.default: _roi_pool},
        verbose=False,
    )
    model = exported.model_proto
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size >= 2**31:
        raise ValueError(f"the weights have {size / 2**30:.1f} GiB, and an ONNX file holds 2; write --format torch")
    _name_axes(model.graph, subject)
    _forget_origin(model.graph)
    model.metadata_props.add(key=FACTS_KEY, value=subject.facts.to_json())
    path.write_bytes(model.SerializeToString())


def _roi_pool(features: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
    """RoIPool, in ONNX MaxRoiPool. Its second output, which cell was the largest, is for training."""
    from onnxscript import opset18 as op

    pooled = op.MaxRoiPool(features, rois, pooled_shape=(pooled_height, pooled_width), spatial_scale=spatial_scale)
    return pooled, op.Cast(pooled, to=6)  # int32


def _name_axes(graph: Any, subject: Subject) -> None:
    """Give the sizes that vary their names, instead of torch's s0, wherever they stand."""
    shape = graph.input[0].type.tensor_type.shape
    names = {shape.dim[axis].dim_param: name for axis, name in subject.axes.items()}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    for value in graph.output:
        for axis, name in subject.output_axes.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _forget_origin(graph: Any) -> None:
    """Drop where in which source file every operation comes from."""
    parts: Iterable[Any] = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph)
    for part in parts:
        del part.metadata_props[:]


class OnnxFile:
    """See :class:`~resnet_backbone.export.subject.ExportedFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = _session(str(path))

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        (given,) = self._session.get_inputs()
        with _as_runtime_errors():
            values = self._session.run(None, {given.name: images.numpy()})
        return tuple(torch.from_numpy(value) for value in values)

    def set_score_threshold(self, threshold: float) -> None:
        import onnx

        model = onnx.load(str(self._path))
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == _THRESHOLD)
        tensor.raw_data = torch.tensor(threshold).numpy().tobytes()
        self._session = _session(model.SerializeToString())


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _as_runtime_errors():
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextmanager
def _as_runtime_errors() -> Iterator[None]:
    """ONNX Runtime's errors have no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    known = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException)
    try:
        yield
    except known as error:
        raise RuntimeError(str(error)) from error


def read_onnx_facts(path: Path) -> str:
    """Return the JSON of :class:`~resnet_backbone.export.subject.Facts` in a file."""
    import onnx

    model = onnx.load(str(path))
    return {entry.key: entry.value for entry in model.metadata_props}[FACTS_KEY]


_FACTS_FILE = f"{FACTS_KEY}.json"


def write_torch(program: ExportedProgram, subject: Subject, path: Path) -> None:
    """Write what ``torch.export.load`` reads, after ``import torchvision`` for a detector."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the paths of this machine's source files
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_FACTS_FILE: subject.facts.to_json()})


class TorchFile:
    """See :class:`~resnet_backbone.export.subject.ExportedFile`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._module = torch.export.load(file).module()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._module(images))

    def set_score_threshold(self, threshold: float) -> None:
        self._module.get_buffer("score_threshold").fill_(threshold)


def read_torch_facts(path: Path) -> str:
    """Return the JSON of :class:`~resnet_backbone.export.subject.Facts` in a file."""
    files = {_FACTS_FILE: ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=files)
    return files[_FACTS_FILE]
