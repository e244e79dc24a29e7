"""Whether backbone, weights and input fit: what tools/doctor.py finds out. Plug-ins bring an :class:`Engine` each."""

from resnet_backbone.doctor.engine import DetectorParts, Engine
from resnet_backbone.doctor.examine import examine_checkpoint, examine_config
from resnet_backbone.doctor.report import Report, Section, report_of_missing_engine

__all__ = [
    "DetectorParts",
    "Engine",
    "Report",
    "Section",
    "examine_checkpoint",
    "examine_config",
    "report_of_missing_engine",
]
