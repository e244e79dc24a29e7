"""The shipped configs as comparisons: a pair differs in the backbone alone, and the paper's setting has its figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode

from resnet_backbone.config import config_folder, required_by_source
from resnet_backbone.config.reader import leaves, value_of
from resnet_backbone.config.weights_input import required_input
from resnet_backbone.engine.solver import build_optimizer as torchvision_optimizer
from resnet_backbone.torchvision_plugin.config import load_config as torchvision_config
from resnet_backbone.torchvision_plugin.detector import build_detector as torchvision_detector
from resnet_backbone.weights.catalog import parse_source
from resnet_backbone.weights.detectors import published_detectors

# What a backbone forces upon the detector around it, and why.
FORCED = {
    "MODEL.RESNET_BACKBONE.ARCH": "it is the backbone",
    "MODEL.RESNET_BACKBONE.NORM": "VGG-16 has no norms",
    "MODEL.RESNET_BACKBONE.OUT_FEATURES": "VGG names its stages conv1 to conv5 and pool5, a ResNet res2 to res5",
    "MODEL.FPN.IN_FEATURES": "the same names; both have the strides 4, 8, 16 and 32",
    "MODEL.RPN.IN_FEATURES": "the same names; both have the stride 16",
    "MODEL.ROI_HEADS.IN_FEATURES": "the same names; both have the stride 16",
    "MODEL.ROI_HEADS.NAME": "the layers after the crops are the network's own: res5, or fc6 and fc7",
    "MODEL.ROI_BOX_HEAD.NAME": "fc6 and fc7",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "fc6 takes 7x7 cells; res5 halves 14x14 to 7x7",
    "MODEL.ROI_BOX_HEAD.DROPOUT": "VGG-16 drops out after fc6 and fc7; a ResNet has no such layers",
    "MODEL.WEIGHTS": "of the backbone",
    "OUTPUT_DIR": "two runs, two folders",
}
BACKBONE = {"MODEL.RESNET_BACKBONE.ARCH", "OUTPUT_DIR"}
PYRAMID = BACKBONE | {
    "MODEL.RESNET_BACKBONE.NORM",
    "MODEL.RESNET_BACKBONE.OUT_FEATURES",
    "MODEL.FPN.IN_FEATURES",
}
ONE_MAP = set(FORCED) - {"MODEL.FPN.IN_FEATURES"}
PAIRS = [
    ("frcnn_vgg16.yaml", "frcnn_r101.yaml", PYRAMID | {"MODEL.WEIGHTS"}),
    ("paper/frcnn_vgg16.yaml", "paper/frcnn_r101.yaml", ONE_MAP),
    ("voc/vgg16_0712.yaml", "voc/r101_0712.yaml", ONE_MAP),
    ("voc/vgg16_0712pp.yaml", "voc/r101_0712pp.yaml", ONE_MAP),
    ("ilsvrc/vgg16.yaml", "ilsvrc/r101.yaml", ONE_MAP),
    ("bccd_r18.yaml", "bccd_r34.yaml", BACKBONE),
    ("bccd_vgg16.yaml", "bccd_r101.yaml", PYRAMID),
    ("small/vgg16_gpu.yaml", "small/resnet101_gpu.yaml", PYRAMID),
    ("small/plain34_gpu.yaml", "small/resnet34_gpu.yaml", BACKBONE),
]
DATA = {"DATASETS.TRAIN", "DATASETS.TEST", "OUTPUT_DIR"}
CONTEXT = {"MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "OUTPUT_DIR"}
PLUS_PLUS_PLUS = {
    "MODEL.WEIGHTS",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "TEST.BOX_REFINEMENT.ENABLED",
    "TEST.MULTI_SCALE.ENABLED",
}
VARIANTS = [
    ("paper/frcnn_r101.yaml", "paper/frcnn_r101_context.yaml", CONTEXT),
    ("ilsvrc/r101.yaml", "ilsvrc/r101_context.yaml", CONTEXT),
    ("paper/frcnn_vgg16.yaml", "ilsvrc/vgg16.yaml", DATA),
    ("paper/frcnn_r101.yaml", "ilsvrc/r101.yaml", DATA),
    ("bccd_r18.yaml", "bccd_r18_context.yaml", CONTEXT),
    ("voc/vgg16_0712.yaml", "voc/vgg16_0712pp.yaml", DATA),
    ("voc/r101_0712.yaml", "voc/r101_0712pp.yaml", DATA),
    ("voc/r101_0712.yaml", "voc/r101_0712_from_coco.yaml", CONTEXT | PLUS_PLUS_PLUS),
    ("voc/r101_0712_from_coco.yaml", "voc/r101_0712pp_from_coco.yaml", DATA),
    (
        "paper/frcnn_r101.yaml",
        "voc/r101_0712.yaml",
        DATA
        | {"MODEL.ANCHOR_GENERATOR.SIZES"}
        | {f"SOLVER.{key}" for key in ("IMS_PER_BATCH", "BASE_LR", "WARMUP_ITERS", "STEPS", "MAX_ITER")}
        | {"SOLVER.CHECKPOINT_PERIOD"},
    ),
]

# Sections of He et al. 2015 (arXiv 1512.03385), or of those it follows: Ren et al. 2015 (1506.01497), Lin et al. 2016
# (1612.03144), Girshick 2015 (1504.08083).
PAPER = {
    "INPUT.MIN_SIZE_TRAIN": [600],  # appendix B
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TRAIN": 1000,  # Girshick, 5.2
    "INPUT.MAX_SIZE_TEST": 1000,
    "DATASETS.TRAIN": ["coco_2014_train"],  # appendix A
    "DATASETS.TEST": ["coco_2014_val"],
    "SOLVER.IMS_PER_BATCH": 16,  # appendix A, the Fast R-CNN step
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": [240_000],
    "SOLVER.MAX_ITER": 320_000,
    "SOLVER.MOMENTUM": 0.9,  # Ren, 3.1.3
    "SOLVER.WEIGHT_DECAY": 0.0005,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "MODEL.BACKBONE.FREEZE_AT": 2,  # Ren, 3.1.3: conv3_1 and up are tuned
    "MODEL.ANCHOR_GENERATOR.SIZES": [[64, 128, 256, 512]],  # Ren, 4.2
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,  # Ren, 3.1.3
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,  # appendix A
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,  # Lin, 5.2.2
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,  # Girshick, 2.3
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,  # py-faster-rcnn's config.py and test.py, the rest of this block
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12_000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6_000,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,  # around the middle of a cell
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",  # appendix A
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,  # Girshick, 2.3
}

# mmdetection's schedule_1x, and what it found best for each of two files of weights: configs/resnet_strikes_back and
# configs/faster_rcnn.
STRONG = {
    "INPUT.MIN_SIZE_TRAIN": [800],
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.STEPS": [8 * 7330, 11 * 7330],  # of 12 epochs
    "SOLVER.MAX_ITER": 12 * 7330,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 500,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "MODEL.BACKBONE.FREEZE_AT": 2,  # frozen_stages 1: the stem does not count
}
STRONG_RATES = {"r50_a1": (0.0002, 0.05), "r101_a1": (0.0002, 0.05), "r50_v2": (0.0001, 0.1)}

PAGE = (Path(__file__).resolve().parents[1] / "configs" / "README.md").read_text(encoding="utf-8")

Load = Callable[..., CfgNode]


@pytest.fixture(params=["torchvision", "detectron2"])
def engine(request) -> str:
    if request.param == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    return request.param


@pytest.fixture
def load(engine) -> Load:
    if engine == "torchvision":
        return torchvision_config
    from resnet_backbone.detectron2_plugin.config import load_config

    def without_amp(name: str, overrides: Sequence[str] = ()) -> CfgNode:
        """Detectron2 refuses mixed precision where there is no GPU."""
        return load_config(name, [*overrides, "SOLVER.AMP.ENABLED", "False"])

    return without_amp


def differing_keys(a: CfgNode, b: CfgNode) -> set[str]:
    assert list(leaves(a)) == list(leaves(b))
    return {key for key in leaves(a) if value_of(a, key) != value_of(b, key)}


def plain(value: object) -> object:
    """Detectron2's config has tuples where the file has lists."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("first", "second", "expected"), PAIRS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pair_differs_in_the_backbone_alone(load, first, second, expected):
    assert differing_keys(load(first), load(second)) == expected
    assert expected <= set(FORCED)


