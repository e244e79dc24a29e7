"""The interface through which the checks look at an engine (Detectron2 or torchvision) and the detectors it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.doctor.checkpoint import Checkpoint
from resnet_backbone.doctor.report import Section
from resnet_backbone.models.trunk import Trunk

# Keys that name a part of a detector.
NAME_KEYS = ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.NAME")


@dataclass(frozen=True)
class DetectorParts:
    """A detector that was really built, on the CPU and in eval mode, as far as it is the ImageNet classifier.

    Attributes:
        trunk: the detector's own; None where the builder is not one of this package.
        head_parts: modules of the classifier that its head is made of, by their names there: ``res5``, or ``fc6`` and
            ``fc7``.
        prepare: maps an RGB image, uint8 (3, H, W), to what the trunk gets, float (1, C, H', W'), through the
            detector's own pre-processing.
    """

    trunk: Trunk | None
    head_parts: Mapping[str, nn.Module]
    prepare: Callable[[Tensor], Tensor]


class Engine(Protocol):
    """One of the two plug-ins."""

    name: str

    def check_versions(self, section: Section) -> None:
        """Enter what the engine's own installation is, and what is wrong with it."""

    def known_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names that are registered for each of ``NAME_KEYS``."""

    def load_config(self, config_file: str, overrides: Sequence[str]) -> CfgNode:
        """Read a config as tools/train_net.py does.

        Raises:
            FileNotFoundError, ValueError: what is wrong with it.
        """

    def open_dataset(self, name: str, cfg: CfgNode, *, training: bool) -> tuple[str, ...]:
        """Open and check one data set as a run does.

        Args:
            name: in DATASETS.
            cfg: not changed.
            training: True where it is to be trained on, False where it is to be scored.

        Returns:
            The names of its classes; none where it has stuff only.

        Raises:
            FileNotFoundError, ValueError, TypeError: what a run ends with.
        """

    def resolve(self, source: str) -> str:
        """Return MODEL.WEIGHTS as ``read_weights`` takes it, fetching what the engine fetches.

        Raises:
            OSError: it cannot be fetched.
        """

    def loads_detector(self, checkpoint: Checkpoint) -> bool:
        """Return whether a run takes all of this detector, and not its trunk alone."""

    def build(
        self, cfg: CfgNode, checkpoint: Checkpoint | None, class_names: tuple[str, ...], section: Section
    ) -> DetectorParts:
        """Build the detector that ``cfg`` describes and fill it as a run does; None leaves it random.

        Args:
            cfg: not changed.
            checkpoint: what MODEL.WEIGHTS names.
            class_names: of the data; where there are none, a detector has those of the checkpoint, else NUM_CLASSES.
            section: gets findings about the filling.

        Raises:
            WeightsError: the weights do not fit.
            ValueError: parts that do not fit each other.
        """
