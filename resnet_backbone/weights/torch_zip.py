"""Looking over the zip container of a torch file before torch does, which trusts what is written there."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

from resnet_backbone.weights.pickle_check import refuse_costly

MAGIC = b"PK\x03\x04"
_END = b"PK\x05\x06"
_END_BYTES = 22
_MAX_RECORDS = 200_000


def check_torch_zip(path: Path) -> set[str]:
    """Refuse what ``torch.save`` does not write and what could fill the memory.

    Records are stored as they are, without compression, so that all of them together fit into the file.

    Returns:
        The classes and functions that its pickles name.

    Raises:
        zipfile.BadZipFile: the container is damaged.
        pickle.UnpicklingError: it is not as ``torch.save`` writes it, or see :func:`refuse_costly`.
    """
    file_bytes = path.stat().st_size
    _check_end(path, file_bytes)
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        _check_kind([record.filename for record in records])
        if len(records) > _MAX_RECORDS:
            raise pickle.UnpicklingError(f"it has {len(records):,} records, at most {_MAX_RECORDS:,} were expected")
        for record in records:
            _check_record(record, file_bytes)
        if sum(record.file_size for record in records) > file_bytes:
            raise pickle.UnpicklingError("its records overlap: together they are larger than the file")
        # torch looks records up without regard to case.
        names = [record.filename.lower() for record in records]
        if len(set(names)) < len(names):
            raise pickle.UnpicklingError("two of its records have the same name")
        pickles = [record for record in records if record.filename.lower().endswith(".pkl")]
        return set().union(*(refuse_costly(io.BytesIO(archive.read(record))) for record in pickles))


def _check_kind(names: list[str]) -> None:
    lower = [name.lower() for name in names]
    if any(name.endswith("/constants.pkl") for name in lower):
        raise pickle.UnpicklingError(
            "it is a program of TorchScript, code and all; save the state_dict() of the network that it was made of"
        )
    if not any(name.endswith("/data.pkl") for name in lower):
        what = "arrays of numpy (.npz)" if lower and all(name.endswith(".npy") for name in lower) else names[:3]
        raise zipfile.BadZipFile(f"it is a zip file, but not of torch.save: of {what}")


def _check_end(path: Path, file_bytes: int) -> None:
    """Zip readers search for the end record, each in its own way: here it stands where all of them look first."""
    with path.open("rb") as file:
        file.seek(-min(_END_BYTES, file_bytes), os.SEEK_END)
        end = file.read()
    if not end.startswith(_END) or len(end) < _END_BYTES:
        raise zipfile.BadZipFile("the list of records at its end is missing")


def _check_record(record: zipfile.ZipInfo, file_bytes: int) -> None:
    name = record.orig_filename[:80]
    if record.orig_filename != record.filename or not record.filename.isprintable():
        raise pickle.UnpicklingError(f"the name of its record {name!r} is damaged")
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise pickle.UnpicklingError(f"its record {name!r} is compressed, which torch.save never does")
    if record.flag_bits & 1:
        raise pickle.UnpicklingError(f"its record {name!r} is encrypted")
    if record.header_offset + record.file_size > file_bytes:
        raise pickle.UnpicklingError(f"its record {name!r} is larger than the file")
