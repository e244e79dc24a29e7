"""Projects of Detectron2's own folder train with our backbones: their scripts and configs, and what examples/ adds.

Each runs in a process of its own, as its page says: two lines in its script, a config of ours beside its own.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from resnet_backbone import create_model
from resnet_backbone.weights.catalog import MSRA_BGR, TORCHVISION_RGB, InputFormat
from resnet_backbone.weights.package import package_weights

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_backbone  # noqa: E402

from resnet_backbone.detectron2_plugin import add_resnet_backbone_config  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DATA_SCRIPT = "tests/detectron2_plugin/project_data.py"
IMPORT = "from resnet_backbone.detectron2_plugin import add_resnet_backbone_config\n"
CALL = "add_resnet_backbone_config(cfg)\n"
# No weight decay: a parameter changes where it has a gradient, and only there.
TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "SOLVER.WEIGHT_DECAY", "0.0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001"),
    *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", "192"),
    *("INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "192", "TEST.DETECTIONS_PER_IMAGE", "3"),
]
RCNN = [
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "-1.0"),
]
STUFF = [
    *("DATASETS.TRAIN", "('coco_2017_train_panoptic_stuffonly',)"),
    *("DATASETS.TEST", "('coco_2017_val_panoptic_stuffonly',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54"),
]
# DeepLab evaluates images of multiples of the crop only; those of project_data.py are 640x480.
CROP = ["INPUT.CROP.SIZE", "(64, 64)", "INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", "256"]
LAZY = [
    *("train.device=cpu", "train.max_iter=2", "optimizer.weight_decay=0", "optimizer.lr=1.0"),  # 0.001 after warm-up
    *("dataloader.train.num_workers=0", "dataloader.train.total_batch_size=2", "dataloader.test.num_workers=0"),
    "dataloader.train.mapper.augmentations.0.short_edge_length=[128]",
    *(f"dataloader.{split}.mapper.augmentations.0.max_size=192" for split in ("train", "test")),
    "dataloader.test.mapper.augmentations.0.short_edge_length=128",
    *("model.roi_heads.batch_size_per_image=16", "model.roi_heads.box_predictor.test_score_thresh=-1.0"),
    "model.roi_heads.box_predictor.test_topk_per_image=3",
]
LOAD_CONFIGS = """
import sys
from detectron2.config import LazyConfig

for name in sys.argv[1:]:
    try:
        LazyConfig.load(name)
    except AttributeError as error:
        print(f"{name}: {error}")
"""
COUNT_INSTANCES = """
import sys, torch

for image in torch.load(sys.argv[1], weights_only=False):
    print("instances:", len(image["pred_densepose"]))
