import math

import pytest
import torchvision

from resnet_backbone.weights.catalog import MSRA_BGR, TORCHVISION_RGB, VGG_FEATURES_RGB, InputFormat


@pytest.mark.parametrize("input_format", [TORCHVISION_RGB, MSRA_BGR, VGG_FEATURES_RGB])
def test_dict_round_trip(input_format):
    assert InputFormat.from_dict(input_format.to_dict()) == input_format


def test_constants_are_torchvisions_on_the_0_to_255_scale():
    for weights, ours in (
        (torchvision.models.ResNet50_Weights.IMAGENET1K_V1, TORCHVISION_RGB),
        (torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES, VGG_FEATURES_RGB),
    ):
        transforms = weights.transforms()
        assert ours.mean == pytest.approx([255 * value for value in transforms.mean])
        assert ours.std == pytest.approx([255 * value for value in transforms.std])
        assert ours.channel_order == "RGB"


def test_msra_is_detectron2s_default_and_torchvisions_mean_reversed():
    assert MSRA_BGR.mean == tuple(reversed(TORCHVISION_RGB.mean))
    assert MSRA_BGR.std == (1, 1, 1)
    assert MSRA_BGR.channel_order == "BGR"


@pytest.mark.parametrize(
    ("order", "mean", "std", "said"),
    [
        ("rgb", (1, 2, 3), (1, 1, 1), "channel_order"),
        ("RGBA", (1, 2, 3), (1, 1, 1), "channel_order"),
        ("RGB", (1, 2), (1, 1, 1), "mean"),
        ("RGB", (1, 2, 3), (1, 1, 1, 1), "std"),
        ("RGB", (1, 2, math.nan), (1, 1, 1), "mean"),
        ("RGB", (1, 2, 300), (1, 1, 1), r"0\.\.255"),
        ("RGB", (-1, 2, 3), (1, 1, 1), r"0\.\.255"),
        ("RGB", (1, 2, 3), (1, 0, 1), "greater than 0"),
        ("RGB", (1, 2, 3), (1, math.inf, 1), "std"),
        ("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "multiply both by 255"),
        ("RGB", "123", (1, 1, 1), "mean"),
        ("RGB", ("1", "2", "3"), (1, 1, 1), "mean"),
        ("RGB", (True, 2, 3), (1, 1, 1), "mean"),
        ("RGB", 5, (1, 1, 1), "mean"),
    ],
)
def test_refuses(order, mean, std, said):
    with pytest.raises(ValueError, match=said):
        InputFormat(order, mean, std)


@pytest.mark.parametrize("change", [{"extra": 1}, {"std": None}])
def test_from_dict_refuses_other_keys(change):
    values = {**TORCHVISION_RGB.to_dict(), **change}
    with pytest.raises(ValueError, match=r"keys|std"):
        InputFormat.from_dict(values)
