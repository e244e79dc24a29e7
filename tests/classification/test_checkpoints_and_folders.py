"""What a checkpoint, a packaged file and the folder of a run say stays true wherever they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resnet_backbone.classification.network import fold_survival, load_checkpoint
from resnet_backbone.classification.run import Run
from resnet_backbone.models.registry import create_model


def run(cfg, **options):
    return Run(cfg, **options).start()


def randomised(arch: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model(arch, num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.parametrize("norm", ["BN", "GN"])
@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("arch", ["cifar_resnet20", "cifar_resnet110", "resnet18", "resnet50"])
def test_folded_tensors_compute_the_same_without_stochastic_depth(arch, preactivation, norm):
    """cifar_resnet110 has blocks 0 to 17: the order is that of numbers, not of words."""
    options = {"preactivation": preactivation, "norm": norm}
    stochastic = randomised(arch, stochastic_depth=0.5, **options)
    plain = create_model(arch, num_classes=10, **options).eval()
    plain.load_state_dict(fold_survival(stochastic.state_dict(), 0.5))
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), stochastic(images), rtol=1e-3, atol=1e-4)


def test_a_packaged_network_is_as_good_as_the_trained_one(tiny, tmp_path, load_script, capsys):
    """With stochastic depth, too, of which the file need not say anything."""
    keys = ["MODEL.STOCHASTIC_DEPTH", "0.8", "SOLVER.MAX_ITER", "4"]
    trained = run(tiny("cifar10_resnet20.yaml", *keys))
    evaluate = load_script("tools/evaluate_classifier.py").main
    data = tiny("cifar10_resnet20.yaml").DATASETS.TEST[0]
    assert evaluate(["--weights", str(tmp_path / "output"), "--data", data, "--num-workers", "0"]) == 0
    packaged = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["classification"]
    assert packaged["top1_error"] == trained.top1_error
    assert packaged["loss"] == pytest.approx(trained.loss, rel=1e-4)


@pytest.mark.parametrize("on_device", ["True", "False"])
def test_a_network_trained_in_bfloat16_is_scored_in_float32(tiny, tmp_path, on_device):
    amp = ["SOLVER.AMP.ENABLED", "True", "DATALOADER.ON_DEVICE", on_device]
    ready = Run(tiny("cifar10_resnet20.yaml", *amp))
    seen = set()
    ready.model.res2[0].conv1.register_forward_hook(
        lambda module, inputs, output: seen.add((module.training, output.dtype))
    )
    trained = ready.start()
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/weights.pth"), "OUTPUT_DIR", str(tmp_path / "again")]
    again = run(tiny("cifar10_resnet20.yaml", *amp, *weights), eval_only=True)
    assert again.loss == pytest.approx(trained.loss, rel=1e-5)


def test_members_of_an_ensemble_see_their_own_input(tiny, tmp_path):
    """Whether the images of the run are kept on the device or not."""
    other = ["MODEL.PIXEL_MEAN", "[100.0, 90.0, 80.0]", "INPUT.SIZE", "24", "INPUT.RESIZE_TEST", "28"]
    run(tiny("cifar10_resnet20.yaml", *other, "OUTPUT_DIR", str(tmp_path / "other"), "DATASETS.TEST", "[]"))
    run(tiny("cifar10_resnet20.yaml", "DATASETS.TEST", "[]"))
    losses = []
    for on_device in ("True", "False"):
        words = ["MODEL.WEIGHTS", str(tmp_path / "output/weights.pth"), "TEST.ENSEMBLE", str([str(tmp_path / "other")])]
        words += ["OUTPUT_DIR", str(tmp_path / on_device), "DATALOADER.ON_DEVICE", on_device]
        losses.append(run(tiny("cifar10_resnet20.yaml", *words), eval_only=True).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_the_tensors_hide_is_compared(tiny, tmp_path):
    keys = ["MODEL.ARCH", "resnet50", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"]
    run(tiny("cifar10_resnet20.yaml", *keys, "MODEL.STRIDE_IN_1X1", "True"))
    with pytest.raises(ValueError, match="trained with MODEL.STRIDE_IN_1X1 True.*write True"):
        Run(tiny("cifar10_resnet20.yaml", *keys), resume=True)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "other")]
    with pytest.raises(ValueError, match="trained with MODEL.STRIDE_IN_1X1 True"):
        Run(tiny("cifar10_resnet20.yaml", *keys, *weights))


def test_resuming_says_what_is_other(tiny, tmp_path, caplog):
    run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "4", "DATASETS.TEST", "[]"))
    with pytest.raises(ValueError, match="has done 4 iterations: write SOLVER.MAX_ITER 4 or more"):
        Run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "(2,)"), resume=True)
    with pytest.raises(ValueError, match="trained with MODEL.STOCHASTIC_DEPTH 0.0"):
        Run(tiny("cifar10_resnet20.yaml", "MODEL.STOCHASTIC_DEPTH", "0.5"), resume=True)
    with pytest.raises(ValueError, match=r"another network than MODEL describes.*(\n.*)*MODEL.PREACTIVATION: False"):
        Run(tiny("cifar10_resnet20.yaml", "MODEL.PREACTIVATION", "True"), resume=True)
    lines: list[str] = []
    import logging

    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("resnet_backbone.config.merge")
    logger.addHandler(handler)
    try:
        Run(tiny("cifar10_resnet20.yaml", "SOLVER.IMS_PER_BATCH", "12", "DATASETS.TEST", "[]"), resume=True)
    finally:
        logger.removeHandler(handler)
    assert "SOLVER.IMS_PER_BATCH is 6 in the run so far, 12 in this command" in "\n".join(lines)


def test_a_new_training_forgets_the_weights_of_the_old_one(tiny, tmp_path, monkeypatch):
    run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    assert (tmp_path / "output/weights.pth").is_file()
    ready = Run(tiny("cifar10_resnet20.yaml", "DATASETS.TEST", "[]"))
    monkeypatch.setattr(ready.trainer, "train", lambda *_: None)
    ready.start()
    assert not (tmp_path / "output/weights.pth").exists()


def test_an_evaluation_is_not_written_over_a_training(tiny, tmp_path, load_script, capsys):
    run(tiny("cifar10_resnet20.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    before = (tmp_path / "output/metrics.json").read_bytes()
    words = ["--weights", str(tmp_path / "output"), "--data", tiny("cifar10_resnet20.yaml").DATASETS.TEST[0]]
    assert load_script("tools/evaluate_classifier.py").main([*words, "--output", str(tmp_path / "output")]) == 1
    assert "a folder of its own" in capsys.readouterr().err
    assert (tmp_path / "output/metrics.json").read_bytes() == before


def test_divergence_is_told_before_an_evaluation_meets_it(tiny):
    keys = ["SOLVER.BASE_LR", "1e9", "MODEL.NORM", "GN", "TEST.EVAL_PERIOD", "3", "SOLVER.CHECKPOINT_PERIOD", "100"]
    with pytest.raises(FloatingPointError, match="the learning rate: SOLVER.BASE_LR is 1e.09"):
        run(tiny("cifar10_resnet20.yaml", *keys, "SOLVER.MAX_ITER", "12"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["TEST.VIEWS", "10-crop"], "10-crop takes corners of an image larger than the crop"),
        (["MODEL.ARCH", "vgg16", "INPUT.SIZE", "16", "INPUT.RESIZE_TEST", "16"], "write INPUT.SIZE 32 or more"),
        (["TEST.VIEWS", "multi-scale", "TEST.SCALES", "[16]"], "scale 16"),
        (["TEST.ENSEMBLE", "['nowhere']"], "nowhere"),
        (["MODEL.ARCH", "resnet20"], "did you mean cifar_resnet20"),
        (["SOLVER.MAX_ITER", "5", "--resume"], "write --resume before the pairs KEY VALUE"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_the_beginning(tiny, tmp_path, overrides, said):
    with pytest.raises((ValueError, OSError), match=said):
        Run(tiny("cifar10_resnet20.yaml", *overrides))
    assert not (tmp_path / "output").exists()


def test_a_config_of_the_other_tool_is_told(load_script, capsys, tmp_path):
    detector = load_script("tools/train_net.py").main
    assert detector(["--engine", "torchvision", "--config-file", "classification/cifar10_resnet20.yaml"]) == 1
    assert "is for resnet-backbone classify" in capsys.readouterr().err
    assert load_script("tools/train_classifier.py").main(["--config-file", "bccd_r18.yaml"]) == 1
    assert "is for resnet-backbone train" in capsys.readouterr().err


def test_dropped_blocks_decay_and_keep_their_momentum(tiny):
    """A block without a gradient would be left out by the optimizer; a resumed run could not know which were."""
    keys = ["MODEL.STOCHASTIC_DEPTH", "0.99", "SOLVER.MAX_ITER", "1", "SOLVER.WARMUP_ITERS", "0", "DATASETS.TEST", "[]"]
    ready = Run(tiny("cifar10_resnet20.yaml", *keys, "SOLVER.WEIGHT_DECAY", "0.5"))
    before = {name: tensor.clone() for name, tensor in ready.model.state_dict().items()}
    ready.start()
    state = load_checkpoint(Path(ready.output_dir) / "model_final.pth")["model"]
    last = "res4.2.conv1.weight"  # of a block that survives one time in a hundred
    torch.testing.assert_close(state[last], before[last] * (1 - 0.02 * 0.5))
