"""What both engines read from a config: the trunk, the weights and the input they need, the user's own data.

The keys have Detectron2's names and meaning; ``add_backbone_keys`` adds the few that Detectron2 does not have.
"""

from resnet_backbone.config.combinations import build_trunk
from resnet_backbone.config.merge import find_config_file, merge_config
from resnet_backbone.config.reader import config_folder
from resnet_backbone.config.schema import add_backbone_keys, add_run_keys
from resnet_backbone.config.weights_input import (
    check_input,
    fit_input,
    required_by_source,
    required_input,
    warn_of_random_weights,
)

__all__ = [
    "add_backbone_keys",
    "add_run_keys",
    "build_trunk",
    "check_input",
    "config_folder",
    "find_config_file",
    "fit_input",
    "merge_config",
    "required_by_source",
    "required_input",
    "warn_of_random_weights",
]
