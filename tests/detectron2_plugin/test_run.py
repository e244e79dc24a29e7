"""A run on Detectron2: from a config to checkpoints, figures and pictures, stopped and gone on with."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from fvcore.common.config import CfgNode

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg as stock_cfg  # noqa: E402
from detectron2.data import DatasetCatalog  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

from resnet_backbone.config.acceleration import set_up_process  # noqa: E402
from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run, launch_run  # noqa: E402
from resnet_backbone.detectron2_plugin.trainer import Trainer  # noqa: E402
from resnet_backbone.engine.processes import PATIENCE  # noqa: E402
from resnet_backbone.metrics.run_facts import read_facts  # noqa: E402
from tests.helpers import TINY, pycocotools_figures, results_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *(*TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.CHECKPOINT_PERIOD", "2"),
]


@pytest.fixture
def tiny(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """Load a config, shrunk to seconds: ``tiny("quickstart.yaml", "KEY", "VALUE", ...)``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))

    def load(config: str, *overrides: str) -> CfgNode:
        return load_config(config, [*SMALL, "OUTPUT_DIR", str(tmp_path / "output"), *overrides])

    return load


def test_it_leaves_the_files_that_the_torchvision_engine_leaves(tiny, shapes):
    cfg = tiny("quickstart.yaml")
    figures = Run(cfg).start()

    output = Path(cfg.OUTPUT_DIR)
    for name in ("config.yaml", "log.txt", "metrics.json", "model_final.pth", "model_0000001.pth", "last_checkpoint"):
        assert (output / name).is_file(), name
    assert (output / "inference" / "pictures" / "grid.png").is_file()
    assert "iter: 3" in (output / "log.txt").read_text()
    assert json.loads((output / "inference" / "metrics.json").read_text()) == figures["shapes_val"]
    facts = read_facts(output / "inference")
    assert (facts.engine, facts.dataset) == ("detectron2", "shapes_val") and facts.multiply_adds > 1e6
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["shapes_val/bbox/AP50"] == figures["shapes_val"]["bbox"]["AP50"]

    results = results_of(output)
    assert len(results) > 20
    oracle = pycocotools_figures(shapes / "shapes" / "annotations" / "val.json", results)
    ours = list(figures["shapes_val"]["bbox"].values())[:12]
    expected = [None if value == -1 else pytest.approx(100 * value, abs=1e-9) for value in oracle]
    assert ours == expected


# The last evaluation leaves the norms in place, and adds in the order that Detectron2 does.
AS_TRAINED = ("MODEL.RESNET_BACKBONE.FOLD_NORMS", "False", "MODEL.RESNET_BACKBONE.MEMORY_FORMAT", "contiguous")


def test_a_run_that_was_stopped_goes_on(tiny):
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0")
    Run(cfg).start()
    cfg = tiny("quickstart.yaml", "SOLVER.WARMUP_ITERS", "0", *AS_TRAINED)
    resumed = Run(cfg, resume=True)
    resumed.start()
    output = Path(cfg.OUTPUT_DIR)
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    saved = torch.load(output / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 3 and saved["trainer"]["iteration"] == 3
    assert saved["input"]["INPUT.FORMAT"] == "RGB" and saved["class_names"] == resumed.class_names
    assert all(torch.equal(saved["model"][name], tensor) for name, tensor in resumed.model.state_dict().items())


def test_evaluating_a_checkpoint_gives_the_figures_of_its_training(tiny):
    cfg = tiny("quickstart.yaml")
    trained = Run(cfg).start()
    weights = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    cfg = tiny("quickstart.yaml", "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}_again")
    assert Run(cfg, eval_only=True).start() == trained
    assert not (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists()


def test_what_we_train_loads_into_detectron2s_own_network(tiny):
    cfg = tiny("quickstart.yaml", "MODEL.RESNET_BACKBONE.NORM", "BN", *AS_TRAINED)
    run = Run(cfg)
    run.start()
    stock = stock_cfg()
    for key in ("ANCHOR_GENERATOR", "RPN", "FPN", "ROI_HEADS", "ROI_BOX_HEAD", "PIXEL_MEAN", "PIXEL_STD", "DEVICE"):
        stock.MODEL[key] = cfg.MODEL[key]
    stock.MODEL.BACKBONE.NAME, stock.MODEL.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
    stock.MODEL.RESNETS.DEPTH, stock.MODEL.RESNETS.RES2_OUT_CHANNELS, stock.MODEL.RESNETS.NORM = 18, 64, "BN"
    stock.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    model = build_model(stock).eval()
    report = DetectionCheckpointer(model)._load_model(
        torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)
    )
    assert not (report.missing_keys or report.unexpected_keys or report.incorrect_shapes)
    image = {"image": torch.randint(0, 256, (3, 75, 90)).float(), "height": 75, "width": 90}
    with torch.inference_mode():
        theirs, ours = model([image])[0]["instances"], run.model.eval()([image])[0]["instances"]
    assert len(theirs) > 5
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor) and torch.equal(ours.scores, theirs.scores)


