"""Facts about published checkpoints, and how a file becomes a state dict that is checked against a model."""

from .catalog import WeightsEntry, find_entry_by_sha256, get_entry, list_weights
from .download import DownloadError
from .errors import WeightsError
from .input_format import InputFormat
from .load import LoadReport, load_weights
from .package import package_weights
from .source import Weights, read_weights

__all__ = [
    "DownloadError",
    "InputFormat",
    "LoadReport",
    "Weights",
    "WeightsEntry",
    "WeightsError",
    "find_entry_by_sha256",
    "get_entry",
    "list_weights",
    "load_weights",
    "package_weights",
    "read_weights",
]