@pytest.mark.parametrize(("first", "second", "expected"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_variant_differs_in_what_it_is_named_for(load, first, second, expected):
    assert differing_keys(load(first), load(second)) == expected


@pytest.mark.parametrize(("first", "second"), [pair[:2] for pair in PAIRS if "MODEL.WEIGHTS" in pair[2]])
def test_the_weights_of_a_pair_are_of_one_recipe_and_one_input(first, second):
    pair = [torchvision_config(name) for name in (first, second)]
    entries = [parse_source(cfg.MODEL.WEIGHTS) for cfg in pair]
    assert len({entry.name for entry in entries}) == 1
    assert len({entry.input_format for entry in entries}) == 1
    for cfg in pair:
        required = required_by_source(cfg.MODEL.WEIGHTS, cfg.MODEL.RESNET_BACKBONE.ARCH)
        assert {key: value_of(cfg, key) for key in required} == required


@pytest.mark.parametrize("name", ["paper/frcnn_vgg16.yaml", "paper/frcnn_r101.yaml"])
def test_the_papers_figures(load, name):
    cfg = load(name)
    assert {key: plain(value_of(cfg, key)) for key in PAPER} == PAPER
    assert math.isclose(cfg.MODEL.RPN.SMOOTH_L1_BETA, 1 / 9)  # py-faster-rcnn: sigma 3


@pytest.mark.parametrize("name", STRONG_RATES)
def test_mmdetections_figures(load, name):
    cfg = load(f"strong/{name}.yaml")
    assert {key: plain(value_of(cfg, key)) for key in STRONG} == STRONG
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == STRONG_RATES[name]


@pytest.mark.parametrize(
    ("name", "per_step", "epochs"), [("torchvision_v2", 117_266, 400), ("mask_r50_lsj", 118_000, 100)]
)
def test_from_random_weights_every_image_is_seen_as_often_as_published(load, engine, name, per_step, epochs):
    if name == "torchvision_v2" and engine != "torchvision":
        pytest.skip("for torchvision alone")
    cfg = load(f"strong/{name}.yaml")
    seen = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert seen == pytest.approx(per_step * epochs, rel=1e-3)
    assert cfg.MODEL.WEIGHTS == "" and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.INPUT.LARGE_SCALE_JITTER.ENABLED and list(cfg.INPUT.LARGE_SCALE_JITTER.SCALE) == [0.1, 2.0]
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (0.1, 0.00004)


def assert_input(cfg: CfgNode, required: dict[str, object]) -> None:
    assert len(required) == 4
    assert {key: value_of(cfg, key) for key in required} == required


@pytest.mark.parametrize("name", STRONG_RATES)
def test_the_input_is_that_of_the_weights(name):
    cfg = torchvision_config(f"strong/{name}.yaml")
    assert_input(cfg, required_by_source(cfg.MODEL.WEIGHTS, cfg.MODEL.RESNET_BACKBONE.ARCH))


def test_own_data_starts_from_a_detector_of_the_same_shape():
    cfg = torchvision_config("strong/own_data.yaml")
    (entry,) = [one for one in published_detectors() if one.url.endswith(cfg.MODEL.WEIGHTS.partition("://")[2])]
    assert entry.box_ap == 40.2
    assert_input(cfg, required_input(entry.arch, entry.input_format, entry.stride_in_1x1))
    with torch.device("meta"):
        ours, theirs = (
            {name: tensor.shape for name, tensor in torchvision_detector(_on(one, "meta")).state_dict().items()}
            for one in (cfg, torchvision_config(entry.config))
        )
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "head", "crops", "dropout"),
    [("vgg16", "VGGBoxHead", 7, 0.5), ("r101", "", 14, 0.0)],
)
@pytest.mark.parametrize("table", ["paper/frcnn_{}.yaml", "voc/{}_0712.yaml", "voc/{}_0712pp.yaml"])
def test_the_papers_heads(load, table, name, head, crops, dropout):
    cfg = load(table.format(name))
    box = cfg.MODEL.ROI_BOX_HEAD
    assert (box.NAME, box.POOLER_RESOLUTION, box.DROPOUT) == (head, crops, dropout)
    assert cfg.MODEL.ROI_HEADS.NAME == ("ImageNetRes5ROIHeads" if name == "r101" else "StandardROIHeads")
    assert cfg.MODEL.RESNET_BACKBONE.NORM == ("FrozenBN" if name == "r101" else "")


