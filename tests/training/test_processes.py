"""Processes of a run: how long they wait for each other, and what they cannot share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.distributed.elastic.utils.distributed import get_free_port

from resnet_backbone.classification.config import load_config as load_classification
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.training.processes import PATIENCE, check_processes, make_accelerator


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torchrun says to the only process of a run."""
    words = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": get_free_port()}
    for name, value in words.items():
        monkeypatch.setenv(name, str(value))
    AcceleratorState._reset_state(reset_partial_state=True)  # which an earlier test may have left
    yield
    torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_processes_wait_for_one_that_checks_or_scores_alone(group):
    make_accelerator(load_config("quickstart.yaml", ["MODEL.DEVICE", "cpu"]))
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.options._timeout == PATIENCE
    assert PATIENCE.total_seconds() > 10 * torch.distributed.constants.default_pg_nccl_timeout.total_seconds()


@pytest.mark.parametrize(
    ("load", "config", "key"),
    [
        (load_config, "quickstart.yaml", "MODEL.RESNET_BACKBONE.NORM"),
        (load_classification, "classification/cifar10_resnet20.yaml", "MODEL.NORM"),
    ],
)
def test_norms_that_need_gpus_are_refused_in_several_processes_of_the_cpu(load, config, key):
    cfg = load(config, ["MODEL.DEVICE", "cpu", key, "SyncBN", "SOLVER.IMS_PER_BATCH", "2"])
    check_processes(cfg, 1, norm=key)
    with pytest.raises(ValueError, match=f"{key} SyncBN .*write {key} BN"):
        check_processes(cfg, 2, norm=key)


@pytest.mark.parametrize(
    ("batch", "passes", "processes", "nearest"), [(4, 1, 3, "3 or 6"), (2, 1, 3, "3"), (6, 2, 2, "4 or 8")]
)
def test_a_step_that_cannot_be_shared(batch, passes, processes, nearest):
    words = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.ACCUMULATION_STEPS", str(passes)]
    with pytest.raises(ValueError, match=f"the {processes} processes .* write SOLVER.IMS_PER_BATCH {nearest}, and"):
        check_processes(load_config("quickstart.yaml", words), processes, norm="MODEL.RESNET_BACKBONE.NORM")
