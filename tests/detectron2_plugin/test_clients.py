"""Projects outside Detectron2 train with our backbones, as examples/ says: two lines in their script, a config of ours.

Their checkouts are in the folder that $RESNET_BACKBONE_CLIENTS names, each under the name of its repository; nothing of
them is compiled.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from tests.detectron2_plugin.test_projects import (  # noqa: E402
    COCO_RESULTS,
    EXAMPLES,
    FROZEN,
    RCNN,
    TINY,
    Case,
    add_two_lines,
    check_trunk,
    datasets,
    write_weights,
)
from tests.processes import Forked, script  # noqa: E402

__all__ = ["datasets"]  # the fixture
pytestmark = pytest.mark.slow
FOLDER = "RESNET_BACKBONE_CLIENTS"


@dataclass(frozen=True)
class Client(Case):
    """A project: ``place`` is a folder of its checkout, of which the first part is the name of that."""

    script: str = "train_net.py"
    edits: tuple[tuple[str, str, str], ...] = ()  # file, what is there, what to write
    # Modules that are imported, and that neither this network nor the CPU has a use for: those in C++, mostly.
    stubs: tuple[tuple[str, str], ...] = ()
    writes_losses: bool = True  # CenterNet2 and Detic check them, and write none before the sixth iteration


def on_the_cpu(*files: str, cuda: str) -> tuple[tuple[str, str, str], ...]:
    """Edits of files that move tensors to a GPU wherever the model is."""
    return tuple((file, call, "") for file in files for call in (".cuda()", f".to({cuda})"))


DEFORMABLE = (("MultiScaleDeformableAttention.py", ""),)
OUR_TRUNK = (
    "from detectron2.modeling.backbone.resnet import build_resnet_backbone",
    "from resnet_backbone.detectron2_plugin import build_imagenet_backbone as build_resnet_backbone",
)
OUR_RES5 = """\
from detic.modeling.roi_heads.res5_roi_heads import CustomRes5ROIHeads
from resnet_backbone.detectron2_plugin import ImageNetRes5ROIHeads

CustomRes5ROIHeads._build_res5_block = ImageNetRes5ROIHeads._build_res5_block
"""
LOAD = """\
        checkpoint = self.checkpointer.resume_or_load(
            self.cfg.MODEL.WEIGHTS, resume=resume
        )
"""
LOAD_BOTH = """\
        if not (resume and self.checkpointer.has_checkpoint()):
            load_trunk_weights(self.checkpointer.model, self.cfg.MODEL.WEIGHTS)
        checkpoint = self.checkpointer.resume_or_load("", resume=resume)
