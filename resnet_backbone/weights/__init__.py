"""Facts about published checkpoints, and how a file becomes a state dict that is checked against a model."""

from resnet_backbone.weights.catalog import WeightsEntry, find_entry_by_sha256, get_entry, list_weights
from resnet_backbone.weights.download import DownloadError
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.input_format import InputFormat, TestTransform
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
