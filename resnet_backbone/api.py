"""The package from Python: train a detector, load one, and hand on what it finds in images."""

from __future__ import annotations

import logging
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from resnet_backbone.compare.report import write_run_pages
from resnet_backbone.config.acceleration import has_device
from resnet_backbone.config.merge import CONFIG
from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.images.media import find_media
from resnet_backbone.data.images.read import read_image
from resnet_backbone.doctor.plan import Plan, plan_training, written_plan
from resnet_backbone.engine.checkpoint import engine_of, find_run
from resnet_backbone.engine.command_line import ENGINES, choose_engine
from resnet_backbone.engine.records import set_up_logging
from resnet_backbone.engine.signals import catching_signals
from resnet_backbone.metrics.drawing import check_image, draw_detections
from resnet_backbone.metrics.results import Detections, ImageResults, Predictor
from resnet_backbone.weights.detectors import named_detector

if TYPE_CHECKING:
    from pandas import DataFrame
    from supervision import Detections as SupervisionDetections

logger = logging.getLogger(__name__)

Overrides = Mapping[str, Any] | Sequence[str]  # {"SOLVER.MAX_ITER": 300}, or the words of a command line
Picture = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class TrainedRun:
    """A training that has ended."""

    output_dir: Path
    metrics: dict[str, dict[str, Any]]  # of each test set, in percent, as the last line of a training has them
    pages: list[Path]  # HTML that shows them, one a test set


def train(
    data: str | Path | None = None,
    *,
    config_file: str | Path | None = None,
    overrides: Overrides = (),
    engine: str = "auto",
    group_by: str | None = None,
    resume: bool = False,
) -> TrainedRun:
    """Train and evaluate a detector in this process: ``resnet-backbone train`` from Python, on one device.

    Args:
        data: a folder of images and labels, for which a training is planned; or
        config_file: a YAML file, or the name of one in ``configs/``, such as ``"frcnn_r101"``.
        overrides: config keys and their values, such as ``{"SOLVER.MAX_ITER": 300, "OUTPUT_DIR": "runs/short"}``.
        engine: ``"detectron2"``, ``"torchvision"``, or ``"auto"``: Detectron2 where it is installed.
        group_by: see :func:`~resnet_backbone.data.prepare.folder.read_folder`.
        resume: from the last checkpoint in OUTPUT_DIR, where there is one.

    Raises:
        FileNotFoundError, OSError, ValueError, TypeError: before training, what is missing or does not fit.
        FloatingPointError: the training has diverged.
        Interrupted: a signal asked for its end; what was learned is saved.
    """
    if (data is None) == (config_file is None):
        raise ValueError("name either data, a folder of images and labels, or config_file")
    words, engine = _words(overrides), _plugin(engine)
    if data is not None:
        set_up_logging(None)
        written = written_plan(Path(data), words)
        if not (resume and written.is_file()):
            plan = plan_folder(Path(data), words, engine=engine, group_by=group_by)
            for line in plan.lines:
                logger.info("%s", line)
            plan.write()
        config_file = written
    module = import_module(f"resnet_backbone.{engine}_plugin.run")
    with catching_signals():
        run = module.Run(_load_config(engine, str(config_file), words), resume=resume)
        figures = run.start()
    # Detectron2 has them in plain values.
    plain = {name: one if isinstance(one, dict) else one.to_dict() for name, one in (figures or {}).items()}
    return TrainedRun(run.output_dir, plain, write_pages(run.output_dir) if plain else [])


def write_pages(output_dir: Path, *, show: bool = False) -> list[Path]:
    """Write the page of a finished run, one a test set, and return them; a warning where they cannot be written.

    With ``show`` they are opened in a browser. A run's end is no place to fail: its figures and weights are there.
    """
    try:
        pages = write_run_pages(output_dir, read_image=read_image, data_root=datasets_root())
    except (ValueError, OSError) as error:
        logger.warning("no page shows this run: %s", error)
        return []
    for page in pages:
        logger.info("wrote %s, which shows the result", page)
        if show and not webbrowser.open(page.absolute().as_uri()):
            logger.warning("no browser is found here: open %s in one", page)
    return pages