def test_test_time_augmentation_is_scored_beside_the_plain_one(tiny):
    cfg = tiny("quickstart.yaml", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 80)", "SOLVER.MAX_ITER", "1")
    figures = Run(cfg).start()
    assert set(figures) == {"shapes_val", "shapes_val_TTA"}
    assert (Path(cfg.OUTPUT_DIR) / "inference_TTA" / "metrics.json").is_file()


def test_a_raw_torchvision_file_fills_the_trunk(tiny, tmp_path):
    reference = torchvision.models.resnet18(weights=None)
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    given = ("MODEL.WEIGHTS", str(tmp_path / "resnet18.pth"))
    with pytest.raises(ValueError, match="does not say which input it was trained on"):
        Run(tiny("quickstart.yaml", *given))
    run = Run(tiny("quickstart.yaml", *given, "MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False"))
    trunk = run.model.backbone.bottom_up.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(reference.eval().children())[:-2])(images)
        torch.testing.assert_close(trunk(images)["res5"], expected, rtol=1e-5, atol=1e-5)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("bomb_went_off"),))


def test_a_pickle_with_code_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({"model": {"backbone.stem": Bomb()}, "__author__": "somebody"}))
    cfg = tiny("quickstart.yaml", "MODEL.WEIGHTS", str(tmp_path / "bomb.pkl"))
    with pytest.raises(ValueError, match=r"bomb\.pkl"):
        Run(cfg)
    assert not (tmp_path / "bomb_went_off").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL.WEIGHTS", "nothing.pth"), "nothing.pth: no such file"),
        (("MODEL.WEIGHTS", "imagenet://resnet18/V9"), "no weights 'V9' for resnet18; write one of"),
        (("MODEL.WEIGHTS", "imagenet://resnet50/IMAGENET1K_V1"), "resnet50"),
        (("MODEL.RESNET_BACKBONE.ARCH", "resnet19"), "must be one of plain18"),
        (("MODEL.BACKBONE.NAME", "build_imagenet_fpn"), "did you mean build_imagenet_fpn_backbone"),
        (("MODEL.FPN.IN_FEATURES", "('res2', 'res3', 'res4')"), "leave res5 unused"),
        (("DATASETS.TRAIN", "('coco_2017_train',)"), "prepare_coco.py --year 2017"),
        (("DATASETS.TRAIN", "('voc_2007_trainval',)"), "'voc_2007_trainval' is not there"),
        (("DATASETS.TRAIN", "('shape_train',)"), "did you mean shapes_train"),
        (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
        (
            ("SOLVER.ACCUMULATION_STEPS", "2"),
            "SOLVER.ACCUMULATION_STEPS is 2, of which the Detectron2 engine knows only 1",
        ),
        (
            ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
            "of which the Detectron2 engine knows only 'value' or 'norm'",
        ),
        (("SOLVER.AMP.ENABLED", "True"), "mixed precision on GPUs only"),
        (("MODEL.RESNET_BACKBON.ARCH", "resnet18"), "the nearest that it obeys is MODEL.RESNET_BACKBONE.ARCH"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tiny, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("resnet_backbone.weights.download.BACKOFF_S", 0.0)
    with pytest.raises((ValueError, OSError), match=message):
        Run(tiny("quickstart.yaml", *words))
    assert not (tmp_path / "output").exists()


def test_a_config_with_code_in_it_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_text("MODEL:\n  WEIGHTS: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="not a YAML file that can be read safely"):
        load_config(tmp_path / "bad.yaml")


def test_the_command_line_picks_detectron2_and_ends_with_json(tiny, shapes):
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "2")
    path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
    path.write_text(cfg.dump())
    command = [sys.executable, ROOT / "tools" / "train_net.py", "--config-file", path]
    there = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": there, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(shapes)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["shapes_val"]["bbox"].keys() >= {"AP", "AP50", "AP-star"}
    assert "d2.engine" in done.stdout

    wrong = subprocess.run([*command, "SOLVER.IMS_PER_BATC", "2"], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: the command line: the Detectron2 engine does not obey")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("SOLVER.LR_SCHEDULER_NAME", "Foo"), "SOLVER.LR_SCHEDULER_NAME is 'Foo', of which"),
        (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH is 0; it must be 1 or more"),
        (("SOLVER.BASE_LR", "0.0"), "SOLVER.BASE_LR is 0.0; it must be above 0"),
        (("SOLVER.BIAS_LR_FACTOR", "-1.0"), "SOLVER.BIAS_LR_FACTOR is -1.0; it must be 0 or more"),
        (("SOLVER.WEIGHT_DECAY_BIAS", "-1.0"), "SOLVER.WEIGHT_DECAY_BIAS is -1.0; it must be 0 or more"),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.MAX_ITER", "100"),
            r"fails after the last step.*Write WarmupMultiStepLR, .* SOLVER.STEPS \[25, 50, 75\]",
        ),
        (("MODEL.PIXEL_STD", "(1.0,)"), "it must have 3 values"),
        (("MODEL.KEYPOINT_ON", "True"), "MODEL.KEYPOINT_ON is True, of which"),
        (("MODEL.RPN.HEAD_NAME", "RPNHead"), "did you mean StandardRPNHead"),
        (
            ("FLOAT32_PRECISION", "exact"),
            "FLOAT32_PRECISION is 'exact', of which .* knows only '' or 'highest' or 'high' or 'medium'",
        ),
        (
            ("FLOAT32_PRECISION", "highest", "TF32", "everywhere"),
            "FLOAT32_PRECISION highest means TF32 nowhere, and TF32 is everywhere: leave one of the two out",
        ),
        (("DATALOADER.REPEAT_THRESHOLD", "0.01"), "write RepeatFactorTrainingSampler, or 0.0"),
        (("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"), "SAMPLER_TRAIN is 'RandomSubset.*, of which"),
        (
            ("SOLVER.REFERENCE_WORLD_SIZE", "4"),
            "REFERENCE_WORLD_SIZE is 4; write .*IMS_PER_BATCH 2 .*divides it",
        ),
        (
            ("TEST.PRECISE_BN.ENABLED", "True", "MODEL.RESNET_BACKBONE.NORM", "FrozenBN"),
            "TEST.PRECISE_BN.ENABLED is for batch norms that train, .*NORM 'FrozenBN'.: write False, or NORM BN",
        ),
        (("MODEL.RESNET_BACKBONE.COMPILE", "default"), "there is no no-such-compiler"),
        (("MODEL.FPN.NORM", "bn"), "Detectron2 cannot build what the config describes: KeyError: 'bn'"),
        (
            ("MODEL.ROI_HEADS.IN_FEATURES", "('p2', 'p9')"),
            "reads MODEL.ROI_HEADS.IN_FEATURES .'p2', 'p9'., which must be some of",
        ),
        (
            ("MODEL.MASK_ON", "True"),
            "(?s)as RLE, not as polygons: .*write INPUT.MASK_FORMAT: bitmask",
        ),
    ],
)
def test_mistakes_of_values_are_told_before_anything_is_written(tiny, tmp_path, monkeypatch, words, message):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=message):
        Run(tiny("quickstart.yaml", *words))
    assert not (tmp_path / "output").exists()


