"""Checks of a config's values before any work: types, single values, schedules and sizes, and what is seldom meant."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode

from resnet_backbone.config.acceleration import check_precision, has_device
from resnet_backbone.config.reader import literal, shown, value_of
from resnet_backbone.config.schema import TORCHVISION_KEYS, ConfigError, Key

logger = logging.getLogger(__name__)

_MOST_RATE = 4.0  # times the usual one; training from random weights takes twice as much
_IMAGENET_RGB = (123.675, 116.28, 103.53)
_NEAR = 3.0  # between two ways to compute the mean of ImageNet
_LARGEST = 2**63
_TRUE, _FALSE = ("yes", "on", "true", "1"), ("no", "off", "false", "0")
_KINDS = {
    bool: ("True or False", "values True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number with a point", "numbers"),
    str: ("a word", "words"),
    dict: ("a section", "sections"),
}


def fit(key: Key, value: Any, *, quoted: bool = False) -> Any:
    """Return ``value`` as the key has it: a word that stands for a number or a list as that, a list as a tuple.

    Args:
        key: whose default says the type; None is for numbers.
        value: from a file or a command line.
        quoted: whether an example of a list is shown in quotation marks, for a shell.

    Raises:
        ConfigError: of another type, which says what to write.
    """
    default = key.default
    meant = literal(value) if isinstance(value, str) else value
    if isinstance(default, str) and isinstance(value, str) and meant is not None:
        return meant if isinstance(meant, str) else value
    if isinstance(default, (list, tuple)):
        if not isinstance(meant, (list, tuple)):
            example = _in_quotes(_repaired(meant, key.first_element(), default), quoted)
            raise ConfigError(f"{key.name} wants a list: {example}, not {_as_given(value)}")
        _check_elements(key, meant, key.first_element(), quoted)
        return type(default)(meant)
    is_number = default is None and (meant is None or type(meant) in (int, float))
    if is_number or (type(meant) is type(default) and not isinstance(default, str)):
        _check_number(key, meant)
        return meant
    wanted = f"wants a number or None, not {_as_given(value)}" if default is None else _wanted(value, meant, default)
    raise ConfigError(f"{key.name} {wanted}")


def _wanted(value: Any, meant: Any, default: Any) -> str:
    """Say which type a key has, with an example of what to write."""
    wants = f"wants {_KINDS[type(default)][0]}"
    if isinstance(default, bool):
        word = str(value).lower()
        hint = ": write True" if word in _TRUE else ": write False" if word in _FALSE else ""
        return f"{wants}, not {_as_given(value)}{hint}"
    example = f", such as {shown(str(default)) if isinstance(default, str) else default}"
    if meant is None:
        nothing = ": for none write ''" if isinstance(default, str) else ""
        return f"{wants}{example}, and has no value{nothing}; write one, or leave the key out"
    written = _as_written(meant, default)
    return f"{wants}{example}, not {_as_given(value)}" + (f": write {written}" if written else "")


def _as_written(meant: Any, default: Any) -> str:
    """What was probably meant; nothing where nobody knows."""
    if isinstance(default, str) and isinstance(meant, (int, float)):
        return f"it in quotation marks, '{meant}'"
    if isinstance(meant, (list, tuple)) and len(meant) == 1 and type(meant[0]) is type(default):
        return repr(meant[0])
    if isinstance(meant, tuple) and list(map(type, meant)) == [int, int]:
        return f"{meant[0]}.{meant[1]}" if isinstance(default, float) else ""
    if isinstance(meant, bool) or not isinstance(meant, (int, float)):
        return ""
    if isinstance(default, float) and abs(meant) < _LARGEST:
        return repr(float(meant))
    return repr(int(meant)) if isinstance(meant, float) and meant.is_integer() else ""


def _check_number(key: Key, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key.name} is {value}, with which nothing can be computed; write a number")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ConfigError(f"{key.name} is {shown(value)}, which is too large")


def _check_elements(key: Key, items: Any, element: Any, quoted: bool) -> None:
    """Compare the elements with an example of them, in lists of lists one by one."""
    if element is None:
        return
    for item in items:
        if isinstance(element, (list, tuple)) and isinstance(item, (list, tuple)):
            _check_elements(key, item, element[0] if len(element) else None, quoted)
        elif not _is_like(item, element):
            found = f"{shown(item)} among {shown(list(items))}" if len(items) > 1 else shown(list(items))
            example = _in_quotes(_repaired(list(items), element, [element]), quoted)
            raise ConfigError(f"{key.name} wants a list of {_kind(element)}, such as {example}, not {found}")
        _check_number(key, item)


def _is_like(item: Any, element: Any) -> bool:
    """Whether an item is of the kind of an example of it, lists down to their own elements."""
    if isinstance(element, (list, tuple)):
        return isinstance(item, (list, tuple)) and _are_like(item, element[0] if len(element) else None)
    if isinstance(element, bool) or isinstance(item, bool):
        return type(element) is type(item)
    return isinstance(item, (int, float) if isinstance(element, float) else type(element))


def _are_like(items: Any, element: Any) -> bool:
    return element is not None and len(items) > 0 and all(_is_like(item, element) for item in items)


def _kind(element: Any) -> str:
    if isinstance(element, (list, tuple)):
        return f"lists of {_kind(element[0])}" if len(element) else "lists"
    return _KINDS[type(element)][1]


def _repaired(meant: Any, element: Any, otherwise: Any) -> Any:
    """The value in as many brackets as it needs, with numbers for words; where that does not help, another example."""
    candidates = [meant, [meant], [[meant]]]
    if isinstance(meant, (list, tuple)):
        candidates.append([literal(item) if isinstance(item, str) else item for item in meant])
        candidates.append([int(item) if isinstance(item, float) and item.is_integer() else item for item in meant])
        candidates.append([str(item) for item in meant])
        candidates.append([[item] for item in meant])
    for candidate in candidates:
        if isinstance(candidate, (list, tuple)) and _are_like(candidate, element):
            return [list(item) if isinstance(item, tuple) else item for item in candidate]
    return [meant] if isinstance(meant, (str, int, float)) and element is None else (list(otherwise) or [element])


def _in_quotes(example: Any, quoted: bool) -> str:
    return f'"{example}"' if quoted else str(example)


def _as_given(value: Any) -> str:
    return value if isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable() else shown(value)


def check_values(cfg: CfgNode, keys: Mapping[str, Key], engine: str) -> None:
    """Raise ConfigError for a value that the engine cannot obey; a key that ``cfg`` lacks is of a later Detectron2."""
    for name, key in keys.items():
        try:
            value = value_of(cfg, name)
        except KeyError:
            continue
        key.check(value, engine)
    check_training(cfg)


def check_detector(cfg: CfgNode) -> None:
    """Raise ConfigError for values of a detector's config that undo each other, on every engine."""
    check_precision(cfg)
    _check_sizes(cfg)
    _check_augmentation(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and cfg.MODEL.MASK_ON:
        raise ConfigError(
            "MODEL.MASK_ON is True, and MODEL.META_ARCHITECTURE RetinaNet has no masks: write False",
            *("MODEL.MASK_ON", "MODEL.META_ARCHITECTURE"),
        )
    box = cfg.MODEL.ROI_BOX_HEAD
    if box.DROPOUT and box.NAME != "VGGBoxHead":
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.DROPOUT is {box.DROPOUT}; only NAME: VGGBoxHead has it, write 0.0",
            *("MODEL.ROI_BOX_HEAD.DROPOUT", "MODEL.ROI_BOX_HEAD.NAME"),
        )
    _check_improvements(cfg)