"""
SCHEDULER = "from ubteacher.solver.build import build_lr_scheduler\n"
LONGER = ("SOLVER.MAX_ITER", "5")  # of a shorter training Detectron2 cannot tell these projects the time
CENTERNET = ["MODEL.CENTERNET.POST_NMS_TOPK_TRAIN", "50", "MODEL.CENTERNET.POST_NMS_TOPK_TEST", "10", *RCNN[4:]]
CENTERNET2 = Client(
    "own_pyramid/centernet2_resnet34.yaml",
    "CenterNet2/configs",
    "resnet34",
    frozen=FROZEN,
    options=(*CENTERNET,),
    writes_losses=False,
)
CLIENTS = [
    Client(
        "mask2former/maskformer2_resnet34.yaml",
        "Mask2Former/configs/coco/instance-segmentation",
        "resnet34",
        options=(
            *("INPUT.IMAGE_SIZE", "128", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "SOLVER.AMP.ENABLED", "False"),
            *("MODEL.MASK_FORMER.DEC_LAYERS", "3", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
        ),
        stubs=DEFORMABLE,
        needs=("scipy", "timm"),
    ),
    Client(
        "mask2former/maskdino_resnet34.yaml",
        "MaskDINO/configs/coco/instance-segmentation",
        "resnet34",
        options=(
            *("INPUT.IMAGE_SIZE", "128", "MODEL.MaskDINO.TRAIN_NUM_POINTS", "64", "SOLVER.AMP.ENABLED", "False"),
            *("MODEL.MaskDINO.DEC_LAYERS", "2", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
            *("MODEL.MaskDINO.NUM_OBJECT_QUERIES", "20", "MODEL.MaskDINO.DN_NUM", "5"),
        ),
        edits=on_the_cpu(
            "maskdino/modeling/criterion.py", "maskdino/modeling/transformer_decoder/maskdino_decoder.py", cuda="'cuda'"
        ),
        stubs=DEFORMABLE,
        needs=("scipy", "timm"),
    ),
    CENTERNET2,
    replace(
        CENTERNET2,
        example="own_pyramid/centernet2_bifpn_resnet34.yaml",
        edits=(("centernet/modeling/backbone/bifpn.py", *OUR_TRUNK),),
    ),
    Client(
        "own_pyramid/detic_c4_resnet34.yaml",
        "Detic/configs",
        "resnet34",
        frozen=FROZEN,
        options=(
            *(*RCNN, "FP16", "False", "DATASETS.TRAIN", "('coco_2017_train',)"),
            *("DATASETS.TEST", "('coco_2017_val',)", "MODEL.ROI_BOX_HEAD.IGNORE_ZERO_CATS", "False"),
        ),
        edits=(("train_net.py", "logger = logging", f"{OUR_RES5}\nlogger = logging"),),
        stubs=(("clip/simple_tokenizer.py", "SimpleTokenizer = object"),),
        writes_losses=False,
        needs=("timm", "lvis"),
    ),
    Client(
        "own_pyramid/fcos_resnet34.yaml",
        "AdelaiDet/configs/FCOS-Detection",
        "resnet34",
        frozen=FROZEN,
        script="tools/train_net.py",
        options=LONGER,
        edits=(("tools/train_net.py", "from adet.evaluation import TextEvaluator\n", ""),),
        stubs=(("adet/_C.py", ""),),
        needs=("skimage",),
    ),
    Client(
        "own_pyramid/centermask_resnet34.yaml", "centermask2/configs/centermask", "resnet34", frozen=FROZEN, options=()
    ),
    Client(
        "clients/sparse_rcnn_resnet34.yaml",
        "SparseR-CNN/projects/SparseRCNN/configs",
        "resnet34",
        frozen=FROZEN,
        script="projects/SparseRCNN/train_net.py",
        options=("MODEL.SparseRCNN.NUM_PROPOSALS", "20", "MODEL.SparseRCNN.NUM_HEADS", "2"),
        edits=(("projects/SparseRCNN/sparsercnn/util/misc.py", "float(torchvision.__version__[:3]) < 0.7", "False"),),
        needs=("scipy",),
    ),
    Client(
        "clients/diffusiondet_resnet34.yaml",
        "DiffusionDet/configs",
        "resnet34",
        frozen=FROZEN,
        options=(
            *("MODEL.DiffusionDet.NUM_PROPOSALS", "20", "MODEL.DiffusionDet.NUM_HEADS", "2"),
            *("INPUT.CROP.ENABLED", "False"),
        ),
        needs=("scipy", "timm"),
    ),
    Client("clients/sparseinst_resnet34.yaml", "SparseInst/configs", "resnet34", script="tools/train_net.py"),
]
TEACHER = Client(
    "clients/unbiased_teacher_resnet34.yaml",
    "unbiased-teacher/configs/coco_supervision",
    "resnet34",
    frozen=FROZEN,
    options=(
        *(*RCNN, "SOLVER.IMG_PER_BATCH_LABEL", "2", "SOLVER.IMG_PER_BATCH_UNLABEL", "2"),
        *("MODEL.ROI_HEADS.LOSS", "CrossEntropy", *LONGER),
        *("DATALOADER.SUP_PERCENT", "50.0", "DATALOADER.RANDOM_DATA_SEED_PATH", "seeds.json"),
    ),
    edits=(
        # Detectron2 has no such class since v0.6; with it goes the focal loss.
        ("ubteacher/modeling/roi_heads/fast_rcnn.py", "    FastRCNNOutputs,\n", ""),
        ("ubteacher/modeling/roi_heads/fast_rcnn.py", "FastRCNNFocalLoss(FastRCNNOutputs)", "FastRCNNFocalLoss"),
        ("ubteacher/engine/trainer.py", LOAD, LOAD_BOTH),
        (
            "ubteacher/engine/trainer.py",
            SCHEDULER,
            f"{SCHEDULER}from resnet_backbone.detectron2_plugin import load_trunk_weights\n",
        ),
    ),
    stubs=(("seeds.json", '{"50.0": {"1": [0]}}'),),
)
DETREX = [
    *("train.device=cpu", "model.device=cpu", "train.max_iter=2", "optimizer.weight_decay=0"),
    *("dataloader.train.num_workers=0", "dataloader.train.total_batch_size=2", "dataloader.test.num_workers=0"),
    *("dataloader.train.mapper.augmentation.1.short_edge_length=[128]", "model.num_queries=20"),
    *(f"dataloader.{split}.mapper.augmentation.{at}.max_size=192" for split, at in (("train", 1), ("test", 0))),
    "dataloader.train.mapper.augmentation_with_crop=null",
    "dataloader.test.mapper.augmentation.0.short_edge_length=128",
    *("model.transformer.encoder.num_layers=1", "model.transformer.decoder.num_layers=2"),
]
DINO = Client(
    "detrex/dino_resnet34.py",
    "detrex/projects/dino/configs/dino-resnet",
    "resnet34",
    frozen=("stem",),
    script="tools/train_net.py",
    options=(*DETREX, "model.dn_number=2"),
    edits=(
        ("tools/train_net.py", "assert torch.cuda.is_available()", "assert True"),
        *on_the_cpu("projects/dino/modeling/dino.py", "projects/dino/modeling/dn_criterion.py", cuda='"cuda"'),
    ),
    stubs=(("wandb.py", ""), ("detrex/_C.py", "")),
    needs=("scipy", "timm", "fairscale"),
)
DAB_DETR = replace(
    DINO, example="detrex/dab_detr_resnet34.py", place="detrex/projects/dab_detr/configs", options=(*DETREX,)
)


@pytest.fixture
def checkout(tmp_path: Path, datasets: Path) -> Callable[[Client], Path]:
    """A copy of a project, with what its page adds, and the data where it looks for them."""

    def copy(client: Client) -> Path:
        folder = os.environ.get(FOLDER)
        if not folder:
            pytest.skip(f"{FOLDER} names no folder with checkouts of the projects")
        for package in client.needs:
            pytest.importorskip(package, reason=f"{client.project} needs {package}")
        source = Path(folder) / client.project
        if not source.is_dir():
            pytest.skip(f"{client.project} is not in {folder}: clone its repository there")
        project = tmp_path / client.project
        shutil.copytree(source, project, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        for file, before, after in client.edits:
            text = (project / file).read_text()
            assert before in text, (file, before)
            (project / file).write_text(text.replace(before, after))
        for file, text in client.stubs:
            (project / file).parent.mkdir(exist_ok=True)
            (project / file).write_text(text)
        train_net = project / client.script
        train_net.write_text(add_two_lines(train_net.read_text()))
        shutil.copy(EXAMPLES / client.example, tmp_path / client.place)
        if client.project == "Detic":  # its submodule
            center_net = Path(folder) / "CenterNet2"
            if not center_net.is_dir():
                pytest.skip(f"Detic needs CenterNet2, which is not in {folder}")
            (project / "third_party" / "CenterNet2").rmdir()
            (project / "third_party" / "CenterNet2").symlink_to(center_net)
        if client.project == "detrex":  # as its setup.py does
            (project / "detrex" / "config" / "configs").symlink_to(project / "configs")
        (project / "datasets").mkdir(exist_ok=True)
        (project / "datasets" / "coco").symlink_to(datasets / "coco")
        return project

    return copy


def run_client(project: Path, client: Client, *words: object, fails: bool = False) -> str:
    """Run the script of a project, and return what it printed."""
    path = project / client.script

    def main() -> None:
        sys.path[:0] = [str(path.parent), str(project)]
        script(path, *map(str, words))()

    status, printed = Forked(main, folder=project).finish()
    assert (status != 0) is fails, printed[-4000:]
    return printed


def train(client: Client, project: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Train in ``folder / "output"`` from weights that are written here, and return these."""
    weights, output = write_weights(folder / "weights.pth", client), folder / "output"
    words = ["--config-file", folder / client.place / Path(client.example).name, *client.options]
    if client.is_lazy:
        words += [f"train.init_checkpoint={folder}/weights.pth", f"train.output_dir={output}"]
        words += [f"dataloader.evaluator.output_dir={output}/inference"]
    else:
        # Ours after the project's.
        words[2:2] = TINY
        words += ["MODEL.WEIGHTS", folder / "weights.pth", "OUTPUT_DIR", output]
    run_client(project, client, *words)
    if client.project == "Detic":  # which does not evaluate after a training
        words[words.index("MODEL.WEIGHTS") + 1] = output / "model_final.pth"
        run_client(project, client, "--eval-only", *words)
    if client.writes_losses:
        entries = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        losses = [entry["total_loss"] for entry in entries if "total_loss" in entry]
        assert losses and all(map(math.isfinite, losses))
    log = (output / "log.txt").read_text()
    assert f"INFO: {client.arch}: the checkpoint fills all " in log and "cannot see" not in log
    (results,) = output.glob(f"inference*/{COCO_RESULTS}")
    assert json.loads(results.read_text())
    return weights