def test_augmented_tests_of_other_detectors_are_refused(tiny):
    with pytest.raises(ValueError, match="augments tests of GeneralizedRCNN only, not of RetinaNet"):
        tiny("retinanet/r18_fpn.yaml", "TEST.AUG.ENABLED", "True")
    with pytest.raises(ValueError, match="RetinaNet has no masks"):
        tiny("retinanet/r18_fpn.yaml", "MODEL.MASK_ON", "True")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), (True, False)),
        (("FLOAT32_PRECISION", "highest"), (False, False)),
        (("FLOAT32_PRECISION", "high"), (True, True)),
        (("FLOAT32_PRECISION", "medium", "TF32", "everywhere"), (True, True)),
        (("TF32", "nowhere"), (False, False)),
    ],
)
def test_float32_precision_is_obeyed(tiny, words, expected):
    """For convolutions and matrix products, after ``detectron2.engine.default_setup`` has set those."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    precision = words[1] if words and words[0] == "FLOAT32_PRECISION" else "high"  # of whatever ran before
    try:
        torch.set_float32_matmul_precision(precision)
        set_up_process(tiny("quickstart.yaml", "KEEP_FREED_MEMORY", "False", *words))
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == expected
        assert torch.get_float32_matmul_precision() == (precision if expected[1] else "highest")  # as compilers read it
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


WAITING = """
import torch
from resnet_backbone.detectron2_plugin.run import launch_run

