"""Batches: every image once an epoch, shared out, grouped, and the same again when a run goes on."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from resnet_backbone.engine.batches import BatchSampler, SeededDataset, reorder_channels
from resnet_backbone.torchvision_plugin.datasets import build_train_loader, open_train_set

RATIOS = np.array([0.5, 0.7, 1.5, 2.0, 1.2, 0.9, 1.1, 0.8, 3.0, 1.4, 0.6, 1.0])


def take(number: int, **options) -> list[list[tuple[int, int]]]:
    options = {"batch_size": 2, "group": False, "seed": 0, **options}
    return list(islice(BatchSampler(RATIOS, options.pop("batch_size"), **options), number))


def test_every_epoch_is_a_permutation_of_all_images():
    indices = [index for batch in take(18) for _, index in batch]
    epochs = [indices[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_processes_share_the_draws_without_overlap():
    parts = [take(9, rank=rank, world_size=2) for rank in (0, 1)]
    positions = sorted(position for part in parts for batch in part for position, _ in batch)
    assert positions == list(range(36))
    one = {draw for batch in take(18) for draw in batch}
    assert one == {draw for part in parts for batch in part for draw in batch}


def test_groups_do_not_mix_orientations_and_lose_no_image():
    batches = take(60, group=True)
    assert all(len({RATIOS[index] > 1 for _, index in batch}) == 1 for batch in batches)
    assert np.ptp(np.bincount([index for batch in batches for _, index in batch])) <= 2


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("start", [0, 1, 7, 25])
def test_starting_later_gives_the_same_batches(group, start):
    assert take(10, group=group, start=start) == take(10 + start, group=group)[start:]


def test_another_seed_is_another_order():
    assert take(6) != take(6, seed=1)


CROP = ("INPUT.CROP.ENABLED", "True")
JITTER = ("INPUT.LARGE_SCALE_JITTER.ENABLED", "True", "INPUT.LARGE_SCALE_JITTER.SIZE", "96")


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("augmentation", [(), (*CROP, "INPUT.COLOR_JITTER", "[0.5, 0.5, 0.5, 0.1]"), JITTER])
def test_a_batch_depends_on_seed_and_number_alone(tiny, workers, augmentation):
    """Not on where the run started, nor on the global random state."""
    cfg = tiny("quickstart.yaml", "DATALOADER.NUM_WORKERS", workers, *augmentation)
    data = open_train_set(cfg)

    def batches(start: int, number: int) -> list:
        torch.manual_seed(start)  # must not matter
        loader = build_train_loader(cfg, data.dataset, data.sizes, seed=3, rank=0, world_size=1, start=start)
        return list(islice(loader, number))

    whole, later = batches(0, 5), batches(3, 2)
    for (images, targets), (images_again, targets_again) in zip(whole[3:], later, strict=True):
        assert [t["image_id"] for t in targets] == [t["image_id"] for t in targets_again]
        for a, b in zip(images, images_again, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(targets, targets_again, strict=True):
            assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])


def test_reading_a_sample_leaves_the_global_random_state(tiny):
    data = open_train_set(tiny("quickstart.yaml"))
    state = torch.random.get_rng_state()
    SeededDataset(data.dataset, 0, "RGB")[(5, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_that_cannot_be_shared_out_are_refused(tiny):
    cfg = tiny("quickstart.yaml", "SOLVER.IMS_PER_BATCH", "4")
    data = open_train_set(cfg)
    with pytest.raises(ValueError, match="must be a multiple of the 3 processes"):
        build_train_loader(cfg, data.dataset, data.sizes, seed=0, rank=0, world_size=3, start=0)


@pytest.mark.parametrize("size", [(2, 2), (1, 7), (5, 1), (33, 20)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_channel_order(size, interleaved):
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8).permute(2, 0, 1)
    image = pixels if interleaved else pixels.contiguous()
    assert torch.equal(reorder_channels(image, "RGB"), image)
    swapped = reorder_channels(image, "BGR")
    assert torch.equal(swapped, image[[2, 1, 0]])
    assert swapped.permute(1, 2, 0).is_contiguous() == image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
@pytest.mark.parametrize("augmentation", [(), CROP, JITTER])
def test_images_reach_the_training_as_decoders_write_them(tiny, channel_order, augmentation):
    """Nothing in between copies them into another layout."""
    cfg = tiny("quickstart.yaml", "DATALOADER.NUM_WORKERS", "1", "INPUT.FORMAT", channel_order, *augmentation)
    data = open_train_set(cfg)
    loader = build_train_loader(cfg, data.dataset, data.sizes, seed=3, rank=0, world_size=1, start=0)
    images, _ = next(iter(loader))
    assert all(image.dtype == torch.uint8 and image.permute(1, 2, 0).is_contiguous() for image in images)
