"""Configs: every shipped one loads, and every key that cannot be obeyed is refused."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from resnet_backbone.config import config_folder, find_config_file
from resnet_backbone.config.checks import warn_of_far_sizes
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


def test_defaults_are_detectron2s():
    config = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    theirs = config.get_cfg()
    ours_alone = (
        "MODEL.RESNET_BACKBONE",
        "DATASETS.OWN",
        "DATASETS.CHECK_IMAGES",
        "SOLVER.AMP.DTYPE",
        "SOLVER.ACCUMULATION_STEPS",
        "TF32",
        "KEEP_FREED_MEMORY",
    )
    ours_alone += ("MODEL.ROI_BOX_HEAD.DROPOUT", "MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT")
    ours_alone += ("TEST.BOX_REFINEMENT", "TEST.MULTI_SCALE", "TEST.ENSEMBLE")
    # These name builders and devices, for which there is no common default.
    differ = {"MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.DEVICE"}

    def compare(ours, theirs, prefix):
        for key, value in ours.items():
            path = f"{prefix}{key}"
            if path in differ or path.startswith(ours_alone):
                continue
            if isinstance(value, dict):
                compare(value, theirs[key], f"{path}.")
            else:
                same = list(value) == list(theirs[key]) if isinstance(value, list | tuple) else value == theirs[key]
                assert same, f"{path}: {value} here, {theirs[key]} there"

    compare(get_cfg(), theirs, "")


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
        (["INPUT.MASK_FORMAT", "rle"], "INPUT.MASK_FORMAT is 'rle', of which .* only 'polygon' or 'bitmask'"),
        (["MODEL.ROI_MASK_HEAD.NAME", "PointHead"], "MODEL.ROI_MASK_HEAD.NAME is 'PointHead'"),
        (["MODEL.ROI_MASK_HEAD.NORM", "GN"], "MODEL.ROI_MASK_HEAD.NORM is 'GN'"),
        (["MODEL.ROI_BOX_HEAD.DROPOUT", "1.0"], "DROPOUT is 1.0; it must be 0 or more, and below 1"),
        (["MODEL.ROI_BOX_HEAD.DROPOUT", "0.5"], "DROPOUT is 0.5; only NAME: VGGBoxHead has it"),
        (["MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"], "BBOX_REG_LOSS_TYPE is 'giou'"),
        (["MODEL.RETINANET.IOU_LABELS", "[0, 1, 1]"], r"IOU_LABELS is .0, 1, 1."),
        (["MODEL.RETINANET.IOU_THRESHOLDS", "[0.5]"], "it must have 2 values"),
        (["MODEL.RETINANET.NUM_CONVS", "2"], "NUM_CONVS is 2, of which the torchvision engine knows only 4"),
        (["MODEL.RPN.BOUNDARY_THRESH", "0"], "MODEL.RPN.BOUNDARY_THRESH is 0"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR"], "pairs KEY VALUE; got 1 words"),
        (["SOLVER.ACCUMULATION_STEPS", "3"], "must be a multiple of"),
        (["SOLVER.ACCUMULATION_STEPS", "0"], "SOLVER.ACCUMULATION_STEPS is 0; it must be 1 or more"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0; it must be 1 or more"),
        (["SOLVER.IMS_PER_BATCH", "0"], "it must be 1 or more"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "it must be 1 or more"),
        (["SOLVER.STEPS", "(80, 60)"], "must be 1 or more, and increase"),
        (["MODEL.PIXEL_STD", "[1.0]"], "MODEL.PIXEL_STD is .1.0.; it must have 3 values"),
        (["MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5, 0.6]"], "it must have 1 values"),
        (["MODEL.DEVICE", "banana"], "knows only 'cpu' or 'cuda'"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "write SOLVER.AMP.DTYPE bfloat16"),
        (["MODEL.RESNET_BACKBONE.STRICT_WEIGHTS", "False"], "STRICT_WEIGHTS is False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_obeyed_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        load_config("quickstart.yaml", overrides)


def test_unknown_keys_and_wrong_types_in_a_file_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    for text, message in [
        ("MODEL: {RPN: {NMS_TRESH: 0.7}}", "mine.yaml, line 1: .*MODEL.RPN.NMS_TRESH.* MODEL.RPN.NMS_THRESH"),
        ("SOLVER: {BASE_LR: fast}", "mine.yaml, line 1: SOLVER.BASE_LR wants a number"),
        ("MODEL: {RPN: 3}", "MODEL.RPN"),
        ("A: !!python/object/apply:os.system ['true']", "read safely"),
        ("a: [", "read safely"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config(path)


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
    assert get_cfg().MODEL.DEVICE == ("cuda" if torch.cuda.is_available() else "cpu")
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
        ("SOLVER.MAX_ITER", "many", "wants a whole number, such as 500, not many"),
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
    warn_of_far_sizes(load_config("bccd_r18.yaml", words))
    assert [record.getMessage() for record in caplog.records] == [
        f"TEST.MULTI_SCALE.SIZES {sizes} are far from INPUT.MIN_SIZE_TEST 240; nearer ones: TEST.MULTI_SCALE.SIZES "
        '"[200, 240, 280]"'
    ] * warns