def main():
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    print("waits", backend.options._timeout, flush=True)

if __name__ == "__main__":
    launch_run(main, 2, 1, 0, "", ())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes on the CPU")
def test_processes_wait_for_one_that_checks_or_scores_alone(tmp_path, monkeypatch):
    (tmp_path / "waiting.py").write_text(WAITING)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, tmp_path / "waiting.py"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == [f"waits {PATIENCE}"] * 2, done.stderr
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(OSError, match="--num-gpus 2: torch finds 1 on this machine"):
        launch_run(print, 2, 1, 0, "", ())


@pytest.mark.parametrize("batch", ["2", "4"])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_step_that_the_processes_cannot_share_is_refused(tiny, tmp_path, monkeypatch, batch, sampler):
    cfg = tiny("quickstart.yaml", "SOLVER.IMS_PER_BATCH", batch, "DATALOADER.SAMPLER_TRAIN", sampler)
    cfg.MODEL.DEVICE = "cuda"
    for counting in ("detectron2.utils.comm.get_world_size", "resnet_backbone.engine.run.process_count"):
        monkeypatch.setattr(counting, lambda: 3)
    with pytest.raises(ValueError, match=f"IMS_PER_BATCH {batch} must be a multiple of the 3 processes .*BATCH 3"):
        Run(cfg)
    assert not (tmp_path / "output").exists()


def test_a_batch_for_other_processes_is_scaled_by_the_linear_rule(tiny):
    """As Detectron2 does, but before anything is checked, and written down."""
    cfg = tiny("quickstart.yaml", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.REFERENCE_WORLD_SIZE", "2")
    rate = cfg.SOLVER.BASE_LR
    Run(cfg)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.REFERENCE_WORLD_SIZE) == (2, rate / 2, 1)
    assert (solver.MAX_ITER, tuple(solver.STEPS), solver.CHECKPOINT_PERIOD) == (8, (6,), 4)
    with pytest.raises(ValueError, match="SOLVER.CHECKPOINT_PERIOD is 0"):
        cfg = tiny("quickstart.yaml", "SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.CHECKPOINT_PERIOD", "1")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
            cfg.MODEL.DEVICE = "cuda"
            Run(cfg)


@pytest.fixture
def trained(tiny) -> Path:
    """The output folder of a run of one step."""
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    Run(cfg).start()
    return Path(cfg.OUTPUT_DIR)


def test_nothing_of_a_part_is_left_over(tiny, trained):
    """A head of two layers does not pass for one of one; a whole head that is not asked for may stay in the file."""
    state = torch.load(trained / "model_final.pth", weights_only=True)
    state["model"]["roi_heads.mask_head.deconv.weight"] = torch.zeros(2)
    torch.save(state, trained / "with_masks.pth")
    own = ("OUTPUT_DIR", f"{trained}_eval")
    Run(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(trained / "with_masks.pth"), *own), eval_only=True)
    state["model"]["roi_heads.box_head.fc3.weight"] = torch.zeros(2)
    torch.save(state, trained / "three_layers.pth")
    with pytest.raises(
        ValueError, match=r"1 tensors of the file fit nothing in the model: roi_heads\.box_head\.fc3\.weight"
    ):
        Run(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(trained / "three_layers.pth"), *own), eval_only=True)


def test_only_a_whole_detector_is_evaluated_or_goes_on(tiny, trained):
    state = torch.load(trained / "model_final.pth", weights_only=True)
    state["model"] = {name: value for name, value in state["model"].items() if not name.startswith("proposal_")}
    torch.save(state, trained / "half.pth")
    (trained / "last_checkpoint").write_text("half.pth")
    half = ("MODEL.WEIGHTS", str(trained / "half.pth"), "OUTPUT_DIR", f"{trained}_eval")
    for given, words in ((half, {"eval_only": True}), ((), {"resume": True})):
        with pytest.raises(ValueError, match="than the config describes; 6 tensors of the model are not in the file"):
            Run(tiny("quickstart.yaml", *given), **words)
    del state["trainer"]
    torch.save(state, trained / "half.pth")
    with pytest.raises(ValueError, match="no checkpoint of a run on Detectron2"):
        Run(tiny("quickstart.yaml"), resume=True)
    with pytest.raises(ValueError, match="does not fit resnet18"):
        (trained / "last_checkpoint").write_text("model_final.pth")
        Run(tiny("quickstart.yaml", "MODEL.RESNET_BACKBONE.NORM", "GN"), resume=True)


