"""Running the commands of tools/ and datasets/: console, errors, exit status, and the arguments of those that train."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from typing import ParamSpec
from urllib.parse import SplitResult, urlsplit

logger = logging.getLogger(__name__)
_Args = ParamSpec("_Args")

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
ENGINES = ("auto", "detectron2", "torchvision")
# Exit statuses.
CLOSED_PIPE = 141  # of a command whose reader has gone, as a shell gives it: 128 + SIGPIPE
RESUME_ME = 75  # of a run that --resume continues; EX_TEMPFAIL of sysexits.h
LOST_PEER = 76  # of one of several processes, because another one has ended


class Interrupted(BaseException):
    """A signal has asked the run to end. What it has learned is saved; ``--resume`` continues.

    No ``Exception``, as KeyboardInterrupt is none: code that expects errors lets it through.
    """


class LostPeer(RuntimeError):
    """A process of several cannot continue because another one has ended."""


def run_command_line(main: Callable[[], int], *, keeps_running: bool = False) -> int:
    """Run ``main`` as a command, and return the exit status.

    Args:
        main: takes its arguments from ``sys.argv``, and returns the status.
        keeps_running: see :func:`set_up_console`.
    """
    set_up_console(keeps_running=keeps_running)
    try:
        return main()
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def reports_errors(*errors: type[Exception]) -> Callable[[Callable[_Args, int]], Callable[_Args, int]]:
    """Decorate a command's ``main`` so that it prints these errors as one line and returns 1; others are passed on."""

    def decorate(main: Callable[_Args, int]) -> Callable[_Args, int]:
        @functools.wraps(main)
        def reported(*args: _Args.args, **kwargs: _Args.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except errors as error:
                return failed(error)

        return reported

    return decorate


@contextmanager
def warnings_last() -> Iterator[None]:
    """Print what the package warns of after everything else, so that no long table pushes it off the screen."""
    package = logging.getLogger("resnet_backbone")
    held = MemoryHandler(1000, flushLevel=logging.CRITICAL, target=logging.StreamHandler())
    package.addHandler(held)
    try:
        yield
    finally:
        package.removeHandler(held)
        if sys.stdout is not None:
            sys.stdout.flush()
        held.close()


def set_up_console(*, keeps_running: bool) -> None:
    """Make standard output and error take every text, and their loss end the process in order, or not at all.

    Characters that the console's encoding lacks are written as ``\\u732b``. When the reader has gone, as in
    ``tool | head -1``, the process ends silently with the status 141.

    Args:
        keeps_running: for what trains: when nobody reads any more, or the terminal is gone, it runs without output.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Console):
            setattr(sys, name, _Console(stream, keeps_running))


class _Console(io.TextIOWrapper):
    def __init__(self, stream: io.TextIOWrapper, keeps_running: bool) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._keeps_running = keeps_running

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # what is still in the buffer goes there, too, and what children print
        os.close(nowhere)
        if not self._keeps_running:  # not with the OSError, which tools would take for one of their files
            raise SystemExit(CLOSED_PIPE if isinstance(error, BrokenPipeError) else f"error: printing failed: {error}")
        if logger.hasHandlers():  # a run has begun, and log.txt may take it
            logger.warning("nothing is printed any more (%s): the run continues", error)


def choose_engine(asked: str) -> str:
    """Return the engine to use, one of :data:`ENGINES`; ``auto`` is Detectron2 where it is installed."""
    if asked != "auto":
        return asked
    return "detectron2" if importlib.util.find_spec("detectron2") else "torchvision"


def add_run_arguments(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Add the config, the number of processes and ``KEY VALUE`` pairs to ``parser``; return the group of the config,
    to which what may stand in its place is added."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="FILE", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (default: %(default)s)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="from 0, different on each machine")
    parser.add_argument(
        "--dist-url", metavar="tcp://ADDRESS:PORT", help="of the machine of rank 0, where there are several machines"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    return what


def plain_text(error: BaseException) -> str:
    """Return what to print of an error: of one from a process that loads data its message, without its traceback."""
    text = str(error).strip()
    if not text.startswith("Caught "):
        return text
    return text.splitlines()[-1].split(": ", 1)[-1]


def failed(error: BaseException) -> int:
    """Print why a command has ended, and return its exit status.

    The status is 75 where a signal has ended a run that ``--resume`` continues, 76 where another process has ended,
    130 after a second Ctrl-C, else 1.
    """
    if isinstance(error, Interrupted):
        status, text = RESUME_ME, f"interrupted: {error}"
    elif isinstance(error, KeyboardInterrupt):
        status, text = 130, "interrupted; --resume continues from the last checkpoint"
    else:
        status, text = LOST_PEER if isinstance(error, LostPeer) else 1, f"error: {plain_text(error)}"
    sys.stderr.write(f"{text}\n")
    return status


def wants_processes(args: argparse.Namespace) -> bool:
    """Whether several processes are asked for and this is not one of them already."""
    return args.num_gpus * args.num_machines > 1 and "LOCAL_RANK" not in os.environ


def check_machines(args: argparse.Namespace) -> SplitResult:
    """Return the address where the processes of several machines meet, after a check; a warning for this machine's own.

    Raises:
        ValueError: no such address, or a rank that no machine has.
    """
    address = urlsplit(args.dist_url or "")
    if not re.fullmatch(r"tcp://[^/]+:\d{1,5}", args.dist_url or ""):
        raise ValueError(
            f"--dist-url {args.dist_url or 'is missing'}: several machines need tcp://ADDRESS:PORT of the one of rank 0"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank {args.machine_rank} must be from 0 to {args.num_machines - 1}, a different one on each of "
            f"the {args.num_machines} machines"
        )
    if address.hostname in _THIS_MACHINE:
        logger.warning(
            "--dist-url %s is an address that each machine has for itself: no other machine finds this one there. Fine "
            "for a trial on one machine",
            args.dist_url,
        )
    return address


def torchrun_arguments(args: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Return the arguments of torchrun that run ``command``, a script and its arguments, in every process.

    Raises:
        ValueError: see :func:`check_machines`.
    """
    torchrun = [f"--nproc-per-node={args.num_gpus}"]
    if args.num_machines == 1:
        torchrun.append("--standalone")
    else:
        address = check_machines(args)
        torchrun += [f"--nnodes={args.num_machines}", f"--node-rank={args.machine_rank}"]
        torchrun += [f"--master-addr={address.hostname}", f"--master-port={address.port}"]
    return [*torchrun, *command]