@pytest.mark.parametrize(
    "client", [pytest.param(client, id=Path(client.example).stem) for client in (*CLIENTS, DINO, DAB_DETR)]
)
def test_a_client_trains_and_predicts(client, checkout, tmp_path):
    weights = train(client, checkout(client), tmp_path)
    model = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["model"]
    prefix = "backbone.bottom_up." if "backbone.bottom_up.stem.conv1.weight" in model else "backbone."
    model = {name.replace("roi_heads.res5.", "backbone.res5."): tensor for name, tensor in model.items()}
    check_trunk(model, prefix, weights, client)


def test_unbiased_teacher_and_its_student_begin_alike(checkout, tmp_path):
    """The teacher stays as it is until the student has learned alone for a while."""
    weights = train(TEACHER, checkout(TEACHER), tmp_path)
    model = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["model"]
    check_trunk(model, "modelStudent.backbone.bottom_up.", weights, TEACHER)
    check_trunk(model, "modelTeacher.backbone.bottom_up.", weights, replace(TEACHER, frozen=("stem", "res")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_detrex_with_other_colours_than_the_weights(split, checkout, tmp_path):
    """``model.input_format`` says RGB all the same."""
    project = checkout(DINO)
    config, key = tmp_path / DINO.place / Path(DINO.example).name, f"dataloader.{split}.mapper.img_format"
    words = [*DINO.options, f"train.output_dir={tmp_path}/output", f"{key}=BGR"]
    printed = run_client(project, DINO, "--config-file", config, *words, fails=True)
    assert "the input does not match the weights imagenet://resnet34/IMAGENET1K_V1" in printed
    assert f"  {key} = 'RGB'   # the config has 'BGR'" in printed