def test_a_run_that_cannot_start_leaves_the_earlier_one_to_go_on_with(tiny, trained):
    with pytest.raises(ValueError, match="knows only"):
        Run(tiny("quickstart.yaml", "SOLVER.LR_SCHEDULER_NAME", "Foo")).start()
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("SEED", "8"), "the run to resume has the seed 7: write SEED 7"),
        (("MODEL.BACKBONE.FREEZE_AT", "2"), "trained groups of .* write FREEZE_AT and NORM of MODEL, .*its config"),
        (("SOLVER.WEIGHT_DECAY_BIAS", "0.0"), "trained groups of"),
    ],
)
def test_what_a_run_cannot_go_on_with_leaves_it_as_it_is(tiny, trained, words, message):
    files = [path for path in trained.rglob("*") if path.is_file() and path.name != "log.txt"]
    before = [path.read_bytes() for path in files]
    with pytest.raises(ValueError, match=message):
        Run(tiny("quickstart.yaml", *words), resume=True)
    assert [path.read_bytes() for path in files] == before and b"SEED: 7" in b"".join(before)


def test_iterations_that_count_by_processes_go_on_with_as_many(tiny, trained, monkeypatch):
    run = Run(tiny("quickstart.yaml", "SOLVER.REFERENCE_WORLD_SIZE", "1"), resume=True)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="was 1 in the run so far and is 2 now: resume with 1 processes"):
        run._check_resumed(run.model, trained / "model_final.pth")


def test_mixed_precision_may_begin_with_a_resume(tiny, trained, capsys):
    """Looked at without a step: Detectron2 makes these on a GPU only."""
    cfg = tiny("quickstart.yaml")
    run = Run(cfg, resume=True)
    cfg.SOLVER.AMP.ENABLED = True
    trainer = Trainer(cfg, run.model, {})
    trainer.resume(run.resumed)
    assert trainer.start_iter == 1 and "was not in mixed precision" in capsys.readouterr().out


def test_an_evaluation_leaves_the_config_of_a_training_as_it_is(tiny, trained):
    """Repeated in its folder, the same; with other settings, refused."""
    config = (trained / "config.yaml").read_bytes()
    words = ("SOLVER.MAX_ITER", "1", "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    assert "shapes_val" in Run(tiny("quickstart.yaml", *words), eval_only=True).start()
    assert (trained / "config.yaml").read_bytes() == config
    with pytest.raises(ValueError, match=rf"OUTPUT_DIR {trained}_eval \(TEST.DETECTIONS_PER_IMAGE is .* 7 in this"):
        Run(tiny("quickstart.yaml", *words, "TEST.DETECTIONS_PER_IMAGE", "7"), eval_only=True)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty; add MODEL.WEIGHTS"):
        Run(tiny("quickstart.yaml", "OUTPUT_DIR", f"{trained}_eval"), eval_only=True)
    with pytest.raises(FileNotFoundError, match="no file output/none.pth"):
        Run(tiny("quickstart.yaml", "MODEL.WEIGHTS", "output/none.pth"), eval_only=True)


def test_evaluating_needs_no_training_data(tiny, trained):
    words = ("MODEL.WEIGHTS", str(trained / "model_final.pth"), "OUTPUT_DIR", f"{trained}_eval")
    words += ("DATASETS.TRAIN", "('coco_2017_train',)")
    assert "shapes_val" in Run(tiny("quickstart.yaml", *words), eval_only=True).start()


def test_a_detector_that_does_not_say_its_input_is_refused(tiny, trained):
    state = torch.load(trained / "model_final.pth", weights_only=True)
    torch.save({"model": state["model"]}, trained / "bare.pth")
    words = ("MODEL.WEIGHTS", str(trained / "bare.pth"))
    with pytest.raises(ValueError, match="does not say which input it was trained on"):
        Run(tiny("quickstart.yaml", *words))
    Run(tiny("quickstart.yaml", *words, "MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False"))


def test_annotations_whose_ids_repeat(tiny, shapes, tmp_path):
    folder = shapes / "shapes"
    data = json.loads((folder / "annotations" / "train.json").read_text())
    for note in data["annotations"]:
        note["id"] = 1
    (tmp_path / "own.json").write_text(json.dumps(data))
    cfg = tiny("quickstart.yaml", "DATASETS.TRAIN", "('own',)")
    cfg.DATASETS.OWN = [{"NAME": "own", "JSON": str(tmp_path / "own.json"), "IMAGES": str(folder / "train")}]
    Run(cfg)
    records = DatasetCatalog.get("own")
    assert sum(len(record["annotations"]) for record in records) == len(data["annotations"])
