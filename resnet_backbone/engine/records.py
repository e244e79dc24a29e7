"""What a run leaves to read: the log, ``metrics.json``, TensorBoard, and the progress bar."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from statistics import mean, median

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from resnet_backbone.config.merge import CONFIG
from resnet_backbone.files.atomic import write_text
from resnet_backbone.files.checkpoints import remove_unfinished
from resnet_backbone.metrics.run_facts import peak_memory_mib
from resnet_backbone.version import __version__

logger = logging.getLogger(__name__)
PERIOD = 20  # iterations between two records
_MEANS = ("train_error",)  # recorded as means since the last record; all others as medians


def set_up_logging(output_dir: Path | None) -> None:
    """Log the package's messages to the terminal and, with a folder, to its ``log.txt``, too."""
    root = logging.getLogger("resnet_backbone")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if output_dir is not None:
        handlers.append(_LogFile(output_dir / "log.txt", encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s", "%m/%d %H:%M:%S"))
        root.addHandler(handler)


class _LogFile(logging.FileHandler):
    """Is given up, with one message, when its disk is full; the terminal still gets the messages."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logging.getLogger("resnet_backbone").removeHandler(self)
        logger.error("%s is not written any more: %s", self.baseFilename, error)


def begin_records(cfg: CfgNode, accelerator: Accelerator, *, keeps_config: bool) -> None:
    """Make OUTPUT_DIR, log into it what runs here, and write ``config.yaml`` unless the one that is there is kept."""
    output_dir = Path(cfg.OUTPUT_DIR)
    output_dir.mkdir(parents=True, exist_ok=True)
    set_up_logging(output_dir)
    remove_unfinished(output_dir)
    logger.info("resnet_backbone %s, torch %s", __version__, torch.__version__)
    logger.info("%d process(es), %s", accelerator.num_processes, accelerator.device)
    if keeps_config:
        logger.info("config:\n%s", cfg.dump())
    else:
        write_text(output_dir / CONFIG, cfg.dump())
        logger.info("every setting: %s", output_dir / CONFIG)


class RunWriter:
    """Records of the training run of one process; only the main process writes.

    Every :data:`PERIOD` iterations the medians since the last record go to ``metrics.json`` (a line of JSON with
    Detectron2's names: ``iteration``, ``total_loss``, ``lr``, ``time``, ``data_time``, ``eta_seconds``, ...), to
    TensorBoard and to the log.

    Args:
        output_dir: of the run.
        max_iter: of the run.
        start: how many iterations are done. Records of later ones, of a run that was killed, are taken out.
        device: whose memory is recorded.
        redone: after how many iterations the evaluation is done once more; its record is taken out, too.
    """

    def __init__(
        self, output_dir: Path, max_iter: int, start: int, device: torch.device, redone: int | None = None
    ) -> None:
        self.max_iter = max_iter
        self.device = device
        path = output_dir / "metrics.json"
        if start and path.is_file():
            truncate_records(path, start, redone)
        self._json = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(output_dir), purge_step=start if start else None)
        self._times: deque[float] = deque(maxlen=200)
        self._window: dict[str, list[float | Tensor]] = {}
        self._redirect = logging_redirect_tqdm(loggers=[logging.getLogger("resnet_backbone")])
        self._redirect.__enter__()
        # None: no bar where there is no terminal; the log says the same.
        self._bar = tqdm(total=max_iter, initial=start, disable=None, dynamic_ncols=True, unit="it")

    def step(self, iteration: int, scalars: Mapping[str, float | Tensor], seconds: float) -> None:
        """Take in iteration number ``iteration`` (from 0), which took ``seconds``.

        Tensors, of one element, are read when they are recorded: until then a GPU need not be waited for.
        """
        self._times.append(seconds)
        for name, value in {**scalars, "time": seconds}.items():
            self._window.setdefault(name, []).append(value)
        self._bar.update()
        if (iteration + 1) % PERIOD == 0 or iteration + 1 == self.max_iter:
            self._record(iteration)

    def _record(self, iteration: int) -> None:
        values = {
            name: (mean if name in _MEANS else median)(map(float, window)) for name, window in self._window.items()
        }
        values["lr"] = float(self._window["lr"][-1])
        values["eta_seconds"] = median(self._times) * (self.max_iter - iteration - 1)
        values["peak_memory_mib"] = peak_memory_mib(self.device)
        self._window.clear()
        self.scalars(iteration, values)
        losses = "  ".join(f"{name}: {value:.4g}" for name, value in values.items() if "loss" in name or name in _MEANS)
        self._bar.set_postfix_str(f"loss {values['total_loss']:.3g}, {values['peak_memory_mib']:.0f} MiB")
        logger.info(
            "eta: %s  iter: %d/%d  %s  lr: %.3g  time: %.3f s (data %.3f)  memory: %.0f MiB",
            *(timedelta(seconds=int(values["eta_seconds"])), iteration + 1, self.max_iter, losses),
            *(values[name] for name in ("lr", "time", "data_time", "peak_memory_mib")),
        )

    def scalars(self, iteration: int, values: dict[str, float]) -> None:
        """Write ``values`` of iteration number ``iteration`` to ``metrics.json`` and TensorBoard."""
        try:
            self._json.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self._json.flush()
        except OSError as error:
            raise OSError(f"writing {self._json.name} failed: {error.strerror or error}") from error
        try:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, iteration)
        except OSError as error:
            logger.warning("TensorBoard's records end here: %s", error)

    def close(self) -> None:
        """Flush and close every file, as far as the disk takes it."""
        self._bar.close()
        self._redirect.__exit__(None, None, None)
        for file in (self._json, self._tensorboard):
            try:
                file.close()
            except OSError as error:  # resuming needs nothing of these files
                logger.warning("the last records are not all written: %s", error)


def truncate_records(path: Path, start: int, redone: int | None = None) -> None:
    """Take out of ``metrics.json`` what a killed run wrote after the checkpoint that is resumed from.

    Args:
        path: of the file, a JSON object a line; within the last one the process may have been killed.
        start: how many iterations are done.
        redone: after how many iterations the evaluation is done once more.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = len(lines)
    later = math.inf
    while kept:
        try:
            record = json.loads(lines[kept - 1])
        except ValueError:
            record = None
        if isinstance(record, dict):
            iteration = record.get("iteration", start)
            is_redone = iteration + 1 == redone and "total_loss" not in record
            if iteration > later or (iteration < start and not is_redone):
                break  # more iterations than in the line after it: that is of an earlier run in this folder
            later = iteration
        kept -= 1
    if kept < len(lines):
        write_text(path, "".join(lines[:kept]))


class Stopwatch:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
