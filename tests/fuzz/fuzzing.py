"""What the fuzzers share: a seed corpus of valid files, one input after the other in a file, and what may be raised."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import atheris

# Errors of these classes are answers. What Python raises itself, such as UnicodeDecodeError, is not among them.
OURS = {"ValueError", "ConfigError", "WeightsError", "OSError", "FileNotFoundError", "TypeError"}
RSS_LIMIT_MB = 4096
TIMEOUT_S = 20


def fuzz(name: str, read: Callable[[Path, bytes], None], seeds: Iterable[bytes], arguments: Sequence[str]) -> None:
    """Feed inputs to ``read`` until the time is over, which ends the process.

    Args:
        name: of the folder of the corpus, below ``$FUZZ_CORPUS``, by default ``.fuzz`` here.
        read: gets an empty folder in memory and the bytes; raises anything but an error of ours where it is broken.
        seeds: valid inputs.
        arguments: of libFuzzer, such as ``-max_total_time=600``.
    """
    corpus = Path(os.environ.get("FUZZ_CORPUS", ".fuzz")) / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    memory = Path("/dev/shm")  # noqa: S108  # a file system in memory: nothing waits for a disk
    parent = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    folder = Path(parent.name)

    def one(data: bytes) -> None:
        try:
            read(folder, data)
        except Exception as error:
            if type(error).__name__ not in OURS or parent.name not in str(error):
                raise
        finally:
            _empty(folder)

    limits = [f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={TIMEOUT_S}", "-max_len=20000"]
    found = f"-artifact_prefix={corpus.parent / name}-"  # of the inputs that broke it
    atheris.Setup([sys.argv[0], *limits, found, *arguments, str(corpus)], one)
    atheris.Fuzz()


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
