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
