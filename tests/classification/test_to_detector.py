"""From a classifier that was trained here to the trunk of a detector, on both engines."""

from __future__ import annotations

import pytest
import torch

from resnet_backbone.classification.run import Run
from resnet_backbone.torchvision_plugin.config import load_config as torchvision_config
from resnet_backbone.weights import WeightsError


@pytest.fixture
def trained(tiny, tmp_path):
    """Trains a network for a step: ``trained("resnet18", "MODEL.SHORTCUT", "A")`` returns the path of its weights."""

    def train(arch: str, *overrides: str) -> str:
        keys = ["MODEL.ARCH", arch, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]", *overrides]
        Run(tiny("cifar10_resnet20.yaml", *keys)).start()
        return str(tmp_path / "output" / "weights.pth")

    return train


def detector_of(engine: str, words: list[str]):
    """The detector and its config, built and filled as a run does."""
    if engine == "torchvision":
        from resnet_backbone.torchvision_plugin.run import Run as DetectorRun

        ready = DetectorRun(torchvision_config("bccd_r18.yaml", words))
        return ready.model.backbone.bottom_up, ready.cfg
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.config import load_config
    from resnet_backbone.detectron2_plugin.run import Run as DetectorRun

    ready = DetectorRun(load_config("bccd_r18.yaml", words))
    return ready.model.backbone.bottom_up, ready.cfg


def data(shapes, tmp_path) -> list[str]:
    own = {"NAME": "own", "JSON": f"{shapes}/shapes/annotations/train.json", "IMAGES": f"{shapes}/shapes/train"}
    words = ["DATASETS.OWN", str([own]), "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "()"]
    return [*words, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "detector"), "DATALOADER.NUM_WORKERS", "0"]


@pytest.mark.parametrize(("arch", "shortcut"), [("resnet18", ""), ("resnet18", "A"), ("plain18", "")])
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_the_trunk_is_the_classifiers(trained, shapes, tmp_path, engine, arch, shortcut):
    path = trained(arch, "MODEL.SHORTCUT", shortcut)
    keys = ["MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.SHORTCUT", shortcut, "MODEL.WEIGHTS", path]
    trunk, cfg = detector_of(engine, [*data(shapes, tmp_path), *keys])
    tensors = torch.load(path, weights_only=True)["model"]
    state = trunk.state_dict()
    compared = [name for name in tensors if not name.startswith("linear.")]
    assert {name.split(".")[0] for name in compared} == {"stem", "res2", "res3", "res4", "res5"}
    for name in compared:
        assert torch.equal(state[name], tensors[name]), name
    # The input that the classifier was trained on, CIFAR's here, came with the weights.
    assert cfg.INPUT.FORMAT == "RGB" and list(cfg.MODEL.PIXEL_MEAN) == pytest.approx(
        [125.307, 122.961, 113.8575], abs=1e-3
    )


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_other_shortcuts_are_refused_with_the_key_to_write(trained, shapes, tmp_path, engine):
    path = trained("resnet18", "MODEL.SHORTCUT", "A")
    if engine == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    with pytest.raises((WeightsError, ValueError), match="shortcut") as caught:
        detector_of(engine, [*data(shapes, tmp_path), "MODEL.WEIGHTS", path])
    assert engine == "detectron2" or "MODEL.RESNET_BACKBONE.SHORTCUT" in str(caught.value)
