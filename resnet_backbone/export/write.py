"""Writing a network as ONNX or torch.export's .pt2, and reading the file back to see that it agrees with PyTorch."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision  # noqa: F401  (the operators that the translation table names)
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from resnet_backbone.files.atomic import replacing
from resnet_backbone.version import __version__

_TESTED = "2.14"  # of torch
FACTS_KEY = "resnet_backbone"  # of the entry in metadata_props of ONNX; in a .pt2, the file FACTS_KEY.json
_FACTS_FILE = f"{FACTS_KEY}.json"  # in a .pt2

# Largest differences that pass. Sums in another order explain far less: 1e-3 pixels, 1e-5 of a score.
TOLERANCES = {"boxes": 0.05, "scores": 5e-4, "masks": 5e-3}  # pixels, and probabilities
RELATIVE_TOLERANCE = 1e-4  # of feature maps and logits, to the largest value
_EXCEPTIONS = 100  # one detection in so many may be decided otherwise, where it is within rounding of a threshold


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a file says of itself: plain values, kept as JSON."""

    task: str  # features, classification, detection or segmentation
    architecture: str  # of the trunk, as in resnet50; of a detector after its meta-architecture
    source: str  # name of the file that the weights are from
    input: str  # name, shape and type of the only input
    channel_order: str  # RGB or BGR
    # of the pixels, before mean and std where these are applied outside
    value_range: tuple[float, float] = (0.0, 255.0)
    mean: tuple[float, ...]  # for each channel, in channel_order, on the scale of value_range
    std: tuple[float, ...]  # likewise; (pixel - mean) / std
    normalises: bool  # whether the file does that itself; if not, it is done before
    resize: str  # what is done to an image before; empty where nothing is known
    smallest_side: int  # pixels, the least height and width for which the file is promised to work
    outputs: dict[str, str]  # names, in their order, to shapes and meaning
    class_names: tuple[str, ...]  # in the order of the labels or logits; empty where nobody said
    package_version: str = __version__  # of resnet_backbone
    torch_version: str = str(torch.__version__)  # of torch
    score_threshold: float | None = None  # of a detector, in the tensor score_threshold of the file

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass
class Agreement:
    """What was compared, image after image."""

    images: list[tuple[int, ...]] = field(default_factory=list)  # shapes of what was run
    detections: int = 0  # how many were compared; of a trunk 0
    unmatched: int = 0  # detections that only one side has
    # differences by output; of feature maps and logits relative to the largest value
    largest: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, difference: float) -> None:
        """Note a difference; NaN counts as infinite."""
        difference = difference if difference == difference else float("inf")
        self.largest[name] = max(self.largest.get(name, 0.0), difference)

    def problems(self) -> list[str]:
        """Return what speaks against the file; empty where it agrees."""
        found = [
            f"{name} differ by {value:.3g}, more than {TOLERANCES.get(name, RELATIVE_TOLERANCE)}"
            for name, value in self.largest.items()
            if value > TOLERANCES.get(name, RELATIVE_TOLERANCE)
        ]
        if self.unmatched > self.detections // _EXCEPTIONS:
            found.append(f"{self.unmatched} of {self.detections} detections have no counterpart")
        if not self.largest:
            found.append("nothing was found on any image, so nothing was compared: name images with objects")
        return found


@dataclass(frozen=True)
class Exportable:
    """A network with all that exporting it takes."""

    module: nn.Module  # in eval mode; takes one tensor and returns a tuple of them
    input_name: str  # of that tensor
    example: Tensor  # it is traced with; no size in it is one that the network handles otherwise than others
    axes: dict[int, str]  # of the input, those whose size varies, by name
    output_axes: dict[int, str]  # likewise of every output
    facts: Facts  # for the file
    check: Callable[[ExportedFile], Agreement]  # compares a file with the network in PyTorch, see Agreement


