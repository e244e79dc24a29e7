"""tools/demo.py on images, folders and videos, with runs of both engines, tiny but real."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnet_backbone.data.images.read import read_image
from resnet_backbone.engine.checkpoint import engine_of, find_run
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.inference import Predictor
from resnet_backbone.torchvision_plugin.run import Run
from tests.helpers import TINY
from tests.processes import Forked, script

SMALL = [*TINY, "DATASETS.TEST", "[]", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.MAX_ITER", "1"]
ALL = ("--score", "0")


@pytest.fixture(scope="module")
def run_folder(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run on the torchvision engine."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(shapes))
        Run(load_config("quickstart.yaml", [*SMALL, "OUTPUT_DIR", str(folder)])).start()
    return folder


@pytest.fixture
def demo(load_script, run_folder, capfd) -> Callable[..., tuple[int, str, str]]:
    """Runs the script: status, standard output and standard error of ``demo("--input", ...)``."""
    main = load_script("tools/demo.py").main

    def run(*words: str | Path, run: Path = run_folder) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(["--run", str(run), *map(str, words)])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def photo(shapes: Path) -> Path:
    return sorted((shapes / "shapes" / "val").iterdir())[0]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_a_folder_with_images_of_every_kind_and_broken_ones(demo, photo, tmp_path):
    """What is broken is reported, the rest goes on, and each is read as everywhere else."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    with Image.open(photo) as image:
        colors = image.convert("RGB")
    colors.save(folder / "a.png")
    colors.convert("L").save(folder / "gray.jpg")
    colors.convert("RGBA").save(folder / "below" / "alpha.png")
    Image.fromarray(np.full((40, 60), 30000, dtype=np.uint16)).save(folder / "deep.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    colors.save(folder / "turned.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")

    status, out, err = demo("--input", folder, "--output", tmp_path / "out", *ALL)
    assert status == 1
    assert len(out.splitlines()) == 5 and " -> " in out
    assert "5 of 7 read, 1 other file skipped (not an image, or hidden)" in err
    for name in ("broken.jpg", "empty.png"):
        assert f"{name}: cannot be read as an image" in err
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "below/alpha.png", "deep.tif.png", "gray.jpg", "turned.jpg"]
    width, height = size_of(tmp_path / "out" / "a.png")
    assert size_of(tmp_path / "out" / "turned.jpg") == (height, width)


def test_json_has_what_the_predictor_finds_and_nothing_else_is_printed(demo, run_folder, photo, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    status, out, _ = demo("--input", photo, tmp_path / "broken.jpg", "--json", "--output", tmp_path / "o", *ALL)
    assert status == 1
    first, second = map(json.loads, out.splitlines())
    run = find_run(run_folder)
    image = read_image(photo)
    predictor = Predictor(load_config(run.config_file, ["MODEL.WEIGHTS", str(run.weights)]))
    found = predictor(image)
    assert len(found) > 5
    assert first == {
        "file": str(photo),
        "height": image.shape[1],
        "width": image.shape[2],
        "boxes": found.boxes.tolist(),
        "labels": [predictor.class_names[label] for label in found.labels.tolist()],
        "scores": found.scores.tolist(),
        "picture": str(tmp_path / "o" / photo.name),
    }
    assert second.keys() == {"file", "error"} and "cannot be read as an image" in second["error"]


def test_the_score_decides_what_is_kept(demo, photo, tmp_path):
    def boxes(score: str) -> int:
        status, out, _ = demo("--input", photo, "--json", "--output", tmp_path / "o", "--score", score)
        assert status == 0
        return len(json.loads(out)["boxes"])

    assert boxes("0") > boxes("1.0") == 0


def write_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12.5, size)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * number, dtype=np.uint8))
    writer.release()


def test_a_video_becomes_a_video_of_the_same_speed_and_length(demo, tmp_path):
    write_clip(tmp_path / "clip.mp4", 5, (96, 64))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    words = ("--input", tmp_path / "clip.mp4", tmp_path / "broken.mp4", "--json", *ALL)
    status, out, err = demo(*words, "--output", tmp_path / "out", "--max-size", "80")
    assert status == 1 and "broken.mp4: cannot be read as a video" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["frame"] for line in lines if "frame" in line] == [0, 1, 2, 3, 4]
    assert all((line["height"], line["width"]) == (64, 96) for line in lines[:5])
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 5 and frames[0].shape[1] == 80
    assert frames[0].mean() < frames[4].mean()
    assert not (tmp_path / "out" / "broken.mp4").exists()


