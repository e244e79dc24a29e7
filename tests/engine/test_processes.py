"""What several processes of a run tell each other, in two real processes that talk by gloo."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.distributed.elastic.utils.distributed import get_free_port

from resnet_backbone.classification.config import load_config as load_classification
from resnet_backbone.engine.checkpoint import compare_data, find_resumed
from resnet_backbone.engine.command_line import torchrun_arguments
from resnet_backbone.engine.processes import (
    PATIENCE,
    check_processes,
    check_same_settings,
    from_main_process,
    make_accelerator,
    mean_over_processes,
    shared_settings,
)
from resnet_backbone.files.checkpoints import checksum_of, write_checkpoint
from resnet_backbone.torchvision_plugin.config import load_config


def test_the_mean(in_two_processes):
    assert in_two_processes(lambda rank, _: mean_over_processes(torch.tensor(2.0 + 4 * rank)).item()) == [4.0, 4.0]
    assert mean_over_processes(torch.tensor(3.0)).item() == 3.0


def test_all_get_what_the_main_process_computes_or_its_error(in_two_processes):
    assert in_two_processes(lambda rank, _: from_main_process(lambda: f"of {rank}")) == ["of 0", "of 0"]

    def failing():
        raise FileNotFoundError("no checkpoint")

    assert in_two_processes(lambda rank, _: from_main_process(failing)) == ["FileNotFoundError: no checkpoint"] * 2


def test_different_commands_are_refused_by_all(in_two_processes):
    def commands(*words, resume=False):
        def compare(rank, _):
            own = ["OUTPUT_DIR", f"m{rank}", "DATALOADER.NUM_WORKERS", str(rank), *(words if rank else ())]
            cfg = load_config("quickstart.yaml", own)
            check_same_settings(shared_settings(cfg, resume=resume or rank == 0, eval_only=False))

        return in_two_processes(compare)

    assert commands(resume=True) == [None, None]
    for answer in commands():
        assert "--resume is True in process 0, False in process 1" in answer
    for answer in commands("SOLVER.BASE_LR", "0.5", resume=True):
        assert "SOLVER.BASE_LR is 0.001 in process 0, 0.5 in process 1" in answer


def test_the_main_process_decides_which_checkpoint_is_resumed_from(in_two_processes, tmp_path):
    """On the other machine another one is the last."""
    for rank, iteration in ((0, 2), (1, 4)):
        write_checkpoint(tmp_path / f"m{rank}", f"model_{iteration}.pth", {"weight": torch.full((3,), iteration)})
    write_checkpoint(tmp_path / "m1", "model_2.pth", {"weight": torch.zeros(3)})

    def resume(rank, folder):
        found = find_resumed(folder / f"m{rank}", torch.load)
        found.check_is_last()
        return found.state["weight"].tolist()

    assert in_two_processes(resume) == [[2, 2, 2]] * 2


def test_a_run_that_wrote_in_between_is_noticed(tmp_path):
    write_checkpoint(tmp_path, "model_0.pth", {"weight": torch.zeros(3)})
    found = find_resumed(tmp_path, torch.load)
    found.check_is_last()
    write_checkpoint(tmp_path, "model_0.pth", {"weight": torch.zeros(3)})  # by another run, of the same name
    with pytest.raises(OSError, match="another run has written to .* run the same command again"):
        found.check_is_last()
    empty = find_resumed(tmp_path / "none", torch.load)
    assert empty.state is None
    write_checkpoint(tmp_path / "none", "model_0.pth", {})
    with pytest.raises(OSError, match="another run has written"):
        empty.check_is_last()


def test_copies_of_a_checkpoint_have_one_checksum(tmp_path):
    one = write_checkpoint(tmp_path / "a", "model_0.pth", {"weight": torch.zeros(3)})
    copy = tmp_path / "copy.pth"
    copy.write_bytes(one.read_bytes())
    other = write_checkpoint(tmp_path / "b", "model_0.pth", {"weight": torch.ones(3)})
    assert checksum_of(one) == checksum_of(copy) != checksum_of(other)


@pytest.mark.parametrize("resumed", [None, {}, {"data": {}}])
def test_data_of_another_machine_is_refused_and_no_older_checkpoint_is(in_two_processes, resumed):
    def compare(rank, _):
        compare_data({"DATASETS.TRAIN own": {"sha256": "ab", "images": 4 + rank}}, resumed)

    for answer in in_two_processes(compare):
        assert "DATASETS.TRAIN own is {'sha256': 'ab', 'images': 4} in process 0, {'sha256': 'ab', 'im" in answer
    compare_data({"DATASETS.TRAIN own": {"sha256": "ab", "images": 4}}, resumed)


def words_of(**options) -> list[str]:
    given = {"num_gpus": 1, "num_machines": 2, "machine_rank": 1, "dist_url": "tcp://10.0.0.1:29500", **options}
    return torchrun_arguments(Namespace(**given), ["train.py", "--resume"])


def test_an_address_of_this_machine_is_for_trials(caplog):
    assert words_of()[1:5] == ["--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29500"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert "--master-addr=127.0.0.1" in words_of(dist_url="tcp://127.0.0.1:29500")
    assert "no other machine finds this one there" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dist_url": None}, "--dist-url is missing: several machines need tcp://ADDRESS:PORT"),
        ({"dist_url": "10.0.0.1:29500"}, "several machines need tcp://ADDRESS:PORT"),
        ({"dist_url": "tcp://10.0.0.1"}, "several machines need tcp://ADDRESS:PORT"),
        ({"machine_rank": 2}, "--machine-rank 2 must be from 0 to 1"),
        ({"machine_rank": -1}, "--machine-rank -1 must be from 0 to 1"),
    ],
)
def test_machines_that_cannot_meet(options, message):
    with pytest.raises(ValueError, match=message):
        words_of(**options)


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