def check_training(cfg: CfgNode) -> None:
    """Raise ConfigError for a device that is not there, or a schedule that goes back."""
    solver = cfg.SOLVER
    if not has_device(cfg.MODEL.DEVICE):
        raise ConfigError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE}: torch has no such GPU; write MODEL.DEVICE cpu", "MODEL.DEVICE"
        )
    if solver.NESTEROV and solver.OPTIMIZER != "SGD":
        raise ConfigError(
            f"SOLVER.NESTEROV is of SGD, and SOLVER.OPTIMIZER is {solver.OPTIMIZER}; write NESTEROV: False",
            *("SOLVER.NESTEROV", "SOLVER.OPTIMIZER"),
        )
    if solver.NESTEROV and not solver.MOMENTUM:
        raise ConfigError(
            "SOLVER.NESTEROV is True, and SOLVER.MOMENTUM is 0; write NESTEROV: False, or a MOMENTUM",
            *("SOLVER.NESTEROV", "SOLVER.MOMENTUM"),
        )
    if cfg.TEST.PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise ConfigError(
            f"TEST.PATIENCE is {cfg.TEST.PATIENCE} evaluations, and TEST.EVAL_PERIOD is 0: write after how many "
            "iterations to evaluate",
            *("TEST.PATIENCE", "TEST.EVAL_PERIOD"),
        )
    rate, end = solver.BASE_LR, solver.BASE_LR_END
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and end > rate:
        raise ConfigError(
            f"SOLVER.BASE_LR_END is {end}, where the cosine ends, and SOLVER.BASE_LR {rate}, where it begins; write a "
            f"smaller BASE_LR_END, such as 0.0",
            *("SOLVER.BASE_LR_END", "SOLVER.BASE_LR"),
        )


