"""What a feature pyramid asks of the trunk below it."""

from __future__ import annotations

from collections.abc import Sequence

from resnet_backbone.models.trunk import FeatureInfo


def pyramid_strides(feature_info: dict[str, FeatureInfo], in_features: Sequence[str]) -> list[int]:
    """Return the strides of MODEL.FPN.IN_FEATURES.

    Raises:
        ValueError: features that the trunk does not return, a last one that nothing would use, or strides that do not
            double from one to the next.
    """
    unknown = [name for name in in_features if name not in feature_info]
    if unknown or not in_features:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {list(in_features)} must be some of what the trunk returns "
            f"(MODEL.RESNET_BACKBONE.OUT_FEATURES): {list(feature_info)}"
        )
    last = next(reversed(feature_info))
    if last not in in_features:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {list(in_features)} leave {last} unused, which the trunk computes: "
            f"take it out of MODEL.RESNET_BACKBONE.OUT_FEATURES, too"
        )
    strides = [feature_info[name].stride for name in in_features]
    if any(fine * 2 != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ValueError(f"strides of MODEL.FPN.IN_FEATURES {list(in_features)} must double, got {strides}")
    return strides


def pyramid_levels(
    feature_info: dict[str, FeatureInfo], in_features: Sequence[str], out_channels: int, *, convolved_top: bool
) -> dict[str, FeatureInfo]:
    """Return the levels of a pyramid, ``p<n>`` of stride ``2 ** n``: one for each feature map, and those on top.

    Args:
        feature_info: of the trunk.
        in_features: MODEL.FPN.IN_FEATURES.
        out_channels: of every level.
        convolved_top: two levels on top, as RetinaNet has them, instead of the one of the RPN.

    Raises:
        ValueError: see :func:`pyramid_strides`.
    """
    strides = pyramid_strides(feature_info, in_features)
    strides += [strides[-1] * 2**n for n in range(1, 3 if convolved_top else 2)]
    return {f"p{stride.bit_length() - 1}": FeatureInfo(out_channels, stride) for stride in strides}
