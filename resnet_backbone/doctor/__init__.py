"""Whether backbone, weights and input fit: what tools/doctor.py finds out. Each engine brings an :class:`Engine`."""

from resnet_backbone.doctor.examine import examine_checkpoint, examine_config
from resnet_backbone.doctor.report import DetectorParts, Engine, Report, Section, report_of_missing_engine

__all__ = [
    "DetectorParts",
    "Engine",
    "Report",
    "Section",
    "examine_checkpoint",
    "examine_config",
    "report_of_missing_engine",
]
