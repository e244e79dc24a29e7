"""Published checkpoints and weight files: downloading, reading, matching with a model, packaging."""

from resnet_backbone.weights.catalog import (
    InputFormat,
    TestTransform,
    WeightsEntry,
    find_entry_by_sha256,
    get_entry,
    list_weights,
)
from resnet_backbone.weights.download import DownloadError
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.match import LoadReport, load_weights
from resnet_backbone.weights.package import package_weights
from resnet_backbone.weights.source import Weights, read_weights

__all__ = [
    "DownloadError",
    "InputFormat",
    "LoadReport",
    "TestTransform",
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
