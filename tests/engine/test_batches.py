"""The seeds of batches, images and random numbers: the same in every version, or resumed runs draw other images."""

from resnet_backbone.engine.batches import derive_seed


def test_a_seed_depends_on_all_its_parts_and_their_order():
    assert derive_seed(0, 5, 1) == 3792522104060665918
    assert derive_seed(5, 0, 1) == 5041654777327004662
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
