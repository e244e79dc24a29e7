"""--eval-only in the folder of a training: its config and figures stay those of the training."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from resnet_backbone.data.coco import table
from resnet_backbone.files.text import read_json
from resnet_backbone.torchvision_plugin.inference import Progress
from resnet_backbone.torchvision_plugin.run import Run


@pytest.fixture
def trained(tiny) -> Path:
    """The folder of a training."""
    cfg = tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1")
    Run(cfg).start()
    return Path(cfg.OUTPUT_DIR)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_evaluation_is_repeated_there_and_the_config_stays(tiny, trained, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(table, "read_json", lambda path, *rest: (read.append(path), read_json(path, *rest))[1])
    config = (trained / "config.yaml").read_bytes()
    figures = json.loads((trained / "inference" / "metrics.json").read_text())
    (trained / "inference" / "metrics.json").unlink()
    again = ("SOLVER.MAX_ITER", "1", "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    other_spelling = str(trained / ".." / trained.name)
    for words, resume in ((again, False), ((*again, "OUTPUT_DIR", other_spelling), False), (again[:2], True)):
        Run(tiny("quickstart.yaml", *words), eval_only=True, resume=resume).start()
        assert json.loads((trained / "inference" / "metrics.json").read_text()) == figures
        assert (trained / "config.yaml").read_bytes() == config
    assert [path.name for path in read] == ["val.json"] * 3  # once each


def test_other_evaluations_need_a_folder_of_their_own(tiny, trained, tmp_path):
    other = tmp_path / "other.pth"
    other.write_bytes((trained / "model_final.pth").read_bytes())
    before = contents(trained)
    own = ("SOLVER.MAX_ITER", "1", "MODEL.WEIGHTS", str(trained / "model_final.pth"))
    for words, reason in (
        ((*own, "TEST.DETECTIONS_PER_IMAGE", "7"), "TEST.DETECTIONS_PER_IMAGE is 100 in that training, 7 in this"),
        ((*own, "TEST.BOX_REFINEMENT.ENABLED", "True"), "TEST.BOX_REFINEMENT.ENABLED is False in that training"),
        ((*own, "DATASETS.TEST", "['shapes_train']"), "DATASETS.TEST is .*shapes_val"),
        ((*own[:2], "MODEL.WEIGHTS", str(other)), "other.pth is not its model_final.pth"),
    ):
        with pytest.raises(ValueError, match=f"give .* its own: OUTPUT_DIR {trained}_eval .*{reason}"):
            Run(tiny("quickstart.yaml", *words), eval_only=True)
        Run(tiny("quickstart.yaml", *words, "OUTPUT_DIR", str(tmp_path / "own")), eval_only=True)
    assert contents(trained) == before


@pytest.mark.parametrize("config", [None, "- no\n- config\n", "a: [\n"], ids=["missing", "a list", "broken"])
def test_a_training_whose_settings_cannot_be_read_is_left_alone(tiny, tmp_path, config):
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    if config is not None:
        (folder / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=r"its own: OUTPUT_DIR \S+_eval \(its settings cannot be read: "):
        Run(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(folder / "model_final.pth")), eval_only=True)


def test_progress_is_logged_at_most_every_few_seconds(caplog):
    caplog.set_level(logging.INFO, logger="resnet_backbone")
    often, never = Progress(4, every=0.0), Progress(4)
    for _ in range(4):
        time.sleep(0.01)
        often.step(1)
        never.step(1)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == [f"evaluated {done} of 4 images" for done in (1, 2, 3)]
    seconds = float(lines[0].split(", ")[1].split()[0])
    assert seconds >= 0.01 and lines[0].endswith(" s to go")
