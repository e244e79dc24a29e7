"""One run from config to figures, on any engine: check everything, then train, then evaluate."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.config.acceleration import check_compiler, check_training_precision, set_up_process
from resnet_backbone.config.checks import warn_of_suspicious
from resnet_backbone.config.merge import CONFIG, differences, read_run_config, warn_of_changes
from resnet_backbone.config.weights_input import input_of
from resnet_backbone.engine.checkpoint import Resumed, compare_data
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.engine.processes import (
    check_processes,
    check_same_settings,
    common_seed,
    from_main_process,
    is_main_process,
    make_accelerator,
    process_count,
    shared_settings,
)
from resnet_backbone.engine.records import begin_records, set_up_logging
from resnet_backbone.files.atomic import existing_folder, writing_alone
from resnet_backbone.files.checkpoints import FINAL, LAST, last_checkpoint, retire_checkpoints
from resnet_backbone.version import __version__
from resnet_backbone.weights.download import MATCHING
from resnet_backbone.weights.read import split_part

logger = logging.getLogger(__name__)


class BaseRun(ABC):
    """A run that was checked and can start: the steps that all engines take, in their order; those that differ are
    methods. Building one reads weights (into the cache, if it must) and data; it writes nothing to OUTPUT_DIR.

    Args:
        cfg: see ``load_config`` of the engine; completed in place from the weights and the data.
        resume: from the last checkpoint in OUTPUT_DIR; where there is none, start from MODEL.WEIGHTS.
        eval_only: evaluate MODEL.WEIGHTS (or, with ``resume``, the last checkpoint) and train nothing.

    Attributes:
        model: the network, with its initial weights.
        class_names: that it tells apart.
        resumed: the content of the checkpoint that is resumed from, None where there is none.
        data: of a training, what its checkpoints keep of the data: see ``compare_data``.

    Raises:
        FileNotFoundError, OSError, ValueError: what is missing or does not fit; nothing was written then.
    """

    model: nn.Module
    class_names: Sequence[str]

    def __init__(self, cfg: CfgNode, *, resume: bool = False, eval_only: bool = False) -> None:
        self.cfg = cfg
        self.eval_only = eval_only
        self.output_dir = Path(cfg.OUTPUT_DIR)
        check_output_dir(self.output_dir)
        self._join_processes()
        check_same_settings(shared_settings(cfg, resume=resume, eval_only=eval_only))
        self.keeps_config = eval_only and from_main_process(lambda: check_evaluation(cfg, resume=resume))
        self._check_config()
        self._check_data()
        self._last = self._find_checkpoint() if resume else None
        self.resumed: Any = self._last.state if self._last else None
        self._read_weights()
        if self.resumed and is_main_process():
            warn_of_changes(self.output_dir, cfg)
        self._fit_classes()
        self._set_seed()
        self.model = self._build_model()
        self.data = {} if eval_only else self._data_fingerprints()
        if not eval_only:
            compare_data(self.data, self.resumed)
            self._prepare_training()

    def start(self) -> Any:
        """Train and evaluate; return the figures of each test set, on the main process."""
        with writing_alone(self.output_dir) if is_main_process() else nullcontext():
            if self._last is not None:
                self._last.check_is_last()
            self._begin_records()
            self._set_up_process()
            return self._evaluate() if self.eval_only else self._train()

    @abstractmethod
    def _join_processes(self) -> None:
        """Find the other processes of the run, and log to the terminal, to no file yet."""

    def _check_config(self) -> None:
        """Check what ``load_config`` cannot, and warn of values that are seldom meant."""
        warn_of_suspicious(self.cfg, training=not self.eval_only)
        if not self.eval_only:
            check_processes(self.cfg, process_count(), norm="MODEL.RESNET_BACKBONE.NORM")
            check_training_precision(self.cfg)
        check_compiler(self.cfg, "MODEL.RESNET_BACKBONE.COMPILE")

    @abstractmethod
    def _check_data(self) -> None:
        """Check that the data is there, before weights are downloaded."""

    @abstractmethod
    def _find_checkpoint(self) -> Resumed:
        """Find, and read, the last checkpoint in OUTPUT_DIR."""

    @abstractmethod
    def _read_weights(self) -> None:
        """Read MODEL.WEIGHTS, unless a checkpoint is resumed, and write the input that they need into the config."""

    @abstractmethod
    def _fit_classes(self) -> None:
        """Set ``class_names``, and write their number into the config; refuse those that the weights do not fit."""

    @abstractmethod
    def _set_seed(self) -> None:
        """Seed what draws the initial weights."""

    @abstractmethod
    def _build_model(self) -> nn.Module:
        """Return the network with its initial weights, after all checks that need it."""

    @abstractmethod
    def _data_fingerprints(self) -> dict[str, Any]:
        """Return what checkpoints keep of the data."""

    def _prepare_training(self) -> None:  # noqa: B027  not where the trainer writes to OUTPUT_DIR
        """Build the trainer."""

    @abstractmethod
    def _begin_records(self) -> None:
        """Make OUTPUT_DIR, log into it, and write ``config.yaml`` unless ``keeps_config``."""

    def _set_up_process(self) -> None:
        set_up_process(self.cfg)

    @abstractmethod
    def _evaluate(self) -> Any:
        """Evaluate alone."""

    @abstractmethod
    def _train(self) -> Any:
        """Train, with evaluations."""

    def _forget_earlier_run(self) -> None:
        """Let nothing in OUTPUT_DIR be taken for a result of this run, where it is a new one."""
        if not self.resumed and is_main_process():
            retire_checkpoints(self.output_dir)


class LoopRun(BaseRun):
    """A run whose training is a :class:`~resnet_backbone.engine.loop.TrainingLoop`; ``figures`` are its last."""

    trainer: TrainingLoop
    figures: Any = None

    def _join_processes(self) -> None:
        self.accelerator = make_accelerator(self.cfg)
        set_up_logging(None)
        if not is_main_process():
            logging.getLogger("resnet_backbone").setLevel(logging.WARNING)

    def _set_seed(self) -> None:
        self.seed = common_seed(self.cfg.SEED, self.accelerator)
        torch.manual_seed(self.seed)

    def _prepare_training(self) -> None:
        self.trainer = self._make_trainer()
        if self.resumed:
            self.trainer.resume(self.resumed)
            logger.info("resumed after iteration %d of %d", self.trainer.iteration, self.cfg.SOLVER.MAX_ITER)

    @abstractmethod
    def _make_trainer(self) -> TrainingLoop:
        """Return the training, before its first step."""

    def _begin_records(self) -> None:
        if is_main_process():
            begin_records(self.cfg, self.accelerator, keeps_config=self.keeps_config)

    def _evaluate(self) -> Any:
        self.model.to(self.accelerator.device)
        self._score(over=True)
        return self.figures

    def _train(self) -> Any:
        self._forget_earlier_run()
        self.trainer.train(self._make_batches, self._score)
        return self.figures

    @property
    def _scored(self) -> nn.Module:
        """The network that evaluations score: the averaged one of a training that has one, until it is over."""
        averaged = None if self.eval_only else self.trainer.averaged
        return self.model if averaged is None else averaged.module

    @abstractmethod
    def _make_batches(self, start: int) -> Iterator[Any]:
        """Return the endless training batches of this process from number ``start`` on."""

    @abstractmethod
    def _score(self, over: bool) -> dict[str, float]:
        """Evaluate the network as it is; once training is ``over``, with all that TEST asks for.

        Sets ``figures``, and returns them by name on the main process; none where there is no test set.
        """


def detector_facts(cfg: CfgNode, class_names: Sequence[str], data: dict[str, Any]) -> dict[str, Any]:
    """Return what every checkpoint of a detector says of itself, ``data`` for ``compare_data`` included."""
    return {
        "input": input_of(cfg),
        "class_names": list(class_names),
        "arch": cfg.MODEL.RESNET_BACKBONE.ARCH,
        "version": __version__,
        "data": data,
    }


def refuse_other_classes(source: str, learned: Sequence[str], found: Sequence[str]) -> None:
    """Raise ValueError where the network of ``source`` learned other classes, or another order, than the data has."""
    for number, (theirs, ours) in enumerate(zip_longest(learned, found)):
        if theirs != ours:
            raise ValueError(
                f"{source} learned {len(learned)} classes, the data has {len(found)}, and number {number} of them is "
                f"{theirs!r} there and {ours!r} here; name the data that it was trained on"
            )


def check_output_dir(output_dir: Path) -> None:
    """Raise ValueError, or PermissionError, where a run cannot write to OUTPUT_DIR; TensorBoard needs UTF-8."""
    try:
        str(output_dir).encode()
    except UnicodeEncodeError:
        raise ValueError(f"OUTPUT_DIR {ascii(str(output_dir))} is not text in UTF-8; name another folder") from None
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"OUTPUT_DIR {output_dir} is a file; name a folder")
    place = existing_folder(output_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        why = "the disk is mounted read-only" if read_only else "this user may not write there"
        raise PermissionError(f"OUTPUT_DIR {output_dir} cannot be written to: {place}: {why}; name another OUTPUT_DIR")


def check_evaluation(cfg: CfgNode, *, resume: bool) -> bool:
    """Return whether OUTPUT_DIR of an evaluation holds the training of the network: its ``config.yaml`` must stay then.

    With ``resume``, its last checkpoint takes the place of MODEL.WEIGHTS, where there is one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing to evaluate, or OUTPUT_DIR holds another training, or the same with other settings.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only with empty DATASETS.TEST has nothing to do: name a data set")
    folder = Path(cfg.OUTPUT_DIR)
    resumed = resume and last_checkpoint(folder) is not None
    if not resumed:
        _check_weights(cfg.MODEL.WEIGHTS)
    if not any((folder / name).is_file() for name in (FINAL, LAST)):
        return False
    own = f"give this evaluation a folder of its own: OUTPUT_DIR {folder}_eval"
    refusal = f"OUTPUT_DIR {folder} holds a training; {own}"
    weights, final = Path(cfg.MODEL.WEIGHTS), folder / FINAL
    of_the_training = weights.resolve() == final.resolve() or not final.is_file()
    if not resumed and not (of_the_training and weights.parent.resolve() == folder.resolve()):
        raise ValueError(f"{refusal} (MODEL.WEIGHTS {weights} is not its {FINAL})")
    try:
        written = read_run_config(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"{refusal} (its settings cannot be read: {error})") from error
    was_evaluated = bool(written.get("DATASETS", {}).get("TEST"))
    free = ("MODEL.WEIGHTS",) if was_evaluated else ("MODEL.WEIGHTS", "DATASETS.TEST")
    others = differences(written, cfg, ("that training", "this evaluation"), but=free)
    if others:
        raise ValueError(f"{refusal} ({others[0]})")
    return True


def _check_weights(weights: str) -> None:
    """A name that is no path, such as that of published weights, is left to the engines."""
    if not weights:
        raise ValueError(
            "--eval-only needs a trained network, and MODEL.WEIGHTS is empty; add MODEL.WEIGHTS "
            "output/NAME/model_final.pth"
        )
    path, _ = split_part(weights.removesuffix(MATCHING))
    if "://" not in weights and path.suffix and not path.is_file():
        raise FileNotFoundError(f"--eval-only needs a trained network in MODEL.WEIGHTS: no file {weights}")