def check_batches(cfg: CfgNode) -> None:
    """Raise ConfigError for a batch or a precision that the loop of ``engine/`` cannot train with."""
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH % solver.ACCUMULATION_STEPS:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} must be a multiple of "
            f"SOLVER.ACCUMULATION_STEPS {solver.ACCUMULATION_STEPS}",
            *("SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS"),
        )
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ConfigError(
            "float16 does not train on the CPU: write SOLVER.AMP.DTYPE bfloat16", "SOLVER.AMP.DTYPE", "MODEL.DEVICE"
        )


def _check_sizes(cfg: CfgNode) -> None:
    """Lengths in pixels: the shorter side is not longer than the longer one may be."""
    node = cfg.INPUT
    sizes = list(node.MIN_SIZE_TRAIN)
    if node.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes != sorted(sizes)):
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, and INPUT.MIN_SIZE_TRAIN_SAMPLING range draws from two, [least, most]",
            *("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
        )
    for key, least in (("TRAIN", max(sizes)), ("TEST", node.MIN_SIZE_TEST)):
        if least > node[f"MAX_SIZE_{key}"]:
            raise ConfigError(
                f"INPUT.MIN_SIZE_{key} is {sizes if key == 'TRAIN' else least}, for the shorter side, and "
                f"INPUT.MAX_SIZE_{key} {node[f'MAX_SIZE_{key}']}, for the longer one; write a MAX_SIZE_{key} of "
                f"{least} or more",
                *(f"INPUT.MIN_SIZE_{key}", f"INPUT.MAX_SIZE_{key}"),
            )


def _check_augmentation(cfg: CfgNode) -> None:
    crop, size, hue = cfg.INPUT.CROP, list(cfg.INPUT.CROP.SIZE), cfg.INPUT.COLOR_JITTER[-1]
    wanted, valid = "parts up to 1.0, such as [0.9, 0.9]", max(size) <= 1
    if crop.TYPE.startswith("absolute"):
        wanted, valid = "whole numbers of pixels, such as [384, 600]", all(isinstance(side, int) for side in size)
    if crop.ENABLED and (not valid or (crop.TYPE == "absolute_range" and size != sorted(size))):
        text = f"INPUT.CROP.SIZE is {size}, and INPUT.CROP.TYPE {crop.TYPE} wants {wanted}"
        raise ConfigError(text, "INPUT.CROP.SIZE", "INPUT.CROP.TYPE")
    if crop.ENABLED and cfg.INPUT.LARGE_SCALE_JITTER.ENABLED:
        text = "INPUT.CROP and INPUT.LARGE_SCALE_JITTER, which crops by itself, are both ENABLED; write False for one"
        raise ConfigError(text, "INPUT.CROP.ENABLED", "INPUT.LARGE_SCALE_JITTER.ENABLED")
    if hue > 0.5:
        text = f"INPUT.COLOR_JITTER ends with {hue}, the part of a turn of the hue; write 0.5 or less"
        raise ConfigError(text, "INPUT.COLOR_JITTER")


def is_improved(cfg: CfgNode) -> bool:
    """Return whether TEST asks for anything that the engine's own detector does not do."""
    return bool(cfg.TEST.BOX_REFINEMENT.ENABLED or cfg.TEST.MULTI_SCALE.ENABLED or cfg.TEST.ENSEMBLE)


