"""Configs: every shipped one loads, and every key that cannot be obeyed is refused."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from resnet_backbone.config import config_folder, find_config_file
from resnet_backbone.config.checks import warn_of_suspicious
from resnet_backbone.torchvision_plugin.config import check_config, get_cfg, load_config

ALL = sorted(path.relative_to(config_folder()).as_posix() for path in config_folder().rglob("*.yaml"))
DETECTRON2_ALONE = [name for name in ALL if name.startswith(("cascade/", "panoptic/", "semantic/"))]
CONFIGS = [name for name in ALL if name not in DETECTRON2_ALONE and not name.startswith("classification/")]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_loads(name):
    cfg = load_config(name)
    assert load_config(name).dump() == cfg.dump()


@pytest.mark.parametrize("name", DETECTRON2_ALONE)
def test_a_config_for_detectron2_alone_is_refused(name):
    with pytest.raises(ValueError, match=r"MODEL\.[A-Z_]+"):
        load_config(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dumped_config_loads_to_the_same(name, tmp_path):
    cfg = load_config(name)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_config(tmp_path / "config.yaml").dump() == cfg.dump()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["SOLVER.BASE_LRR", "0.1"],
            "does not obey the key SOLVER.BASE_LRR; the nearest that it obeys is SOLVER.BASE_LR",
        ),
        (["MODEL.KEYPOINT_ON", "True"], "does not obey the key MODEL.KEYPOINT_ON"),
        (["MODEL.MASK_ON", "True", "MODEL.META_ARCHITECTURE", "RetinaNet"], "MODEL.MASK_ON is True, and .*RetinaNet"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "knows only 'GeneralizedRCNN' or 'RetinaNet'"),
        (["MODEL.ROI_BOX_HEAD.DROPOUT", "1.0"], "DROPOUT is 1.0; it must be 0 or more, and below 1"),
        (["MODEL.RETINANET.IOU_THRESHOLDS", "[0.5]"], "it must have 2 values"),
        (["SOLVER.BASE_LR"], "pairs KEY VALUE; got 1 words"),
        (["SOLVER.ACCUMULATION_STEPS", "3"], "must be a multiple of"),
        (["SOLVER.ACCUMULATION_STEPS", "0"], "SOLVER.ACCUMULATION_STEPS is 0; it must be 1 or more"),
        (["SOLVER.IMS_PER_BATCH", "0"], "it must be 1 or more"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "it must be 1 or more"),
        (["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5, 0.6]"], "it must have 1 values"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "write SOLVER.AMP.DTYPE bfloat16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_obeyed_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        load_config("quickstart.yaml", overrides)


def test_a_missing_config_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match="frcnn_r101.yaml, frcnn_vgg16.yaml"):
        find_config_file("frcnn_r1001.yaml")


def test_own_data_is_one_entry(tmp_path):
    path = tmp_path / "mine.yaml"
    own = [{"NAME": "a", "JSON": "a.json", "IMAGES": "images"}]
    base = str(find_config_file("quickstart.yaml"))
    path.write_text(yaml.safe_dump({"_BASE_": base, "DATASETS": {"OWN": own, "TRAIN": ["a"]}}))
    assert load_config(path).DATASETS.OWN == own
    assert load_config("quickstart.yaml", ["DATASETS.OWN", str(own)]).DATASETS.OWN == own


def test_the_device_is_the_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert get_cfg().MODEL.DEVICE == expected
    check_config(load_config("quickstart.yaml"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="write MODEL.DEVICE cpu"):
        load_config("quickstart.yaml", ["MODEL.DEVICE", "cuda"])


def test_a_name_in_another_folder_is_not_taken_for_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file"):
        find_config_file(str(tmp_path / "quickstart.yaml"))
    assert find_config_file("configs/quickstart.yaml").samefile(find_config_file("quickstart.yaml"))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("TEST.ENSEMBLE", "output/other", "wants a list: \"['output/other']\""),
        ("SOLVER.STEPS", "5", 'wants a list: "[5]"'),
        ("TEST.BOX_REFINEMENT.ENABLED", "yes", "wants True or False, not yes"),
        ("SOLVER.MAX_ITER", "many", "wants a whole number, such as 40000, not many"),
        ("SOLVER.BASE_LR", "1", "wants a number with a point, such as 0."),
    ],
)
def test_a_value_of_another_type_says_what_to_write(key, value, wanted):
    with pytest.raises(ValueError, match=re.escape(f"{key} {wanted}")):
        load_config("bccd_r18.yaml", [key, value])


@pytest.mark.parametrize(
    ("sizes", "warns"),
    [("[200, 240, 280]", False), ("[80, 240, 720]", False), ("[80, 240, 721]", True), ("[80]", True)],
)
def test_sizes_far_from_those_of_the_config_are_told_once(sizes, warns, caplog):
    words = ["TEST.MULTI_SCALE.ENABLED", "True", "TEST.MULTI_SCALE.SIZES", sizes, "INPUT.MIN_SIZE_TEST", "240"]
    warn_of_suspicious(load_config("bccd_r18.yaml", words), training=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"TEST.MULTI_SCALE.SIZES {sizes} are far from INPUT.MIN_SIZE_TEST 240; nearer ones: TEST.MULTI_SCALE.SIZES "
        '"[200, 240, 280]"'
    ] * warns