def test_names_that_meet_are_kept_apart_and_inputs_are_never_written_over(demo, photo, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(photo, tmp_path / folder / "x.png")
    status, _, _ = demo("--input", tmp_path / "one" / "x.png", tmp_path / "two" / "x.png", "--output", tmp_path / "out")
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.png", "x_2.png"]
    status, _, err = demo("--input", tmp_path / "one", "--output", tmp_path / "one")
    assert status == 1 and "would write over the input" in err
    assert (tmp_path / "one" / "x.png").read_bytes() == photo.read_bytes()


def test_a_single_picture_may_be_named_and_the_default_is_the_runs_folder(demo, run_folder, photo, tmp_path):
    assert demo("--input", photo, "--output", tmp_path / "new" / "found.jpg")[0] == 0
    assert max(size_of(tmp_path / "new" / "found.jpg")) >= 640, "a small image is enlarged, so that labels can be read"
    assert demo("--input", photo)[0] == 0
    assert (run_folder / "demo" / photo.name).is_file()
    shutil.rmtree(run_folder / "demo")


def test_mistakes_are_said_before_anything_is_done(demo, run_folder, photo, tmp_path):
    def error(*words: str | Path, **options: Path) -> str:
        status, out, err = demo(*words, **options)
        assert (status, out) == (1, "")
        return err

    assert "no such file or folder" in error("--input", tmp_path / "nowhere.jpg")
    assert "is one file, --input names 2" in error("--input", photo, run_folder / "log.txt", "--output", "x.png")
    assert "a video is saved as .mp4" in error("--input", photo, "--output", tmp_path / "x.mp4")
    assert "is not the output folder of a run" in error("--input", photo, run=tmp_path)
    assert "write --engine torchvision" in error("--input", photo, "--engine", "detectron2")
    assert "does not obey the key INPUT.SIZE" in error("--input", photo, "--score", "0", "INPUT.SIZE", "3")
    (tmp_path / "config.yaml").write_text((run_folder / "config.yaml").read_text())
    assert "has no checkpoint" in error("--input", photo, run=tmp_path)
    assert not (run_folder / "demo").exists()


def test_keys_follow_two_dashes(demo, photo, tmp_path):
    words = ("--json", *ALL, "--output", tmp_path / "o", "--input", photo, "--")
    status, out, _ = demo(*words, "TEST.DETECTIONS_PER_IMAGE", "3")
    assert status == 0 and len(json.loads(out)["boxes"]) == 3


def test_a_run_that_has_not_ended_is_used_with_a_warning(demo, run_folder, photo, tmp_path, caplog):
    shutil.copytree(run_folder, tmp_path / "cut")
    (tmp_path / "cut" / "model_final.pth").rename(tmp_path / "cut" / "model_0000000.pth")
    (tmp_path / "cut" / "last_checkpoint").write_text("model_0000000.pth")
    status, _, _ = demo("--input", photo, "--output", tmp_path / "o", run=tmp_path / "cut")
    assert status == 0 and "has not ended: taking its last checkpoint, model_0000000.pth" in caplog.text


def test_a_config_with_weights_in_place_of_a_run(load_script, run_folder, photo, tmp_path):
    words = ["--config-file", run_folder / "config.yaml", "--output", tmp_path / "o", "--input", photo, "--"]
    main = load_script("tools/demo.py").main
    assert main([*map(str, words), "MODEL.WEIGHTS", str(run_folder / "model_final.pth")]) == 0
    assert (tmp_path / "o" / photo.name).is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_run_from_a_machine_with_a_gpu(demo, run_folder, photo, tmp_path, caplog):
    shutil.copytree(run_folder, tmp_path / "gpu")
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["MODEL"]["DEVICE"], config["SOLVER"]["AMP"] = "cuda", {"ENABLED": True, "DTYPE": "float16"}
    (tmp_path / "gpu" / "config.yaml").write_text(yaml.safe_dump(config))
    status, _, _ = demo("--input", photo, "--output", tmp_path / "o", run=tmp_path / "gpu")
    assert status == 0 and "there is none here: using the CPU" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="a display without a server is X11's")
def test_show_without_a_display_is_an_error_and_no_crash(run_folder, photo):
    """In a process of its own, since OpenCV would end this one."""
    main = script("tools/demo.py", "--run", run_folder, "--input", photo, "--show")
    status, output = Forked(main, environment={"DISPLAY": ":97", "WAYLAND_DISPLAY": ""}).finish()
    assert status == 1, output
    assert "error: --show: no window can be opened here" in output and "write --output DIR" in output
    assert "Traceback" not in output


def test_which_engine_wrote_a_checkpoint(run_folder, tmp_path):
    assert engine_of(run_folder / "model_final.pth") == "torchvision"
    for names, engine in (
        (("backbone.bottom_up.stem.conv1.weight", "head.classification_head.cls_logits.weight"), "torchvision"),
        (("backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"), "detectron2"),
        (("backbone.bottom_up.stem.conv1.weight", "head.cls_score.weight"), "detectron2"),
    ):
        torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "x.pth")
        assert engine_of(tmp_path / "x.pth") == engine
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no detector"):
        engine_of(tmp_path / "x.pth")


def test_a_run_of_detectron2_is_used_by_itself(demo, shapes, photo, tmp_path, monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin import config, run

    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    folder = tmp_path / "d2"
    trained = run.Run(config.load_config("quickstart.yaml", [*SMALL, "OUTPUT_DIR", str(folder)]))
    trained.start()
    assert engine_of(folder / "model_final.pth") == "detectron2"
    status, out, _ = demo("--input", photo, "--json", *ALL, run=folder)
    found = json.loads(out.splitlines()[-1])  # the run above has set up Detectron2's logging in this process
    assert status == 0 and len(found["boxes"]) > 5 and set(found["labels"]) <= set(trained.class_names)
    assert Path(found["picture"]).is_file()
    status, _, err = demo("--input", photo, "--engine", "torchvision", run=folder)
    assert status == 1 and "is of the detectron2 engine" in err
