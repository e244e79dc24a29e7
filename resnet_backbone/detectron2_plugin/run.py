"""One run on Detectron2 from config to scores: check everything, then train, then evaluate."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from fvcore.common.config import CfgNode
from fvcore.nn.precise_bn import get_bn_modules

from resnet_backbone.config import fit_input, required_by_source
from resnet_backbone.config.acceleration import check_compiler, check_training_precision, set_up_process
from resnet_backbone.config.checks import warn_of_suspicious
from resnet_backbone.config.merge import warn_of_changes
from resnet_backbone.config.weights_input import input_of, refuse_unknown_input, required_by
from resnet_backbone.detectron2_plugin.checkpoint import fill_detector, local_file
from resnet_backbone.detectron2_plugin.config import check_config
from resnet_backbone.detectron2_plugin.datasets import register_datasets, set_num_classes
from resnet_backbone.detectron2_plugin.evaluation import check_evaluator
from resnet_backbone.detectron2_plugin.improvements import build_improved
from resnet_backbone.detectron2_plugin.trained import build_detector
from resnet_backbone.detectron2_plugin.trainer import Trainer, evaluate_all
from resnet_backbone.engine.checkpoint import Resumed, check_resumed, compare_data, find_resumed
from resnet_backbone.engine.launch import (
    PATIENCE,
    check_processes,
    from_main_process,
    refuse_differences,
    settings_of,
)
from resnet_backbone.engine.run_folder import CONFIG, check_evaluation, check_output_dir
from resnet_backbone.engine.signals import Interrupted
from resnet_backbone.engine.writers import forget_records
from resnet_backbone.files.checkpoints import checksum_of, forget_checkpoints, last_checkpoint, remove_unfinished
from resnet_backbone.files.lock import writing_alone
from resnet_backbone.metrics.run_facts import hash_file
from resnet_backbone.version import __version__
from resnet_backbone.weights import read_weights
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.read import RawFile, read_file, read_torch_file

logger = logging.getLogger(__name__)


class Run:
    """A run that was checked and can start. Building one reads weights (into the cache, if it must) and
    annotations; it writes nothing to OUTPUT_DIR.

    Args:
        cfg: see ``load_config``; completed in place from the weights and the data.
        resume: go on from the last checkpoint in OUTPUT_DIR; where there is none, start from MODEL.WEIGHTS.
        eval_only: evaluate MODEL.WEIGHTS (or, with ``resume``, the last checkpoint) and train nothing.

    Raises:
        FileNotFoundError, OSError, ValueError: what is missing or does not fit; nothing was written then.
    """

    def __init__(self, cfg: CfgNode, *, resume: bool = False, eval_only: bool = False) -> None:
        self.cfg = cfg
        self.eval_only = eval_only
        self.output_dir = Path(cfg.OUTPUT_DIR)
        check_output_dir(self.output_dir)
        refuse_differences(settings_of(cfg, resume=resume, eval_only=eval_only))
        keeps_config = eval_only and from_main_process(lambda: check_evaluation(cfg, resume=resume))
        self.kept_config = (self.output_dir / CONFIG).read_bytes() if keeps_config and comm.is_main_process() else None
        if comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cuda":
            raise ValueError(
                f"Detectron2 trains in several processes on GPUs, one each: write MODEL.DEVICE cuda, not "
                f"{cfg.MODEL.DEVICE}, or for the CPU --engine torchvision"
            )
        _log_to_terminal()
        if not eval_only:
            _scale_to_processes(cfg)
            check_processes(cfg, comm.get_world_size(), norm="MODEL.RESNET_BACKBONE.NORM")
        check_compiler(cfg, "MODEL.RESNET_BACKBONE.COMPILE")
        warn_of_suspicious(cfg, training=not eval_only)
        self.class_names = register_datasets(cfg, training=not eval_only)
        comm.synchronize()  # for the main process, which looks at the images alone
        for name in cfg.DATASETS.TEST:
            check_evaluator(name)
        set_num_classes(cfg, len(self.class_names))

        self.found = _resumed_checkpoint(self.output_dir) if resume else None
        last = self.found.state if self.found else None
        self.resumes = last is not None
        source = str(last) if last else cfg.MODEL.WEIGHTS
        self.saved: dict[str, Any] = {}  # plain values beside the tensors of the source
        if source:
            self._fit_to_weights(source)
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
        self.model = build_detector(cfg)
        if source:
            fill_detector(self.model, source, arch=self._arch, whole=eval_only or self.resumes)
        if self.resumes and comm.is_main_process():
            warn_of_changes(self.output_dir, cfg)
        if self.resumes and not eval_only:
            self._check_resumed(source)
        self.data = {} if eval_only else _data_marks(cfg)
        compare_data(self.data, self.saved if self.resumes else None)
        if not eval_only:
            check_training_precision(cfg)
            if cfg.TEST.PRECISE_BN.ENABLED and not get_bn_modules(self.model.train()):
                raise ValueError(
                    "TEST.PRECISE_BN.ENABLED is for batch norms that train, and this detector has none "
                    f"(MODEL.RESNET_BACKBONE.NORM {cfg.MODEL.RESNET_BACKBONE.NORM!r}): write False, or NORM BN"
                )
        self.improved = build_improved(cfg, self.model, self.class_names)

    def start(self) -> dict[str, dict[str, Any]]:
        """Train and evaluate; return the figures of each test set, on the main process."""
        with writing_alone(self.output_dir) if comm.is_main_process() else nullcontext():
            return self._start()

    def _start(self) -> dict[str, dict[str, Any]]:
        if self.found:
            self.found.check_is_last()
        arguments = Namespace(eval_only=self.eval_only, resume=self.resumes)
        _log_to_terminal(self.output_dir)  # opens log.txt, which Detectron2's loggers write to as well
        default_setup(self.cfg, arguments)
        set_up_process(self.cfg)
        if self.kept_config is not None and comm.is_main_process():
            (self.output_dir / CONFIG).write_bytes(self.kept_config)  # of the training, which default_setup wrote over
        logger.info("resnet_backbone %s, torch %s", __version__, torch.__version__)
        if self.eval_only:
            return evaluate_all(self.cfg, self.model, improved=self.improved)
        facts = {
            "input": input_of(self.cfg),
            "class_names": self.class_names,
            "arch": self.cfg.MODEL.RESNET_BACKBONE.ARCH,
            "version": __version__,
            "data": self.data,
        }
        trainer = Trainer(self.cfg, self.model, facts, self.improved)
        if self.resumes:
            trainer.resume(self.saved)
        elif comm.is_main_process():
            forget_checkpoints(self.output_dir)
        records = self.output_dir / "metrics.json"
        if comm.is_main_process():
            remove_unfinished(self.output_dir)
            if trainer.start_iter and records.is_file():
                forget_records(records, trainer.start_iter)
        trainer.train()
        return trainer.figures

    def _fit_to_weights(self, source: str) -> None:
        """Fetch the weights, and take the input that they need into the config."""
        cfg = self.cfg
        file = local_file(source)
        raw = read_file(file)
        if self.resumes and "trainer" not in (*raw.metadata, *raw.metadata["left_out"]):
            raise ValueError(
                f"--resume: {source} is no checkpoint of a run on Detectron2; name another "
                f"OUTPUT_DIR, or write --engine torchvision where that engine wrote it"
            )
        self.saved = raw.metadata
        is_detector = holds_detector(raw.tensors)
        if is_detector:
            self._check_classes(source, raw)
        elif self.eval_only:
            raise ValueError(f"--eval-only needs a trained detector in MODEL.WEIGHTS, found {source!r}")
        arch = cfg.MODEL.RESNET_BACKBONE.ARCH
        required = required_by_source(source, arch) or required_by_source(file, arch)
        if not required and is_detector:
            refuse_unknown_input(cfg, source)
        elif not required:
            required = required_by(read_weights(Path(file), self._arch), cfg)
        fit_input(cfg, required, source)

    def _check_resumed(self, source: str) -> None:
        """Refuse a config that the checkpoint cannot go on with, before the folder of the run is touched."""
        cfg, then = self.cfg, self.saved.get("num_processes")
        check_resumed(cfg, done=self.saved["iteration"] + 1, seed=self.saved.get("seed"))
        if cfg.SOLVER.REFERENCE_WORLD_SIZE and then not in (None, comm.get_world_size()):
            raise ValueError(
                f"SOLVER.REFERENCE_WORLD_SIZE counts iterations by the number of processes, which was {then} in the "
                f"run so far and is {comm.get_world_size()} now: resume with {then} processes"
            )
        optimizers = (
            read_torch_file(Path(source), mapped=True)["trainer"]["_trainer"]["optimizer"],
            Trainer.build_optimizer(cfg, self.model).state_dict(),
        )
        saved, now = ([len(group["params"]) for group in one["param_groups"]] for one in optimizers)
        if saved != now:
            raise ValueError(
                f"the run to resume trained groups of {saved} parameters, this config asks for {now}; write the "
                f"MODEL.BACKBONE.FREEZE_AT, MODEL.RESNET_BACKBONE.NORM, SOLVER.WEIGHT_DECAY_BIAS "
                f"and BIAS_LR_FACTOR of its config.yaml"
            )

    @property
    def _arch(self) -> str | None:
        node = self.cfg.MODEL.RESNET_BACKBONE
        return node.ARCH if node.STRICT_WEIGHTS else None

    def _check_classes(self, source: str, raw: RawFile) -> None:
        learned = raw.metadata.get("class_names")
        if learned is None or list(learned) == self.class_names:
            return
        if self.eval_only or self.resumes:
            raise ValueError(f"{source} learned the classes {list(learned)}, the data has {self.class_names}")
        logger.warning("%s detects other classes, %s: layers of other sizes start anew", source, list(learned))


def launch_run(main: Callable[..., None], num_gpus: int, num_machines: int, rank: int, url: str, args: tuple) -> None:
    """Call ``main(*args)`` in ``num_gpus`` processes on this machine, by Detectron2's launcher.

    Raises:
        OSError: this machine has fewer GPUs.
        Interrupted: a signal asked for the end; the processes have got it, too, and have ended.
    """
    if 0 < torch.cuda.device_count() < num_gpus:
        raise OSError(f"--num-gpus {num_gpus}: torch finds {torch.cuda.device_count()} on this machine")
    try:
        launch(main, num_gpus, num_machines, rank, "auto" if num_machines == 1 else url, args, PATIENCE)
    except Interrupted:
        processes = multiprocessing.active_children()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        raise


def _scale_to_processes(cfg: CfgNode) -> None:
    """Do what SOLVER.REFERENCE_WORLD_SIZE asks for, in place, before anything is checked or written down."""
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    if scaled is not cfg:
        cfg.SOLVER, cfg.TEST = scaled.SOLVER, scaled.TEST
        check_config(cfg)


def _resumed_checkpoint(output_dir: Path) -> Resumed:
    """Find the last checkpoint, which Detectron2 reads in every process from its own OUTPUT_DIR.

    Raises:
        ValueError: a process has another one, or none, as on a machine with another disk.
    """
    found = find_resumed(output_dir, lambda path: path)
    path = found.state if comm.is_main_process() else last_checkpoint(output_dir)
    shown = "none" if path is None else f"{path.name} (checksum {checksum_of(path)})"
    refuse_differences({"the last checkpoint in OUTPUT_DIR": shown})
    return found._replace(state=path)


def _data_marks(cfg: CfgNode) -> dict[str, Any]:
    """Return what a checkpoint keeps of the data; of sets without a file of instances, nothing."""
    marks = {}
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            path = Path(getattr(MetadataCatalog.get(name), "json_file", ""))
            if path.is_file():
                num_images = getattr(MetadataCatalog.get(name), "num_images", None)
                marks[f"DATASETS.{key} {name}"] = {"sha256": hash_file(path), "images": num_images}
    return marks


def _log_to_terminal(output_dir: Path | None = None) -> None:
    """Log the package's messages as Detectron2 logs its own, with a folder to its ``log.txt``, too."""
    package = logging.getLogger("resnet_backbone")
    for handler in list(package.handlers):
        package.removeHandler(handler)
    setup_logger.cache_clear()
    setup_logger(str(output_dir) if output_dir else None, distributed_rank=comm.get_rank(), name="resnet_backbone")
    package.setLevel(logging.INFO)
    for handler in package.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stdout:
            handler.stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # not the console's encoding
