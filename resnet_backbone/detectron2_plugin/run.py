"""One run on Detectron2 from config to scores, and starting several processes for it."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Callable
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
from torch import nn

from resnet_backbone.config import fit_input
from resnet_backbone.config.merge import CONFIG
from resnet_backbone.detectron2_plugin.checkpoint import WeightsFile, build_detector, load_detector_weights, strict_arch
from resnet_backbone.detectron2_plugin.config import check_config
from resnet_backbone.detectron2_plugin.datasets import register_datasets, set_num_classes
from resnet_backbone.detectron2_plugin.evaluation import check_evaluator
from resnet_backbone.detectron2_plugin.improvements import build_improved
from resnet_backbone.detectron2_plugin.trainer import Trainer, evaluate_all
from resnet_backbone.engine.checkpoint import Resumed, check_resumed, check_same_parameters, find_resumed
from resnet_backbone.engine.command_line import Interrupted
from resnet_backbone.engine.processes import PATIENCE, check_same_settings
from resnet_backbone.engine.records import truncate_records
from resnet_backbone.engine.run import BaseRun, detector_facts, refuse_other_classes
from resnet_backbone.files.atomic import file_hash
from resnet_backbone.files.checkpoints import checksum_of, last_checkpoint, remove_unfinished
from resnet_backbone.version import __version__
from resnet_backbone.weights.read import read_torch_file

logger = logging.getLogger(__name__)


class Run(BaseRun):
    """See :class:`~resnet_backbone.engine.run.BaseRun`. It returns what ``evaluate`` does, on the main process.

    Attributes:
        resumed: the plain values in the checkpoint that is resumed from.
    """

    class_names: list[str]

    def _join_processes(self) -> None:
        _log_to(None)  # the launcher has found the other processes

    def _check_config(self) -> None:
        if comm.get_world_size() > 1 and self.cfg.MODEL.DEVICE != "cuda":
            raise ValueError(
                f"Detectron2 trains in several processes on GPUs, one each: write MODEL.DEVICE cuda, not "
                f"{self.cfg.MODEL.DEVICE}, or for the CPU --engine torchvision"
            )
        if not self.eval_only:
            _scale_to_processes(self.cfg)
        super()._check_config()

    def _check_data(self) -> None:
        self.class_names = register_datasets(self.cfg, training=not self.eval_only)
        comm.synchronize()  # for the main process, which looks at the images alone
        for name in self.cfg.DATASETS.TEST:
            check_evaluator(name)
        set_num_classes(self.cfg, len(self.class_names))

    def _find_checkpoint(self) -> Resumed:
        return find_resumed_in_all_processes(self.output_dir)

    def _read_weights(self) -> None:
        """Read the file once; it is kept until the detector is filled."""
        source = str(self.resumed or self.cfg.MODEL.WEIGHTS)
        self._weights = file = WeightsFile(source, strict_arch(self.cfg)) if source else None
        if file is None:
            return
        beside = file.raw.metadata
        if self.resumed and "trainer" not in (*beside, *beside["left_out"]):
            raise ValueError(
                f"--resume: {source} is no checkpoint of a run on Detectron2; name another "
                f"OUTPUT_DIR, or write --engine torchvision where that engine wrote it"
            )
        if self.eval_only and not file.is_detector:
            raise ValueError(f"--eval-only needs a trained detector in MODEL.WEIGHTS, found {source!r}")
        fit_input(self.cfg, file.required_input(self.cfg), source)
        self.resumed = beside if self.resumed else None

    def _fit_classes(self) -> None:
        file = self._weights
        learned = file.raw.metadata.get("class_names") if file and file.is_detector else None
        if file is None or learned is None or list(learned) == self.class_names:
            return
        if self.eval_only or self.resumed:
            refuse_other_classes(file.source, learned, self.class_names)
        logger.warning("%s detects other classes, %s: layers of other sizes start from scratch", file.source, learned)

    def _set_seed(self) -> None:
        seed_all_rng(None if self.cfg.SEED < 0 else self.cfg.SEED)

    def _build_model(self) -> nn.Module:
        cfg = self.cfg
        model = build_detector(cfg)
        if self._weights is not None:
            load_detector_weights(model, self._weights, complete=self.eval_only or bool(self.resumed))
        if self._weights is not None and self.resumed and not self.eval_only:
            self._check_resumed(model, self._weights.path)
        self._weights = None  # the memory
        if not self.eval_only and cfg.TEST.PRECISE_BN.ENABLED and not get_bn_modules(model.train()):
            raise ValueError(
                "TEST.PRECISE_BN.ENABLED is for batch norms that train, and this detector has none "
                f"(MODEL.RESNET_BACKBONE.NORM {cfg.MODEL.RESNET_BACKBONE.NORM!r}): write False, or NORM BN"
            )
        self._improved = build_improved(cfg, model, self.class_names)
        return model

    def _check_resumed(self, model: nn.Module, path: Path) -> None:
        """Refuse a config that the checkpoint cannot be resumed with, before the folder of the run is touched."""
        cfg, then = self.cfg, self.resumed.get("num_processes")
        check_resumed(cfg, done=self.resumed["iteration"] + 1, seed=self.resumed.get("seed"))
        if cfg.SOLVER.REFERENCE_WORLD_SIZE and then not in (None, comm.get_world_size()):
            raise ValueError(
                f"SOLVER.REFERENCE_WORLD_SIZE counts iterations by the number of processes, which was {then} in the "
                f"run so far and is {comm.get_world_size()} now: resume with {then} processes"
            )
        saved = read_torch_file(path, mapped=True)["trainer"]["_trainer"]["optimizer"]
        check_same_parameters(saved, Trainer.build_optimizer(cfg, model).state_dict())

    def _data_fingerprints(self) -> dict[str, Any]:
        """Sets without a file of instances have none."""
        found = {}
        for key in ("TRAIN", "TEST"):
            for name in self.cfg.DATASETS[key]:
                path = Path(getattr(MetadataCatalog.get(name), "json_file", ""))
                if path.is_file():
                    num_images = getattr(MetadataCatalog.get(name), "num_images", None)
                    found[f"DATASETS.{key} {name}"] = {"sha256": file_hash(path, "sha256"), "images": num_images}
        return found

    def _begin_records(self) -> None:
        config = self.output_dir / CONFIG
        kept = config.read_bytes() if self.keeps_config and comm.is_main_process() else None
        _log_to(self.output_dir)  # opens log.txt, which Detectron2's loggers write to as well
        default_setup(self.cfg, Namespace(eval_only=self.eval_only, resume=bool(self.resumed)))
        if kept is not None:
            config.write_bytes(kept)  # of the training, which default_setup wrote over
        if comm.is_main_process():
            remove_unfinished(self.output_dir)
        logger.info("resnet_backbone %s, torch %s", __version__, torch.__version__)

    def _evaluate(self) -> dict[str, dict[str, Any]]:
        return evaluate_all(self.cfg, self.model, improved=self._improved)

    def _train(self) -> dict[str, dict[str, Any]]:
        records = self.output_dir / "metrics.json"
        if self.resumed and comm.is_main_process() and records.is_file():
            truncate_records(records, self.resumed["iteration"] + 1)  # before the trainer opens the file
        facts = detector_facts(self.cfg, self.class_names, self.data)
        trainer = Trainer(self.cfg, self.model, facts, self._improved)
        if self.resumed:
            trainer.resume(self.resumed)
        self._forget_earlier_run()
        trainer.train()
        return trainer.figures


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


def find_resumed_in_all_processes(output_dir: Path) -> Resumed:
    """Return, in ``state``, the path of the last checkpoint, which every process reads from its own OUTPUT_DIR.

    Raises ValueError where a process has another one, or none, as on a machine with another disk.
    """
    found = find_resumed(output_dir, lambda path: path)
    path = found.state if comm.is_main_process() else last_checkpoint(output_dir)
    shown = "none" if path is None else f"{path.name} (checksum {checksum_of(path)})"
    check_same_settings({"the last checkpoint in OUTPUT_DIR": shown})
    return found._replace(state=path)


def _log_to(output_dir: Path | None) -> None:
    """Log the package's messages to the terminal as Detectron2 logs its own; with a folder to its ``log.txt``, too."""
    package = logging.getLogger("resnet_backbone")
    for handler in list(package.handlers):
        package.removeHandler(handler)
    setup_logger.cache_clear()
    setup_logger(str(output_dir) if output_dir else None, distributed_rank=comm.get_rank(), name="resnet_backbone")
    package.setLevel(logging.INFO)
    for handler in package.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stdout:
            handler.stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # not the console's encoding
