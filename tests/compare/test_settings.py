"""Which settings are called shared, forced by the backbone, or a caution."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resnet_backbone.compare.runs import NOT_THERE, cautions, compare_settings, read_runs
from resnet_backbone.torchvision_plugin.config import load_config


@pytest.fixture
def runs(pair):
    return read_runs(pair)


def with_settings(run, **changed):
    values = {key.replace("__", "."): value for key, value in changed.items()}
    return replace(run, settings={**run.settings, **values})


def test_only_what_the_backbone_does_not_force_is_flagged(runs):
    settings = compare_settings(runs)
    kinds = {difference.key: difference.kind for difference in settings.differences}
    assert kinds == {"SOLVER.WARMUP_ITERS": "other", "MODEL.RESNET_BACKBONE.ARCH": "backbone", "OUTPUT_DIR": "place"}
    assert settings.differences[0].key == "SOLVER.WARMUP_ITERS", "what a reader must see comes first"
    assert settings.num_equal + 3 == len(runs[0].settings)
    assert settings.shared["trained on"] == "shapes_train" and "warm-up, iterations" not in settings.shared
    assert "SOLVER.WARMUP_ITERS" in cautions(runs, settings)[0]


@pytest.mark.parametrize(
    "names",
    [
        ("frcnn_vgg16.yaml", "frcnn_r101.yaml"),
        ("paper/frcnn_vgg16.yaml", "paper/frcnn_r101.yaml"),
        ("voc/vgg16_0712.yaml", "voc/r101_0712.yaml"),
        ("bccd_r18.yaml", "bccd_r34.yaml"),
    ],
)
def test_the_projects_own_pairs_differ_in_nothing_else(runs, names):
    flat = [load_config(name, []) for name in names]
    pair = [with_settings(run, **dict(leaves(cfg))) for run, cfg in zip(runs, flat, strict=True)]
    settings = compare_settings(pair)
    assert [difference for difference in settings.differences if difference.kind == "other"] == []
    assert cautions(pair, settings) == []


def test_with_one_backbone_nothing_comes_with_it(runs):
    """The same network from other weights: what differs is what is compared, and nothing forces it."""
    changed = {"MODEL__WEIGHTS": "imagenet://resnet18/IMAGENET1K_V1", "MODEL__RESNET_BACKBONE__ARCH": "resnet18"}
    pair = [runs[0], with_settings(runs[0], **changed)]
    kinds = {difference.key: difference.kind for difference in compare_settings(pair).differences}
    assert kinds == {"MODEL.WEIGHTS": "other"}
    assert "MODEL.WEIGHTS" in cautions(pair, compare_settings(pair))[0]


def test_one_setting_and_nothing_else(runs):
    pair = [runs[0], with_settings(runs[0], TEST__DETECTIONS_PER_IMAGE=7)]
    assert cautions(pair, compare_settings(pair)) == ["The runs differ in TEST.DETECTIONS_PER_IMAGE alone."]
    pair[1] = replace(pair[1], facts=replace(pair[1].facts, device="NVIDIA H200"))
    setting, machine = cautions(pair, compare_settings(pair))
    assert "alone" not in setting and "TEST.DETECTIONS_PER_IMAGE" in setting and "another machine" in machine


def test_the_same_detector_evaluated_in_another_way(runs):
    again = with_settings(
        replace(runs[0], training=None),
        MODEL__WEIGHTS=f"{runs[0].folder}/model_final.pth",
        TEST__DETECTIONS_PER_IMAGE=7,
    )
    kinds = {difference.key: difference.kind for difference in compare_settings([runs[0], again]).differences}
    assert kinds == {"MODEL.WEIGHTS": "place", "TEST.DETECTIONS_PER_IMAGE": "other"}


def test_another_depth_of_freezing_is_flagged(runs):
    frozen = [with_settings(run, MODEL__BACKBONE__FREEZE_AT=stage) for stage, run in enumerate(runs)]
    kinds = {difference.key: difference.kind for difference in compare_settings(frozen).differences}
    assert kinds["MODEL.BACKBONE.FREEZE_AT"] == "other"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}__")
        else:
            yield prefix + key, value


def test_a_key_that_one_run_lacks_is_a_difference_of_the_same_engine(runs):
    first, second = runs
    second = with_settings(second, TEST__NEW=True)
    found = {difference.key: difference for difference in compare_settings([first, second]).differences}
    assert found["TEST.NEW"].values == (NOT_THERE, "True") and found["TEST.NEW"].kind == "other"
    second = replace(second, facts=replace(second.facts, engine="detectron2"))
    settings = compare_settings([first, second])
    assert settings.not_compared == 1 and "TEST.NEW" not in {difference.key for difference in settings.differences}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("engine", "detectron2", "another engine"),
        ("resnet_backbone", "9.9", "another version of resnet_backbone"),
        ("commit", "abc1234", "another commit"),
        ("torch", "2.6.0", "another version of torch"),
        ("torchvision", "0.21.0", "another version of torchvision"),
        ("device", "NVIDIA H200", "another machine"),
        ("processes", 8, "another number of processes"),
    ],
)
def test_other_conditions_are_cautions(runs, field, value, words):
    first, second = runs
    second = with_settings(second, SOLVER__WARMUP_ITERS=first.settings["SOLVER.WARMUP_ITERS"])
    assert cautions([first, second], compare_settings([first, second])) == []
    second = replace(second, facts=replace(second.facts, **{field: value}))
    (caution,) = cautions([first, second], compare_settings([first, second]))
    assert words in caution and str(value) in caution and second.name in caution


def test_a_run_evaluated_again_has_its_own_checkpoint_as_weights(runs):
    again = [with_settings(run, MODEL__WEIGHTS=f"{run.folder}/model_final.pth") for run in runs]
    assert "MODEL.WEIGHTS" not in {difference.key for difference in compare_settings(again).differences}