def plan_folder(data: Path, words: Sequence[str], *, engine: str, group_by: str | None, processes: int = 1) -> Plan:
    """Plan a training on ``engine``; see :func:`~resnet_backbone.doctor.plan.plan_training`."""
    load = partial(_load_config, engine)
    return plan_training(data, words, load, engine=engine, group_by=group_by, processes=processes)


@dataclass(frozen=True)
class Prediction(Detections):
    """What a detector found in one image: ``boxes``, ``scores``, ``labels`` and ``masks`` of
    :class:`~resnet_backbone.metrics.results.Detections`, and what they are of."""

    source: Path | Tensor = field(kw_only=True)  # the image; a file is read again to be drawn on
    size: tuple[int, int] = field(kw_only=True)  # its height and width, in pixels
    class_names: tuple[str, ...] = field(kw_only=True)  # of all K classes

    @property
    def names(self) -> list[str]:
        """The N names of the classes."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def to_supervision(self) -> SupervisionDetections:
        """Return ``supervision.Detections``, names in ``data["class_name"]``; ImportError without the library."""
        from supervision import Detections as SupervisionDetections

        return SupervisionDetections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_pandas(self) -> DataFrame:
        """Return a table with the columns x0, y0, x1, y1, score, label, name; ImportError without pandas."""
        from pandas import DataFrame

        table = DataFrame(self.boxes.numpy(), columns=["x0", "y0", "x1", "y1"])
        return table.assign(score=self.scores.numpy(), label=self.labels.numpy(), name=self.names)

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return records of COCO's result format, masks as RLE.

        Args:
            image_id: of the image in the ground truth.
            category_ids: the K ids of the classes there, in the order of ``class_names``; by default 1 to K.
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.class_names):
            raise ValueError(f"expected {len(self.class_names)} category_ids, one a class, got {len(ids)}")
        return ImageResults.hold(image_id, self.boxes, self.scores, self.labels, len(ids), self.masks).records(ids)

    def draw(self, max_size: int | None = None) -> Image.Image:
        """Return the image with boxes, masks, names and scores; ``max_size`` limits its longer side, in pixels."""
        image = read_image(str(self.source)) if isinstance(self.source, Path) else self.source
        return draw_detections(image, self, self.class_names, max_size)


class Detector:
    """A trained detector; see :func:`load_detector`. ``class_names`` are its K classes, in the order of the labels."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.class_names = predictor.class_names

    def predict(self, images: Picture | Sequence[Picture], *, score: float = 0.5) -> list[Prediction]:
        """Return what is found in each image, by the steps of the evaluation. Masks take N x H x W bytes an image.

        Args:
            images: one or several: files, folders and patterns by name; pictures of PIL; arrays, uint8, (H, W, 3), RGB;
                tensors, uint8, (3, H, W), RGB.
            score: lower ones are left out, 0 to 1.

        Raises:
            FileNotFoundError, OSError, ValueError: what cannot be read, or is no image; a video, which
                ``resnet-backbone predict`` takes.
        """
        if not 0 <= score <= 1:
            raise ValueError(f"score {score} must be from 0 to 1")
        found = []
        given = [images] if isinstance(images, Picture) else images
        for source in [source for picture in given for source in _sources(picture)]:
            image = read_image(str(source)) if isinstance(source, Path) else source
            height, width = image.shape[-2:]
            parts = vars(self.predictor(image).scored(score))
            found.append(Prediction(**parts, source=source, size=(height, width), class_names=self.class_names))
        return found