"""
COCO_RESULTS = "coco_instances_results.json"
SEMANTIC_RESULTS = "sem_seg_predictions.json"


@dataclass(frozen=True)
class Case:
    """A config of ours, where its page puts it, the trunk that it describes, and what makes it a matter of seconds."""

    example: str  # below examples/
    place: str  # below projects/
    arch: str
    norm: str = "FrozenBN"
    frozen: tuple[str, ...] = ()  # stages
    stem: str = "basic"
    input_format: InputFormat = TORCHVISION_RGB
    stride_in_1x1: bool = False
    options: tuple[str, ...] = ()
    results: str = ""  # a file that the evaluation writes
    needs: tuple[str, ...] = ()  # packages that the project asks for

    @property
    def project(self) -> str:
        return self.place.split("/")[0]

    @property
    def is_lazy(self) -> bool:
        return self.example.endswith(".py")


FROZEN = ("stem", "res2")
POINT_REND = Case(
    "pointrend/pointrend_rcnn_resnet34.yaml",
    "PointRend/configs/InstanceSegmentation",
    "resnet34",
    frozen=FROZEN,
    options=(*RCNN,),
    results=COCO_RESULTS,
)
TENSOR_MASK = Case(
    "tensormask/tensormask_resnet50.yaml",
    "TensorMask/configs",
    "resnet50",
    frozen=FROZEN,
    input_format=MSRA_BGR,
    stride_in_1x1=True,
    results=COCO_RESULTS,
)
CASES = [
    POINT_REND,
    Case(
        "pointrend/pointrend_semantic_resnet50.yaml",
        "PointRend/configs/SemanticSegmentation",
        "resnet50",
        input_format=MSRA_BGR,
        stride_in_1x1=True,
        options=(*STUFF, *CROP, "MODEL.POINT_HEAD.NUM_CLASSES", "54"),
        results=SEMANTIC_RESULTS,
    ),
    Case(
        "deeplab/deeplab_v3_plus_resnet34.yaml",
        "DeepLab/configs/Cityscapes-SemanticSegmentation",
        "resnet34",
        norm="SyncBN",
        options=(*STUFF, *CROP),
        results=SEMANTIC_RESULTS,
    ),
    Case(
        "deeplab/deeplab_v3_plus_resnet50.yaml",
        "DeepLab/configs/Cityscapes-SemanticSegmentation",
        "resnet50",
        norm="SyncBN",
        stem="deeplab",
        options=(*STUFF, *CROP),
        results=SEMANTIC_RESULTS,
    ),
    Case(
        "panoptic_deeplab/panoptic_deeplab_resnet50.yaml",
        "Panoptic-DeepLab/configs/COCO-PanopticSegmentation",
        "resnet50",
        norm="SyncBN",
        stem="deeplab",
        options=(*CROP, "MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY", "64"),
        results="predictions.json",
        needs=("panopticapi",),
    ),
    Case(
        "point_sup/mask_rcnn_resnet34_point_sup.yaml",
        "PointSup/configs",
        "resnet34",
        frozen=FROZEN,
        options=(*RCNN,),
        results=COCO_RESULTS,
    ),
    Case(
        "densepose/densepose_rcnn_resnet50.yaml",
        "DensePose/configs",
        "resnet50",
        frozen=FROZEN,
        options=(
            *RCNN,
            *("MODEL.ROI_DENSEPOSE_HEAD.NUM_STACKED_CONVS", "2"),
            # Its evaluation asks for meshes that are downloaded; apply_net.py takes its place.
            *("DATASETS.TRAIN", "('densepose_coco_2014_train',)", "DATASETS.TEST", "()"),
        ),
        needs=("scipy", "av"),
    ),
    Case(
        "rethinking_batchnorm/mask_rcnn_BNhead_resnet34.py",
        "Rethinking-BatchNorm/configs",
        "resnet34",
        frozen=FROZEN,
        options=(*LAZY,),
        results=COCO_RESULTS,
    ),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of Detectron2's repository, as its setup.py completes it, with what the pages add."""
    source = Path(detectron2.__file__).parents[1]
    if not (source / "projects" / "PointRend" / "train_net.py").is_file():
        pytest.skip("this Detectron2 is without the scripts and configs of its projects: they come with its repository")
    copy = tmp_path_factory.mktemp("host") / "detectron2"
    for folder in ("configs", "detectron2", "projects", "tools"):
        shutil.copytree(source / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(copy / "configs", copy / "detectron2" / "model_zoo" / "configs", dirs_exist_ok=True)
    for script in (copy / "projects").glob("*/*_net.py"):
        script.write_text(add_two_lines(script.read_text()))
    for case in (*CASES, TENSOR_MASK):
        shutil.copy(EXAMPLES / case.example, copy / "projects" / case.place)
    for command in re.findall(r"^sed .*", (EXAMPLES / "point_sup" / "README.md").read_text(), re.MULTILINE):
        subprocess.run(["bash", "-c", command], cwd=copy / "projects" / "PointSup", check=True)
    return copy


@pytest.fixture(scope="module")
def datasets(
    tmp_path_factory: pytest.TempPathFactory, coco_mini: Path, load_script: Callable[[str], ModuleType]
) -> Path:
    """The folder that the projects look for their data in."""
    root = tmp_path_factory.mktemp("data") / "datasets"
    load_script(DATA_SCRIPT).write_datasets(coco_mini, root)
    return root


def add_two_lines(script: str) -> str:
    """Do to a script what examples/README.md shows."""
    lines = []
    for line in script.splitlines(keepends=True):
        if line.startswith("from ") and ".config import" in line and "get_cfg" in line:
            lines.append(IMPORT)
        lines.append(line)
        if line.strip() == "cfg = get_cfg()":
            lines.append(line.replace("cfg = get_cfg()\n", CALL))
    return "".join(lines)


def write_weights(path: Path, case: Case) -> dict[str, torch.Tensor]:
    """Write a classifier that is not trained as tools/package_weights.py would, and return its tensors."""
    torch.manual_seed(0)
    state = create_model(case.arch, stem=case.stem, num_classes=3).state_dict()
    for name, value in state.items():
        if name.endswith("norm.weight"):
            value.uniform_(0.3, 0.6)
    raw = path.with_name("raw.pth")
    torch.save(state, raw)
    package_weights(raw, path, case.arch, case.input_format, case.stride_in_1x1)
    return state


def run(folder: Path, *words: object, datasets: Path, fails: bool = False) -> str:
    """Run Python in a folder of the checkout, and return what it printed."""
    checkout = next(parent for parent in folder.parents if parent.name == "detectron2")
    python_path = [str(ROOT), str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(python_path),
            "DETECTRON2_DATASETS": str(datasets),
            "FVCORE_CACHE": str(datasets.parent / "cache"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) is fails, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def train(case: Case, checkout: Path, datasets: Path, folder: Path, *options: str, fails: bool = False) -> str:
    """Train as the page of the case says, from weights that are written here; check what has changed."""
    weights = write_weights(folder / "weights.pth", case)
    output = folder / "output"
    config = checkout / "projects" / case.place / Path(case.example).name
    if case.is_lazy:
        script = checkout / "tools" / "lazyconfig_train_net.py"
        words = [*case.options, f"train.init_checkpoint={folder / 'weights.pth'}", f"train.output_dir={output}"]
        words.append(f"dataloader.evaluator.output_dir={output / 'inference'}")
    else:
        script = checkout / "projects" / case.project / "train_net.py"
        words = [*TINY, *case.options, *options, "MODEL.WEIGHTS", folder / "weights.pth", "OUTPUT_DIR", output]
    printed = run(script.parent, script.name, "--config-file", config, *words, datasets=datasets, fails=fails)
    if not fails:
        check_loss(output)
        model = torch.load(output / "model_final.pth", weights_only=True)["model"]
        prefix = "backbone.bottom_up." if "backbone.bottom_up.stem.conv1.weight" in model else "backbone."
        check_trunk(model, prefix, weights, case)
    return printed


def check_loss(output: Path) -> None:
    """The loss of the second iteration is there, and finite."""
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    (last,) = (entry for entry in metrics if "total_loss" in entry)
    assert last["iteration"] == 1 and math.isfinite(last["total_loss"])


def check_trunk(model: dict[str, torch.Tensor], prefix: str, weights: dict[str, torch.Tensor], case: Case) -> None:
    """Every parameter of the trunk that is to train has changed; all else is as in the file that it started from."""
    trunk = {name for name in weights if not name.startswith("linear.") and not name.endswith("num_batches_tracked")}
    assert {name for name in trunk if prefix + name not in model} == set()
    fixed = {name for name in trunk if name.startswith(case.frozen)}
    if case.norm == "FrozenBN":
        fixed |= {name for name in trunk if ".norm." in name}
    changed = {name for name in trunk if not torch.equal(model[prefix + name], weights[name])}
    assert changed == trunk - fixed


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """DensePose runs in three processes, one after the other."""
    return [pytest.mark.slow] if case.project == "DensePose" else []


@pytest.mark.parametrize("case", [pytest.param(case, id=Path(case.example).stem, marks=marks(case)) for case in CASES])
def test_a_project_trains_and_predicts(case, checkout, datasets, tmp_path, load_script):
    for package in case.needs:
        pytest.importorskip(package, reason=f"{case.project} needs {package}")
    assert f"`{case.place}/`" in (EXAMPLES / case.example).with_name("README.md").read_text()
    folder = checkout / "projects" / case.project
    if case.project == "PointSup":
        run(folder, "tools/prepare_coco_point_annotations_without_masks.py", 10, datasets=datasets)
    if case.project == "DensePose":
        (folder / "datasets").symlink_to(datasets)
        symmetries = datasets.parent / "cache" / "densepose" / "data" / "UV_symmetry_transforms.mat"
        load_script(DATA_SCRIPT).write_uv_symmetries(symmetries)

    train(case, checkout, datasets, tmp_path)

    if case.results:
        assert json.loads((tmp_path / "output" / "inference" / case.results).read_text())
    if case.project == "DensePose":
        config, weights = tmp_path / "output" / "config.yaml", tmp_path / "output" / "model_final.pth"
        image = min((datasets / "coco" / "val2017").iterdir())
        dump = tmp_path / "found.pkl"
        run(folder, "apply_net.py", "dump", config, weights, image, "--output", dump, datasets=datasets)
        assert "instances: 3\n" in run(folder, "-c", COUNT_INSTANCES, dump, datasets=datasets)


def test_rethinking_batchnorms_retinanets_are_broken(checkout, datasets):
    """As its page says: there is no ``torch.nn.SyncBatchNorm2d``."""
    folder = checkout / "projects" / "Rethinking-BatchNorm" / "configs"
    names = ["retinanet_SyncBNhead.py", "retinanet_SyncBNhead_SharedTraining.py"]
    printed = run(folder, "-c", LOAD_CONFIGS, *names, datasets=datasets)
    for name in names:
        assert f"{name}: module 'torch.nn' has no attribute 'SyncBatchNorm2d'" in printed


def test_tensormasks_pyramid_is_that_of_the_stock_config(checkout):
    """Levels p2 to p7, averaged: what can be built without the project's extension."""
    path = checkout / "projects" / "TensorMask" / "tensormask" / "config.py"
    spec = importlib.util.spec_from_file_location("tensormask_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = []
    for name in ("tensormask_R_50_FPN_1x.yaml", Path(TENSOR_MASK.example).name):
        cfg = get_cfg()
        add_resnet_backbone_config(cfg)
        module.add_tensormask_config(cfg)
        cfg.merge_from_file(str(checkout / "projects" / TENSOR_MASK.place / name))
        built.append(build_backbone(cfg).eval())
    stock, ours = built
    assert ours.output_shape() == stock.output_shape()
    assert list(ours.output_shape()) == ["p2", "p3", "p4", "p5", "p6", "p7"]
    ours.load_state_dict(stock.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = stock(images)
        for level, features in ours(images).items():
            assert torch.equal(features, expected[level]), level


@pytest.mark.slow
def test_tensormask_trains_with_its_extension(checkout, datasets, tmp_path):
    """The extension is compiled, which takes a minute. Its one operation has no code for the CPU; two keys avoid it."""
    if shutil.which("c++") is None:
        pytest.skip("TensorMask's extension needs a C++ compiler")
    run(checkout / "projects" / "TensorMask", "setup.py", "build_ext", "--inplace", datasets=datasets)
    if not torch.cuda.is_available():
        assert "RuntimeError: Not implemented on the CPU" in train(
            TENSOR_MASK, checkout, datasets, tmp_path, fails=True
        )
    natural = ["MODEL.TENSOR_MASK.ALIGNED_ON", "False", "MODEL.TENSOR_MASK.BIPYRAMID_ON", "False"]
    scores = ["MODEL.TENSOR_MASK.SCORE_THRESH_TEST", "0.0"]
    train(TENSOR_MASK, checkout, datasets, tmp_path, *natural, *scores)
    assert json.loads((tmp_path / "output" / "inference" / TENSOR_MASK.results).read_text())