@pytest.mark.parametrize("arch", ["vgg16", "r101"])
def test_vocs_schedule_is_faster_r_cnns_by_the_linear_rule(load, arch):
    cfg = load(f"voc/{arch}_0712.yaml")
    solver = cfg.SOLVER
    # py-faster-rcnn, alternating: the RPN 60k + 20k steps of 1 image, Fast R-CNN 30k + 10k of 2, both twice.
    rpn, fast_rcnn = (2 * 60_000 * 1, 2 * 80_000 * 1), (2 * 30_000 * 2, 2 * 40_000 * 2)
    seen = tuple(steps * solver.IMS_PER_BATCH for steps in (solver.STEPS[0], solver.MAX_ITER))
    assert seen == rpn == fast_rcnn
    assert math.isclose(solver.BASE_LR / solver.IMS_PER_BATCH, 0.001 / 2)  # a step of Fast R-CNN
    assert plain(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == [[128, 256, 512]]
    assert plain(load(f"voc/{arch}_0712pp.yaml").DATASETS.TRAIN) == ["voc07_trainval", "voc07_test", "voc12_trainval"]


@pytest.mark.parametrize(
    "first", ["paper/*", "ilsvrc/*", "voc/*_0712", "voc/*_0712pp", "frcnn_*", "bccd_r18", "bccd_vgg16"]
)
def test_the_schedules_in_the_page_are_those_of_the_configs(load, first):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{first}`") and line.count("|") == 8]
    names, images, rate, steps, iterations, seen, _ = (cell.strip() for cell in row.strip("|").split("|"))
    files = [path for pattern in re.findall(r"`(.+?)`", names) for path in config_folder().glob(f"{pattern}.yaml")]
    assert len(files) > 1
    for path in files:
        solver = load(path).SOLVER
        if not path.name.startswith("Base-"):
            assert (str(solver.IMS_PER_BATCH), str(solver.BASE_LR)) == (images, rate.removesuffix(", cosine"))
            assert f"{solver.MAX_ITER:,}" == iterations and (
                not steps or steps == ", ".join(f"{s:,}" for s in solver.STEPS)
            )
            total = float(seen.replace(",", "").split()[0]) * {"M": 1e6, "k": 1e3}.get(seen.split()[-1], 1)
            assert math.isclose(solver.MAX_ITER * solver.IMS_PER_BATCH, total, rel_tol=0.01)


def test_the_page_names_every_config_that_is_compared():
    for path in config_folder().rglob("*.yaml"):
        name = path.relative_to(config_folder()).as_posix()
        if not path.name.startswith("Base-") and ("/" not in name or name.startswith(("paper/", "voc/", "ilsvrc/"))):
            patterns = {
                name,
                name.replace("/vgg16.", "/{vgg16,r101}.").replace("/r101.", "/{vgg16,r101}."),
                re.sub(r"(vgg16|r101)_(0712p?p?)\.", r"{vgg16,r101}_\2.", name),
            }
            patterns.add(
                name.replace("r101_0712_", "r101_{0712,0712pp}_").replace("r101_0712pp_", "r101_{0712,0712pp}_")
            )
            assert any(f"`{pattern}`" in PAGE for pattern in patterns), name


def test_every_run_has_a_folder_of_its_own():
    """Two configs that wrote into one folder would overwrite each other, and a comparison would compare one run."""
    bases = {path: CfgNode.load_yaml_with_base(str(path)) for path in config_folder().rglob("*.yaml")}
    runs = {path: values for path, values in bases.items() if not path.name.startswith("Base-")}
    folders = [values.get("OUTPUT_DIR") for values in runs.values()]
    assert None not in folders and len(set(folders)) == len(folders)


def test_the_detector_of_coco_fits_that_of_voc_but_for_the_classes(engine, load):
    coco, voc = load("paper/frcnn_r101_context.yaml"), load("voc/r101_0712_from_coco.yaml")
    assert voc.MODEL.WEIGHTS == f"{coco.OUTPUT_DIR}/model_final.pth"
    coco.MODEL.ROI_HEADS.NUM_CLASSES, voc.MODEL.ROI_HEADS.NUM_CLASSES = 80, 20
    if engine == "torchvision":
        build = torchvision_detector
    else:
        from resnet_backbone.detectron2_plugin.checkpoint import build_detector as build
    with torch.device("meta"):
        theirs, ours = (
            {name: tuple(tensor.shape) for name, tensor in build(_on(cfg, "meta")).state_dict().items()}
            for cfg in (coco, voc)
        )
    assert theirs.keys() == ours.keys()
    layers = {name.rsplit(".", 1)[0] for name in ours if ours[name] != theirs[name]}
    assert layers == {f"roi_heads.box_predictor.{layer}" for layer in ("cls_score", "bbox_pred")}
    assert ours["roi_heads.box_predictor.cls_score.weight"] == (21, 2 * 2048)  # a region's vector, and the image's


def _on(cfg: CfgNode, device: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = device
    return cfg


# One map and a pyramid, with each kind of trunk.
STEP = ["paper/frcnn_vgg16.yaml", "paper/frcnn_r101_context.yaml", "bccd_r18_context.yaml", "bccd_vgg16.yaml"]
STEP += ["strong/r50_a1.yaml"]
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0", "SEED", "7"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
    *("INPUT.MIN_SIZE_TRAIN", "[96]", "INPUT.MAX_SIZE_TRAIN", "128", "SOLVER.IMS_PER_BATCH", "1"),
    *("DATALOADER.NUM_WORKERS", "0", "DATASETS.TRAIN", "['shapes_train']", "DATASETS.TEST", "[]"),
    *("SOLVER.BASE_LR", "0.001", "SOLVER.WEIGHT_DECAY", "0.0", "SOLVER.WARMUP_ITERS", "0"),
]


@pytest.mark.parametrize("name", STEP)
def test_it_takes_a_step(engine, load, name, shapes: Path, load_script, monkeypatch):
    """Every weight that is trained gets a gradient, and moves."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    # Frozen norms without statistics would let random values grow from block to block.
    cfg = load(name, [*TINY, "MODEL.RESNET_BACKBONE.NORM", "" if "vgg16" in name else "BN"])
    torch.manual_seed(0)
    if engine == "torchvision":
        model = torchvision_detector(cfg).train()
        optimizer = torchvision_optimizer(cfg, model)
        losses = model(*load_script("benchmarks/gpu_check.py").batch(cfg, (1, 96, 128), torch.device("cpu")))
    else:
        model, optimizer, losses = detectron2_forward(cfg)
    assert len(losses) == 4 and all(math.isfinite(loss.item()) for loss in losses.values())
    sum(losses.values()).backward()
    before = {key: weight.clone() for key, weight in model.named_parameters() if key.endswith("weight")}
    optimizer.step()
    assert not [key for key, weight in model.named_parameters() if key in before and weight.equal(before[key])]


def detectron2_forward(cfg: CfgNode) -> tuple[torch.nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    from detectron2.data import build_detection_train_loader
    from detectron2.utils.events import EventStorage

    from resnet_backbone.detectron2_plugin.run import Run
    from resnet_backbone.detectron2_plugin.trainer import Trainer

    model = Run(cfg).model.train()
    with EventStorage():
        return model, Trainer.build_optimizer(cfg, model), model(next(iter(build_detection_train_loader(cfg))))
