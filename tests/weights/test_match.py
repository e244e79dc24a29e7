"""The matcher of tensors that every loader uses: by name and shape, without the counters of batch norms."""

import pytest
import torch

from resnet_backbone.weights.match import Match, match_names, match_tensors


def tensors(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


def test_all_kinds_at_once():
    model = tensors(a=(2, 3), b=(4,), c__num_batches_tracked=(), d=(1,))
    file = tensors(a=(3, 2), b=(4,), e__num_batches_tracked=(), f=(1,))
    match = match_tensors(model, file)
    assert match == Match(["d"], ["f"], ["a ((3, 2) in the file, (2, 3) in the model)"])
    assert not match.fits
    assert match.lines() == [
        "1 tensors of the model are not in the file: d",
        "1 tensors of the file fit nothing in the model: f",
        "1 tensors differ: a ((3, 2) in the file, (2, 3) in the model)",
    ]


@pytest.mark.parametrize("extra", ["c.num_batches_tracked", ""])
def test_counters_may_be_in_either(extra):
    model, file = tensors(a=(2,)), tensors(a=(2,))
    if extra:
        file[extra] = torch.tensor(7)
    assert match_tensors(model, file).fits and match_tensors(file, model).fits
    assert match_names(list(model), list(file)).fits


@pytest.mark.parametrize(
    ("of_model", "of_file", "fits"),
    [
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.int64, False),
        (torch.int64, torch.float16, False),
        (torch.int64, torch.uint8, True),
    ],
)
def test_kinds_of_numbers(of_model, of_file, fits):
    match = match_tensors({"a": torch.zeros(2, dtype=of_model)}, {"a": torch.zeros(2, dtype=of_file)})
    assert match.fits is fits
    assert fits or match.different == [f"a ({of_file} in the file, {of_model} in the model)"]


def test_a_model_without_values_takes_none():
    match = match_tensors({"a": torch.zeros(2, device="meta")}, {"a": torch.zeros(2)})
    assert match.different == ["a (the model is on the meta device and holds no values; write model.to_empty)"]
