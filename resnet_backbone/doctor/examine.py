"""The examination of a config on an engine, or of a checkpoint alone: versions, weights, input, data."""

from __future__ import annotations

import copy
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
import torchvision
from fvcore.common.config import CfgNode

from resnet_backbone.config.acceleration import has_device, mps_problem
from resnet_backbone.config.combinations import BUILDERS
from resnet_backbone.config.reader import value_of
from resnet_backbone.config.weights_input import fit_input, input_of, required_by, required_input
from resnet_backbone.data.catalog import check_same_classes
from resnet_backbone.doctor.checkpoint import CLASSIFIER, COUNTER, DETECTOR, Checkpoint, config_lines, read_checkpoint
from resnet_backbone.doctor.classification import UNMEASURABLE, classify_alone, classify_by_detector, measure_input
from resnet_backbone.doctor.report import NOT_RUN, WRONG, DetectorParts, Engine, Report, Section
from resnet_backbone.models.registry import list_models
from resnet_backbone.version import __version__
from resnet_backbone.weights import WeightsError, load_weights
from resnet_backbone.weights.architecture import candidate_archs, has_bottlenecks
from resnet_backbone.weights.download import resolve
from resnet_backbone.weights.errors import SHOWN_NAMES, shorten

_REFUSED = (ValueError, TypeError, OSError)
_FIRST_MINOR = 15  # torchvision 0.15 belongs to torch 2.0, 0.16 to 2.1, and so on