def compare_tensors(agreement: Agreement, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    """Compare feature maps or logits of the same names."""
    for name, want in expected.items():
        have = actual[name]
        if have.shape != want.shape:
            agreement.add(name, float("inf"))
        else:
            agreement.add(name, float((have - want).abs().max() / want.abs().max().clamp(min=1e-12)))


class Format(NamedTuple):
    """How a captured program becomes a file, and comes back."""

    suffix: str
    requirements: tuple[str, ...]
    write: Callable[[ExportedProgram, Exportable, Path], None]
    read: Callable[[Path], ExportedFile]

    def facts(self, path: Path) -> str:
        """Return the JSON of :class:`Facts` in a file; FileNotFoundError where there is none."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return self.read(path).facts


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


def export(exportable: Exportable, path: Path, format_name: str) -> Agreement:
    """Trace a network with :func:`torch.export.export` and write it; the file appears only where it agrees.

    It is read back, run and compared before it gets its name.

    Raises:
        ValueError: this release of torch cannot follow the network, fixes a size that should vary, or cannot write it;
            or the file does not agree with PyTorch.
        OSError, ImportError: see :func:`check_destination`, or the disk does not take it.
    """
    check_destination(path, format_name)
    form = FORMATS[format_name]
    shapes = (dict.fromkeys(exportable.axes, Dim.DYNAMIC),)
    with warnings.catch_warnings(), replacing(path, "exporting") as part:
        warnings.simplefilter("ignore")  # what libraries warn each other of
        step = "torch.export"
        try:
            with torch.no_grad():
                program = torch.export.export(exportable.module, (exportable.example,), dynamic_shapes=shapes)
            step = f"writing format {format_name}"
            form.write(program, exportable, part)
            step = f"{path} was not written: running what was exported"
            agreement = exportable.check(form.read(part))
        except (RuntimeError, AssertionError) as error:  # also of a guard, or an operator that the runtime lacks
            raise _failed(step, error) from error
        problems = agreement.problems()
        if problems:
            raise ValueError(f"{path} was not written: its outputs are not those of PyTorch: {'; '.join(problems)}")
    return agreement


def _failed(step: str, error: Exception) -> ValueError:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ValueError(f"{step} failed with torch {torch.__version__} (tested with {_TESTED}): {first}")


def write_onnx(program: ExportedProgram, exportable: Exportable, path: Path) -> None:
    """Write one file, weights included.

    Raises:
        RuntimeError: torch's exporter does not know an operator.
        ValueError: the weights are too large for one file, which ONNX limits to 2 GiB.
    """
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[exportable.input_name],
        output_names=list(exportable.facts.outputs),
        custom_translation_table={torch.ops.torchvision.roi_pool.default: _roi_pool},
        verbose=False,
    )
    model = exported.model_proto
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size >= 2**31:
        raise ValueError(f"the weights have {size / 2**30:.1f} GiB, and an ONNX file holds 2; write --format torch")
    _name_axes(model.graph, exportable)
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del part.metadata_props[:]  # where in which source file of this machine it comes from
    model.metadata_props.add(key=FACTS_KEY, value=exportable.facts.to_json())
    path.write_bytes(model.SerializeToString())


def _roi_pool(features: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
    """RoIPool, in ONNX MaxRoiPool. Its second output, which cell was the largest, is for training."""
    from onnxscript import opset18 as op

    pooled = op.MaxRoiPool(features, rois, pooled_shape=(pooled_height, pooled_width), spatial_scale=spatial_scale)
    return pooled, op.Cast(pooled, to=6)  # int32


def _name_axes(graph: Any, exportable: Exportable) -> None:
    """Give the sizes that vary their names, instead of torch's s0, wherever they stand."""
    shape = graph.input[0].type.tensor_type.shape
    names = {shape.dim[axis].dim_param: name for axis, name in exportable.axes.items()}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    for value in graph.output:
        for axis, name in exportable.output_axes.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


class OnnxFile:
    """An ONNX file that was read back; called with images, it returns its outputs, on the CPU.

    Attributes:
        facts: the JSON of :class:`Facts` in it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = _session(str(path))
        self.facts: str = self._session.get_modelmeta().custom_metadata_map[FACTS_KEY]

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        (given,) = self._session.get_inputs()
        with _as_runtime_errors():
            values = self._session.run(None, {given.name: images.numpy()})
        return tuple(torch.from_numpy(value) for value in values)

    def set_score_threshold(self, threshold: float) -> None:
        """Run with another value in the tensor ``score_threshold`` from now on; the file stays as it is."""
        import onnx

        model = onnx.load(str(self._path))
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "score_threshold")
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


def write_torch(program: ExportedProgram, exportable: Exportable, path: Path) -> None:
    """Write what ``torch.export.load`` reads, after ``import torchvision`` for a detector."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the paths of this machine's source files
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={_FACTS_FILE: exportable.facts.to_json()})


class TorchFile:
    """As :class:`OnnxFile`, of torch.export."""

    def __init__(self, path: Path) -> None:
        files = {_FACTS_FILE: ""}
        with path.open("rb") as file:
            self._module = torch.export.load(file, extra_files=files).module()
        self.facts = files[_FACTS_FILE]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._module(images))

    def set_score_threshold(self, threshold: float) -> None:
        self._module.get_buffer("score_threshold").fill_(threshold)


ExportedFile = OnnxFile | TorchFile
FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, OnnxFile),
    "torch": Format(".pt2", (), write_torch, TorchFile),
}