def load_detector(
    source: str | Path | TrainedRun | None = None,
    *,
    config_file: str | Path | None = None,
    overrides: Overrides = (),
    engine: str = "auto",
) -> Detector:
    """Load a trained detector, on the engine that wrote it.

    Args:
        source: what :func:`train` returned; the output folder of a training; a checkpoint, with the ``config.yaml`` of
            its training beside it or ``config_file``; or the name of a published detector
            (``weights/detectors.yaml``), such as ``torchvision://fasterrcnn_resnet50_fpn_v2/COCO_V1``, which is
            downloaded. None: what MODEL.WEIGHTS of ``config_file`` names.
        config_file: a YAML file, or the name of one in ``configs/``.
        overrides: config keys and their values, such as ``{"MODEL.DEVICE": "cpu"}``.
        engine: as in :func:`train`; ``"auto"`` is the one of the checkpoint.

    Raises:
        FileNotFoundError, OSError, ValueError, TypeError: what is missing, unsafe, or does not fit.
    """
    words = _words(overrides)
    if isinstance(source, TrainedRun):
        source = source.output_dir
    published = source is not None and "://" in str(source)
    if published:
        if config_file is not None:
            raise ValueError(f"{source} has a config of its own; leave config_file out")
        config_file = f"configs/{named_detector(str(source)).config}"
        words = ["MODEL.WEIGHTS", str(source), *words]
    elif source is not None:
        path = Path(source)
        if path.is_file():
            config, weights = path.parent / CONFIG, path
        else:
            config, weights = find_run(path)
        if config_file is None and not config.is_file():
            raise FileNotFoundError(f"{path}: no {CONFIG} of its training beside it; name its config_file")
        words = ["MODEL.WEIGHTS", str(weights), *words]
        if config_file is None:
            config_file, words = config, [*_device_of(config), *words]
    if config_file is None:
        raise ValueError("name a run, a checkpoint or a published detector, or config_file")
    named = dict(zip(words[::2], words[1::2], strict=False)).get("MODEL.WEIGHTS", "")
    wrote = engine_of(Path(named)) if Path(named).is_file() else None
    if wrote is not None and engine not in ("auto", wrote):
        raise ValueError(f"{named} is of the {wrote} engine; write --engine {wrote}, or leave it out")
    engine = "torchvision" if published else wrote or _plugin(engine)
    place = {"torchvision": "inference", "detectron2": "improvements"}[engine]
    module = import_module(f"resnet_backbone.{engine}_plugin.{place}")
    return Detector(module.Predictor(_load_config(engine, str(config_file), words)))


def _sources(given: Picture) -> list[Path | Tensor]:
    """The files that a name stands for, or the picture as a tensor."""
    if isinstance(given, (str, Path)):
        media = find_media([str(given)]).found
        if videos := [medium.source for medium in media if medium.is_video]:
            raise ValueError(f"{videos[0]} is a video or a camera; resnet-backbone predict takes it")
        return [medium.source for medium in media if isinstance(medium.source, Path)]
    if isinstance(given, Image.Image):
        given = np.asarray(given.convert("RGB"))
    if isinstance(given, np.ndarray):
        if given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8:
            raise ValueError(f"expected arrays of uint8, (H, W, 3), RGB; got {given.dtype}, {given.shape}")
        given = torch.from_numpy(np.ascontiguousarray(given.transpose(2, 0, 1)))
    check_image(given)
    return [given]


def _device_of(config_file: Path) -> list[str]:
    """Return the keys that bring a run from a machine with a GPU to one without it; nothing where it is there."""
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    if has_device(str(config["MODEL"]["DEVICE"])):
        return []
    logger.warning("the run was on a GPU, and there is none here: using the CPU")
    return ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]


def _plugin(engine: str) -> str:
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is none of {', '.join(ENGINES)}")
    return choose_engine(engine)


def _load_config(engine: str, config_file: str, words: Sequence[str]) -> Any:
    return import_module(f"resnet_backbone.{engine}_plugin.config").load_config(config_file, words)


def _words(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [str(word) for pair in overrides.items() for word in pair]
    return list(overrides)