def check_versions(section: Section) -> None:
    """Enter the versions of Python, torch, torchvision and CUDA."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    section.facts |= {
        "resnet_backbone": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }
    section.ok(
        f"resnet_backbone {__version__}, Python {platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, "
        + (f"CUDA {torch.version.cuda}, {', '.join(gpus)}" if gpus else "MPS" if has_device("mps") else "no GPU")
    )
    if not hasattr(torch.ops.torchvision, "nms"):
        section.wrong(
            f"torchvision {torchvision.__version__} has no compiled operators for torch {torch.__version__}; install "
            "both in one command and from one index"
        )
    elif problem := pair_problem(torch.__version__, torchvision.__version__) or mps_problem():
        section.warning(problem)


def pair_problem(torch_version: str, torchvision_version: str) -> str:
    """Say what is wrong with a pair of versions such as ``"2.14.1+cpu"`` and ``"0.29.1"``; ``""`` for nothing."""
    major, minor, *_ = torch_version.split(".")
    if major == "2" and minor.isdigit():
        wanted = f"0.{_FIRST_MINOR + int(minor)}"
        if torchvision_version.split(".")[:2] != wanted.split("."):
            return (
                f"torchvision {torchvision_version} is not of torch {torch_version}: that one's is {wanted}; write "
                f"pip install 'torchvision=={wanted}.*'"
            )
    builds = [version.partition("+")[2] for version in (torch_version, torchvision_version)]
    if all(builds) and builds[0] != builds[1]:
        return f"torch is built for {builds[0]}, torchvision for {builds[1]}; install both from one index"
    return ""


def check_tensors(section: Section, parts: DetectorParts, checkpoint: Checkpoint, *, strict: bool) -> None:
    """Load the file again into a copy of the trunk, and compare the detector with that, tensor by tensor.

    Without ``strict``, MODEL.RESNET_BACKBONE.STRICT_WEIGHTS, a file that fits in part is a warning.
    """
    reloaded = copy.deepcopy(parts.trunk)
    weights = checkpoint.weights
    try:
        report = load_weights(reloaded, weights)
    except WeightsError as error:
        (section.wrong if strict else section.warning)(str(error))
        return
    section.facts["load"] = report.to_dict()
    expected = {name: tensor for name, tensor in reloaded.state_dict().items() if not name.endswith(COUNTER)}
    found = parts.trunk.state_dict()
    for part, module in parts.head_parts.items():
        for name, tensor in module.state_dict().items():
            full_name = f"{part}.{name}"
            if full_name in weights.state_dict and not name.endswith(COUNTER):
                expected[full_name] = weights.state_dict[full_name]
                found[full_name] = tensor
    differ = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    if differ:
        section.wrong(f"{len(differ)} of {len(expected)} tensors of the detector are not the file's: {shorten(differ)}")
        return
    heads = f" and of {', '.join(parts.head_parts)} in the head" if parts.head_parts else ""
    section.ok(f"{len(expected)} tensors of the trunk{heads} are the file's")
    if checkpoint.kind == DETECTOR:  # the rest of the file is the rest of the detector
        return
    for why, names in report.ignored.items():
        unused = [name for name in names if name not in expected and not name.endswith(COUNTER)]
        if unused:
            section.ok(f"{len(unused)} tensors of the file are not used: {why}")


def check_datasets(section: Section, engine: Engine, cfg: CfgNode) -> tuple[str, ...]:
    """Open what DATASETS.TRAIN and TEST name; return the classes of the first data set that can be used."""
    class_names: tuple[str, ...] | None = None
    for key, names, training in (("TRAIN", cfg.DATASETS.TRAIN, True), ("TEST", cfg.DATASETS.TEST, False)):
        if not names:
            section.warning(f"DATASETS.{key} is empty")
        for name in names:
            try:
                with section.with_logged_warnings():
                    found = engine.open_dataset(name, cfg, training=training)
                class_names = found if class_names is None else class_names
                check_same_classes(name, found, class_names)
            except _REFUSED as error:
                section.wrong(str(error))
                continue
            use = "trains on it" if training else "scores with it"
            section.ok(f"{name} passes what a run checks before it {use}; {_described(found)}")
    section.facts["class_names"] = list(class_names or ())
    return class_names or ()


def compare_with_detector(section: Section, class_names: tuple[str, ...], checkpoint: Checkpoint) -> None:
    """Say whether a detector in MODEL.WEIGHTS tells the classes of the data apart, as far as its file says them."""
    if checkpoint.kind != DETECTOR or not class_names:
        return
    if checkpoint.class_names:
        same, learned = checkpoint.class_names == class_names, _described(checkpoint.class_names)
    elif checkpoint.num_detected is not None:
        same, learned = checkpoint.num_detected == len(class_names), f"{checkpoint.num_detected} classes without names"
    else:
        section.warning(f"{checkpoint.source} does not say which classes it detects: that is not compared")
        return
    if same:
        section.ok(f"{checkpoint.source} detects the classes of the data")
    else:
        section.warning(
            f"{checkpoint.source} detects {learned}, the data has {_described(class_names)}: a training can start from "
            f"it, --eval-only and --resume need a detector of these classes"
        )


def _described(class_names: Sequence[str]) -> str:
    more = f" and {len(class_names) - SHOWN_NAMES} more" if len(class_names) > SHOWN_NAMES else ""
    return f"the classes {list(class_names[:SHOWN_NAMES])}{more}" if class_names else "no classes of things"


def examine_config(engine: Engine, config_file: str, overrides: Sequence[str], images: Sequence[str] = ()) -> Report:
    """Do what a run does before its first step, on the CPU, and say of each part whether it fits.

    Weights are downloaded as by the run itself; nothing else is written.

    Args:
        engine: whose run.
        config_file: a path, or a name inside the project's configs.
        overrides: ``KEY VALUE`` pairs, one after another.
        images: files to classify; without any, a generated picture stands for them in the comparison.
    """
    report = Report(config_file, engine.name)
    check_versions(report["versions"])
    engine.check_versions(report["versions"])
    known = {**engine.known_names(), "MODEL.RESNET_BACKBONE.ARCH": list_models()}
    report["registry"].facts |= {key: sorted(names) for key, names in known.items()}
    try:
        cfg = engine.load_config(config_file, overrides)
    except _REFUSED as error:
        report["config"].wrong(str(error))
        report.not_run("the config cannot be used")
        return report
    for key, names in known.items():  # those that are not registered were refused by load_config
        if value_of(cfg, key) in names:
            report["registry"].ok(f"{key}: {value_of(cfg, key)}, one of {len(names)}")
    class_names = check_datasets(report["data"], engine, cfg)
    if cfg.MODEL.BACKBONE.NAME not in BUILDERS:
        report["config"].warning(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is none of this package's builders: what it makes of "
            f"MODEL.WEIGHTS is not looked at"
        )
        report.not_run("the backbone is none of this package's")
        return report
    checkpoint = _read_checkpoint(report, engine, cfg)
    if checkpoint is not None:
        _fit_input(report["input"], cfg, checkpoint)
        compare_with_detector(report["data"], class_names, checkpoint)
    parts = _build(report, engine, cfg, checkpoint, class_names)
    if parts is not None and checkpoint is not None:
        check_tensors(report["weights"], parts, checkpoint, strict=cfg.MODEL.RESNET_BACKBONE.STRICT_WEIGHTS)
        _check_measured(report["input"], parts, checkpoint)
        classify_by_detector(report["classification"], parts, checkpoint, images)
    report.not_run("the detector cannot be built with these weights")
    return report


def examine_checkpoint(source: str, images: Sequence[str] = ()) -> Report:
    """Say what a weight file or a detector's checkpoint is, and which config it needs.

    Args:
        source: a file, or ``imagenet://ARCH/NAME``.
        images: files to classify, where it holds a classifier.
    """
    report = Report(source)
    check_versions(report["versions"])
    report.not_run("no config was given", "registry", "config", "data")
    section = report["weights"]
    try:
        checkpoint = read_checkpoint(source)
    except _REFUSED as error:
        section.wrong(str(error))
        report.not_run("the checkpoint cannot be read")
        return report
    section.facts |= checkpoint.facts()
    section.ok(checkpoint.summary())
    weights = checkpoint.weights
    if weights.arch is None:
        fits = candidate_archs(weights.state_dict)
        if fits:
            section.warning(f"the tensors fit several architectures, {', '.join(fits)}: a config must say which")
        else:
            section.wrong(f"{source} is no complete network that we know: is a part missing?")
        report.not_run("nobody knows of which architecture it is")
        return report
    _check_known_input(report["input"], checkpoint)
    classify_alone(section, report["classification"], checkpoint, images)
    if checkpoint.kind == CLASSIFIER and weights.input_format is None:
        section.ok(
            "package it with resnet-backbone package, which asks for the input that nobody said, and name the result"
        )
        return report
    section.facts["config"] = config_lines(checkpoint)
    section.ok("a config for it has\n" + "\n".join(f"  {line}" for line in section.facts["config"].splitlines()))
    return report


def _read_checkpoint(report: Report, engine: Engine, cfg: CfgNode) -> Checkpoint | None:
    section, source = report["weights"], cfg.MODEL.WEIGHTS
    if not source:
        section.ok("MODEL.WEIGHTS is empty: the detector starts from random weights")
        report.not_run("MODEL.WEIGHTS is empty: random weights need no input of their own", "input")
        report.not_run("MODEL.WEIGHTS is empty: random weights know no classes", "classification")
        return None
    try:
        checkpoint = read_checkpoint(resolve(source), cfg.MODEL.RESNET_BACKBONE.ARCH, source)
    except _REFUSED as error:
        section.wrong(str(error))
        report.not_run("MODEL.WEIGHTS cannot be used", "input", "classification")
        return None
    section.facts |= checkpoint.facts()
    section.ok(checkpoint.summary())
    if checkpoint.kind == DETECTOR and not engine.loads_detector(checkpoint):
        section.warning(
            f"the {engine.name} engine takes the trunk alone of this detector: its heads are re-initialised"
        )
        return replace(checkpoint, kind=CLASSIFIER)
    return checkpoint


def _fit_input(section: Section, cfg: CfgNode, checkpoint: Checkpoint) -> None:
    """Take the input from the weights as a run does, in place, and say what that changed."""
    before = input_of(cfg)
    section.facts["config"] = before
    try:
        fit_input(cfg, required_by(checkpoint.weights, cfg), checkpoint.source)
    except ValueError as error:
        section.wrong(str(error))
        return
    after = input_of(cfg)
    section.facts["run"] = after
    if checkpoint.weights.input_format is None:
        section.warning(
            f"{checkpoint.source} does not say which input it was trained on: the config's stands, unchecked: "
            + ", ".join(f"{key} {value}" for key, value in before.items())
        )
    for key, value in after.items():
        if key != "MODEL.RESNETS.STRIDE_IN_1X1" or has_bottlenecks(cfg.MODEL.RESNET_BACKBONE.ARCH):
            changed = f", from the weights; the config has {before[key]}" if before[key] != value else ""
            section.ok(f"{key}: {value}{changed}")


def _build(
    report: Report, engine: Engine, cfg: CfgNode, checkpoint: Checkpoint | None, class_names: tuple[str, ...]
) -> DetectorParts | None:
    """Build and load the detector; where its weights are refused, at least see whether it can be built."""
    section, what = report["config"], f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.BACKBONE.NAME}"
    if checkpoint is not None or not cfg.MODEL.WEIGHTS:
        try:
            with section.with_logged_warnings():
                parts = engine.build(cfg, checkpoint, class_names, report["weights"])
        except WeightsError as error:
            report["weights"].wrong(str(error))
        except ValueError as error:
            if report["input"].status != WRONG:  # which Detectron2's builders look at, too
                section.wrong(str(error))
                return None
        else:
            section.ok(f"it can be built: {what}")
            return parts
    without = cfg.clone()
    without.MODEL.WEIGHTS = ""
    try:
        with Section("without weights").with_logged_warnings():  # of random weights, which nobody asked for
            engine.build(without, None, class_names, section)
    except ValueError as error:
        section.wrong(str(error))
    else:
        section.ok(f"it can be built without its weights: {what}")
    return None


def _check_known_input(section: Section, checkpoint: Checkpoint) -> None:
    weights = checkpoint.weights
    if weights.input_format is None:
        placement = " [--stride-in-1x1 yes|no]" if weights.stride_in_1x1 is None else ""
        advice = (
            "write MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS: False, and INPUT.FORMAT, MODEL.PIXEL_MEAN and "
            "MODEL.PIXEL_STD of the config that it was trained with "
            "(Detectron2's zoo: BGR, mean [103.53, 116.28, 123.675], std [1, 1, 1], unless its config says otherwise)"
            if checkpoint.kind == DETECTOR
            else f"say it once and for all: resnet-backbone package {checkpoint.source} OUT.pth "
            f"--channel-order RGB|BGR --mean M M M --std S S S{placement}"
        )
        section.warning(f"nobody said on which colour order, mean and std it was trained; {advice}")
        return
    for key, value in required_input(str(weights.arch), weights.input_format, weights.stride_in_1x1).items():
        section.facts[key] = value
        section.ok(f"{key}: {value}")


def _check_measured(section: Section, parts: DetectorParts, checkpoint: Checkpoint) -> None:
    """Compare what the built detector does to pixels with what the weights need."""
    measured = measure_input(parts.prepare)
    if measured is None:
        section.wrong(UNMEASURABLE)
        return
    section.facts["measured"] = asdict(measured)
    wanted = checkpoint.weights.input_format
    if wanted is None or section.status == WRONG:
        return
    differences = measured.differences(wanted)
    for text in differences:
        section.wrong(f"measured on the built detector: {text}")
    if not differences and section.status != NOT_RUN:
        section.ok("measured on the built detector: what the weights want")
