"""Several processes of one run, by torchrun: started, watched, and their end told in a line."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from resnet_backbone.config.interruption import LOST_PEER, RESUME_ME, Interrupted

# How processes end that only follow another one.
_FOLLOWERS = (RESUME_ME, LOST_PEER, -signal.SIGTERM)
_GO_ON = "The last checkpoint is whole: put right what was wrong, and go on with --resume"


class ProcessError(RuntimeError):
    """A process of the run has ended before its time, and so have the others."""


def launch(words: Sequence[str]) -> None:
    """Run a script in several processes, and wait for their end. When one ends early, the others are ended, too.

    Args:
        words: of torchrun's command line.

    Raises:
        Interrupted: a signal asked for the end, and the processes have saved.
        ProcessError: one has failed or was killed; the message says which, and how.
    """
    try:
        torchrun(list(words))
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        raise Interrupted(f"ended by {name}; --resume goes on from the last checkpoint") from None
    except ChildFailedError as error:
        # torchrun ends the others after the first failure, and then counts them among the failures.
        causes = {rank: one for rank, one in error.failures.items() if one.exitcode not in _FOLLOWERS}
        if not causes and RESUME_ME in {one.exitcode for one in error.failures.values()}:
            raise Interrupted("ended by a signal; --resume goes on from the last checkpoint") from None
        raise ProcessError(_explanation(causes or error.failures)) from None


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an error is what a process gets when another one, with which it trains, has ended."""
    return isinstance(error, DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def _explanation(failures: Mapping[int, ProcessFailure]) -> str:
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    who = f"process {rank} of the run (pid {first.pid})"
    if first.exitcode >= 0:
        return f"{who} ended with status {first.exitcode}, as it says above; the others were ended. {_GO_ON}"
    name = signal.Signals(-first.exitcode).name
    why = " (mostly memory has run out; the system's log says so)" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{why}; the others were ended. {_GO_ON}"
