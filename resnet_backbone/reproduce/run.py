"""Running the commands of a table's jobs, one after another or several at a time, and ending them."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import TextIO

from resnet_backbone.files.checkpoints import LAST
from resnet_backbone.reproduce.jobs import FINISHED, OTHER, Job, Jobs, read_state
from resnet_backbone.reproduce.plan import missing_data

logger = logging.getLogger(__name__)

CONSOLE = "console.log"  # in the folder of a run: all that its commands printed
_SECONDS_TO_END = 60


class CommandFailed(Exception):
    """A command ended with a status other than 0."""


def run_jobs(
    jobs: Jobs | Sequence[Job], tools: str, terminal: TextIO, *, keep_going: bool, parallel: int = 1
) -> list[str]:
    """Run what is not finished, resume what was started; return a message for each that failed.

    Args:
        jobs: of a table, or some of them together with those that they need.
        tools: path of the folder of the tools.
        terminal: gets all that the commands print.
        keep_going: run the other commands after one that failed.
        parallel: how many commands run at a time, each on its share of the cores; one that needs the network of another
            waits for it. With 1, a command has all cores.

    Raises:
        ValueError: a folder holds a run with other settings; nothing was run then.
        FileNotFoundError: data is not there; nothing was run then.
        CommandFailed: a command failed, without ``keep_going``; those that were running have been ended.
        KeyboardInterrupt: passed on when the commands that were running have ended.
    """
    for job in jobs:
        state = read_state(job)
        if state.status == OTHER:
            raise ValueError(
                f"{job.folder} holds a run with other settings ({state.detail}): give another --output, the options of "
                f"that run, or move the folder away"
            )
    if missing := missing_data(job for job in jobs if read_state(job).status != FINISHED):
        names = ", ".join(name for name, _ in missing)
        commands = "; ".join(dict.fromkeys(command or "(your own data: DATASETS.OWN)" for _, command in missing))
        raise FileNotFoundError(f"data that is not there: {names}. Get it with: {commands}, or add --prepare")
    running = Commands(terminal, os.cpu_count() or 1, parallel)
    futures: dict[str, Future[None]] = {}
    failed: list[str] = []

    def run_one(job: Job) -> None:
        wait([futures[name] for name in job.needs])
        if read_state(job).status == FINISHED:
            logger.info("%s is finished", job.folder)
            return
        arguments = job.command(tools, resume=not job.eval_only and (job.folder / LAST).is_file())
        try:
            running.run(arguments, job.folder, job.name)
        except CommandFailed as error:
            if not running.ended:
                failed.append(str(error))
                if not keep_going:
                    running.end()

    with ThreadPoolExecutor(parallel) as pool:
        for job in _in_order(jobs, parallel):
            futures[job.name] = pool.submit(run_one, job)
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.end()
            raise
    if failed and not keep_going:
        raise CommandFailed(failed[0])
    return failed


def _in_order(jobs: Iterable[Job], parallel: int) -> list[Job]:
    """What others need comes before them; in parallel, all that needs nothing comes first, so that few have to wait."""
    depths: dict[str, int] = {}
    for job in jobs:
        depths[job.name] = max((1 + depths[name] for name in job.needs), default=0)
    return sorted(jobs, key=lambda job: depths[job.name] if parallel > 1 else 0)


def run_command(arguments: Sequence[str], terminal: TextIO) -> None:
    """Run ``python ARGUMENTS``; what it prints goes to ``terminal``. Otherwise as :meth:`Commands.run`."""
    Commands(terminal).run(arguments)


class Commands:
    """Runs commands, of which several may run at a time, each called by a thread of its own.

    Args:
        terminal: gets what they print; of several at a time, each line begins with the name of its job.
        cores: of this machine; several commands share them.
        parallel: how many run at a time; one alone has the threads that it would have without us.
    """

    def __init__(self, terminal: TextIO, cores: int = 1, parallel: int = 1) -> None:
        self.ended = False
        self._terminal = terminal
        self._parallel = parallel
        self._environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # whatever that of the terminal is
        if parallel > 1:
            self._environment["OMP_NUM_THREADS"] = str(max(1, cores // parallel))
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, arguments: Sequence[str], folder: Path | None = None, name: str = "") -> None:
        """Run ``python ARGUMENTS``; what it prints goes into ``folder``, too, once that is there.

        An interruption is handed to the command and all its processes, which end before this returns.

        Raises:
            CommandFailed: the status is not 0, or all commands were ended.
        """
        printed = shlex.join(["python", *arguments])
        with self._lock:
            if self.ended:
                raise CommandFailed(f"not run, as others were ended: {printed}")
            logger.info("running: %s", printed)
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=self._environment,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            _copy_output(process, printed, self._terminal, folder, f"{name}: " if self._parallel > 1 else "")
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            self._running.discard(process)
        if status:
            raise CommandFailed(f"exit status {status} of: {printed}")

    def end(self) -> None:
        """End all that are running; no other is started."""
        with self._lock:
            self.ended = True
            running = list(self._running)
        for process in running:
            _end(process)


def _copy_output(
    process: subprocess.Popen[str], printed: str, terminal: TextIO, folder: Path | None, prefix: str
) -> None:
    waiting = [f"$ {printed}\n"]
    log: TextIO | None = None
    try:
        for line in process.stdout or ():
            terminal.write(prefix + line)
            terminal.flush()
            waiting.append(line)
            if log is None and folder is not None and folder.is_dir():
                log = (folder / CONSOLE).open("a", encoding="utf-8")
            if log is not None:
                log.writelines(waiting)
                log.flush()
                waiting.clear()
    finally:
        if log is not None:
            log.close()


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and the processes it started: by the signal of Ctrl-C, then by force; on Windows at once."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        logger.info("ending process %d (%s)", process.pid, signal.Signals(number).name)
        try:
            os.killpg(process.pid, number)
            process.wait(_SECONDS_TO_END)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue  # to the stronger signal
