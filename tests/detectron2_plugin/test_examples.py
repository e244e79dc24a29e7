"""The scripts of examples/ do what they say, on weights that are written here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_backbone import create_model
from resnet_backbone.data.prepare.shapes import generate_shapes
from resnet_backbone.weights.catalog import MSRA_BGR, TORCHVISION_RGB
from resnet_backbone.weights.package import package_weights

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CONFIGS = sorted(EXAMPLES.rglob("*.yaml"))


def yaml_blocks(page):
    return re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Packaged files of classifiers that are not trained: ``{name: path}``."""
    folder = tmp_path_factory.mktemp("weights")
    for arch, input_format in (("resnet50", MSRA_BGR), ("vgg16", TORCHVISION_RGB)):
        torch.manual_seed(0)
        state = create_model(arch, num_classes=0).state_dict()
        torch.save(state, folder / "raw.pth")
        package_weights(
            folder / "raw.pth", folder / f"{arch}.pth", arch, input_format, stride_in_1x1=arch == "resnet50"
        )
    return {path.stem: path for path in folder.glob("*.pth")}


def run(script, *words, folder):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("arch", "lines"),
    [
        ("resnet50", ["res2: (1, 256, 16, 24), stride 4", "res5: (1, 2048, 2, 3), stride 32"]),
        ("vgg16", ["conv3: (1, 256, 16, 24), stride 4", "pool5: (1, 512, 2, 3), stride 32"]),
    ],
)
def test_extract_features_without_detectron2(weights, tmp_path, arch, lines):
    """A 90x60 image is padded to 96x64."""
    Image.new("RGB", (90, 60), (200, 100, 50)).save(tmp_path / "photo.png")
    printed = run("extract_features.py", "photo.png", "--weights", weights[arch], folder=tmp_path).splitlines()
    assert [line for line in printed if line in lines] == lines


def test_extract_features_normalises_as_the_weights_were_trained(load_script):
    normalise = load_script("examples/extract_features.py").normalise
    image = torch.tensor([255.0, 0.0, 128.0]).view(3, 1, 1).expand(3, 5, 7)
    batch = normalise(image, MSRA_BGR, 4)
    assert batch.shape == (1, 3, 8, 8)
    assert batch[0, :, 0, 0].tolist() == pytest.approx([128 - 103.53, 0 - 116.28, 255 - 123.675])
    assert batch[:, :, 5:].abs().sum() == 0 and batch[:, :, :, 7:].abs().sum() == 0


def test_train_your_own(weights, tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    generate_shapes(tmp_path / "shapes", num_train=3, num_val=1, seed=0)
    annotations = tmp_path / "shapes" / "annotations" / "train.json"
    words = ["--images", tmp_path / "shapes" / "train", "--train", annotations, "--val", annotations]
    words += ["--arch", "resnet50", "--weights", weights["resnet50"]]
    tiny = [
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()"),
        *("SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 10, "OUTPUT_DIR", tmp_path / "output"),
    ]
    run("train_your_own.py", *words, *tiny, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "bbox/AP"} <= {key for line in lines for key in line}
    trained = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)["model"]
    given = torch.load(weights["resnet50"], weights_only=True)["model"]
    assert torch.equal(trained["backbone.bottom_up.stem.conv1.weight"], given["stem.conv1.weight"])
    config = (tmp_path / "output" / "config.yaml").read_text()
    assert "FORMAT: BGR" in config and "STRIDE_IN_1X1: true" in config, "the input is that of the weights"


def test_track(tmp_path):
    """With the tracker that is always there; iteration 39 was done again, and 59 is of an earlier, longer training."""
    records = [(59, "total_loss", 7.0), (19, "total_loss", 3.0), (39, "total_loss", 9.0), (39, "val/bbox/AP", 0.5)]
    records += [(39, "total_loss", 2.0), (39, "val/bbox/AP", 1.5)]
    lines = [json.dumps({"iteration": iteration, name: value}) for iteration, name, value in records]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    (tmp_path / "config.yaml").write_text("SOLVER: {BASE_LR: 0.01, STEPS: [4]}")
    assert "2 records" in run("track.py", tmp_path, "tensorboard", folder=tmp_path)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    found = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == {"total_loss": [(19, 3.0), (39, 2.0)], "val/bbox/AP": [(39, 1.5)]}
    assert "SOLVER.BASE_LR: '0.01'" in next(folder.rglob("hparams.yml")).read_text()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_page_shows_its_configs_as_they_are(config):
    """Of configs that differ in ``_BASE_`` alone, one is shown whole, and the bases of all are named."""
    page = config.parent / "README.md"
    base, _, text = config.read_text().partition("\n")
    assert text in [block.partition("\n")[2] for block in yaml_blocks(page)]
    assert base.removeprefix("_BASE_: ") in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "block",
    yaml_blocks(EXAMPLES / "README.md") + yaml_blocks(ROOT / "README.md"),
    ids=lambda block: re.search("ARCH: (.*?)[,}]", block)[1],
)
def test_the_configs_of_the_first_pages_build(block):
    """Over the four features that Detectron2's own FPN configs name; the input is held against the weights."""
    config = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    modeling = pytest.importorskip("detectron2.modeling", reason="Detectron2 is not installed")
    plugin = pytest.importorskip("resnet_backbone.detectron2_plugin")
    cfg = config.get_cfg()
    plugin.add_resnet_backbone_config(cfg)
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    values = yaml.safe_load(block)
    cfg.merge_from_other_cfg(type(cfg)(values))
    backbone = modeling.build_backbone(cfg)
    trunk = getattr(backbone, "bottom_up", backbone)
    assert trunk.arch == values["MODEL"]["RESNET_BACKBONE"]["ARCH"]