def _check_improvements(cfg: CfgNode) -> None:
    """What makes use of the second stage needs one."""
    keys = ("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "TEST.BOX_REFINEMENT.ENABLED", "TEST.MULTI_SCALE.ENABLED")
    for key in (*keys, "TEST.ENSEMBLE"):
        is_on, off = value_of(cfg, key), TORCHVISION_KEYS[key].default
        if is_on and cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
            raise ConfigError(
                f"{key} is for detectors with a second stage, MODEL.META_ARCHITECTURE GeneralizedRCNN, not "
                f"{cfg.MODEL.META_ARCHITECTURE}: write {off}",
                *(key, "MODEL.META_ARCHITECTURE"),
            )
        if is_on and key.startswith("TEST.") and cfg.MODEL.MASK_ON:
            raise ConfigError(
                f"{key} improves boxes alone, and MODEL.MASK_ON is True: write {key} {off}", *(key, "MODEL.MASK_ON")
            )


def warn_of_suspicious(cfg: CfgNode, *, training: bool) -> None:
    """Log each of :func:`suspicions`, and sizes of TEST.MULTI_SCALE far from those of the config, as a warning."""
    for text in (*suspicions(cfg, training=training), *_unusual_test_sizes(cfg)):
        logger.warning("%s", text)


def suspicions(cfg: CfgNode, *, training: bool = True) -> list[str]:
    """Return a sentence for each value, or combination of values, that is probably a mistake, with what to write.

    Args:
        cfg: of a detector, checked, before the run completes it.
        training: False leaves out what an evaluation does not read.
    """
    return [*(_rate(cfg) + _schedule(cfg) if training else ()), *_pixels(cfg)]


def usual_rate(cfg: CfgNode) -> float:
    """Return the learning rate that a detector usually trains with.

    By AdamW 0.0001 from trained weights, as in mmdetection's recipes, and 0.001 from random ones, as in MODEL_ZOO.md.
    By SGD what SOLVER.IMS_PER_BATCH asks for by the linear rule (Goyal et al. 2017, 1706.02677): for 16 images
    Detectron2 has 0.02 for R-CNNs and 0.01 for RetinaNet; a network without norms bears half as much.
    """
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        return 0.0001 if cfg.MODEL.WEIGHTS else 0.001
    lower = cfg.MODEL.META_ARCHITECTURE == "RetinaNet" or cfg.MODEL.RESNET_BACKBONE.NORM == ""
    return (0.01 if lower else 0.02) * cfg.SOLVER.IMS_PER_BATCH / 16


def _rate(cfg: CfgNode) -> list[str]:
    rate, usual = cfg.SOLVER.BASE_LR, usual_rate(cfg)
    if rate <= _MOST_RATE * usual * (1 + 1e-9):
        return []
    return [
        f"SOLVER.BASE_LR {rate:g} is {rate / usual:.0f} times the usual {usual:g} for {cfg.SOLVER.OPTIMIZER} and "
        f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, and the loss may diverge; if it does, write "
        f"SOLVER.BASE_LR {usual:g}"
    ]


def _schedule(cfg: CfgNode) -> list[str]:
    solver, found = cfg.SOLVER, []
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        parts = [round(solver.MAX_ITER * part) for part in (2 / 3, 8 / 9)]
        found.append(
            f"SOLVER.STEPS {list(solver.STEPS)}: {late} never come, SOLVER.MAX_ITER is {solver.MAX_ITER}, so that the "
            f'learning rate does not fall there; write, for example, SOLVER.STEPS "{parts}"'
        )
    if solver.WARMUP_ITERS > solver.MAX_ITER:
        found.append(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is more than SOLVER.MAX_ITER {solver.MAX_ITER}: the learning "
            f"rate never reaches SOLVER.BASE_LR {solver.BASE_LR:g}; write SOLVER.WARMUP_ITERS "
            f"{max(solver.MAX_ITER // 10, 1)}"
        )
    return found


def _pixels(cfg: CfgNode) -> list[str]:
    """What weights do not say: with INPUT_FROM_WEIGHTS they replace these keys."""
    if cfg.MODEL.WEIGHTS and cfg.MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS:
        return []
    mean, std, order = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT
    found = [
        f"MODEL.{key} {values} looks like that of images from 0 to 1, and images are read from 0 to 255; write "
        f"{[round(value * 255, 3) for value in values]}"
        for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std))
        if any(values) and all(abs(value) < 1 for value in values)
    ]
    other = {"RGB": "BGR", "BGR": "RGB"}.get(order)
    crossed = _IMAGENET_RGB if order == "BGR" else _IMAGENET_RGB[::-1]
    if other and len(mean) == 3 and all(abs(a - b) < _NEAR for a, b in zip(mean, crossed, strict=True)):
        found.append(
            f"MODEL.PIXEL_MEAN {mean} is ImageNet's in the order {other}, and INPUT.FORMAT is {order}; write "
            f"INPUT.FORMAT {other}, or PIXEL_MEAN {mean[::-1]} (and PIXEL_STD likewise)"
        )
    return found


def _unusual_test_sizes(cfg: CfgNode) -> list[str]:
    """Multi-scale testing with sizes far from the one that the detector is made for."""
    sizes, usual = list(cfg.TEST.MULTI_SCALE.SIZES), cfg.INPUT.MIN_SIZE_TEST
    near = any(usual / 1.5 <= size <= 1.5 * usual for size in sizes) and max(sizes) <= 3 * usual
    if not cfg.TEST.MULTI_SCALE.ENABLED or usual < 1 or near:
        return []
    nearer = [round(usual * factor / 6) for factor in (5, 6, 7)]
    return [
        f"TEST.MULTI_SCALE.SIZES {sizes} are far from INPUT.MIN_SIZE_TEST {usual}; nearer ones: "
        f'TEST.MULTI_SCALE.SIZES "{nearer}"'
    ]
