"""GoogLeNet against torchvision's own, from a published file to the tool's figures."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_backbone import create_model, list_models
from resnet_backbone.classification.predict import load_classifier, predict
from resnet_backbone.classification.transforms import Views
from resnet_backbone.config.schema import ConfigError
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.weights import read_weights
from resnet_backbone.weights.catalog import CATALOG
from tests.helpers import spread_norms


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """As ``torchvision.models.googlenet(weights=...)`` ends up, but with the file's auxiliary classifiers."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=1000, transform_input=True, init_weights=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return spread_norms(model, most=1.5).eval()


def test_logits_are_torchvisions_to_the_bit(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = create_model("googlenet", weights=tmp_path / "googlenet.pth").eval()
    assert set(ours.state_dict()) == {name for name in theirs.state_dict() if not name.startswith("aux")}
    images = torch.randn(2, 3, 97, 130)
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std(0).max() > 1e-3  # the images are told apart
        assert torch.equal(ours(images), expected)
        last = ours.forward_features(images)["inception5b"]
        whole = ours.forward_dense_head(last[:, :, :3, :3], 3)
        torch.testing.assert_close(whole[:, :, 0, 0], ours.forward_head(last[:, :, :3, :3]))


@pytest.mark.parametrize("kind", ["1-crop", "multi-scale"])
def test_the_published_file_is_evaluated_with_torchvisions_transform(theirs, tmp_path, monkeypatch, kind):
    path = tmp_path / "googlenet-1378be20.pth"
    torch.save(theirs.state_dict(), path)
    entry = CATALOG["googlenet/IMAGENET1K_V1"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(CATALOG, entry.full_name, replace(entry, sha256=digest))
    weights = read_weights(path)
    assert (weights.arch, weights.norm, weights.num_classes) == ("googlenet", "BN", 1000)
    assert all(name.startswith("aux") for name in weights.left_out) and len(weights.left_out) > 0
    (tmp_path / "data/a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (280, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "data/a/0.png")
    options = {"device": "cpu", "batch_size": 1, "num_workers": 0}
    views = Views(kind, (224,)) if kind == "multi-scale" else Views(kind)
    _, found = predict(load_classifier(path), open_classes(str(tmp_path / "data")), views, **options)
    image = Image.open(tmp_path / "data/a/0.png")
    transform = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        if kind == "1-crop":
            assert torch.equal(found, theirs(transform(image)[None]).softmax(1))
        else:
            assert found.shape == (1, 1000) and found.sum() == pytest.approx(1, abs=1e-5)


def test_it_is_a_classifier_alone():
    assert "googlenet" not in list_models()
    with pytest.raises(ValueError, match="a classifier alone, no trunk"):
        create_model("googlenet", num_classes=0)
    with pytest.raises(ValueError, match="leave out norm and freeze_at"):
        create_model("googlenet", norm="FrozenBN", freeze_at=2)
    with pytest.raises(ConfigError, match="ARCH 'googlenet' must be one of"):
        load_config(Path("quickstart.yaml"), ["MODEL.RESNET_BACKBONE.ARCH", "googlenet"])
