"""What the pages show exists: files, targets, anchors, keys, options. Commands that need no download or GPU are run."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnet_backbone.classification.config import load_config as load_classification_config
from resnet_backbone.command import SCRIPTS as VERBS
from resnet_backbone.data.images.media import VideoWriter
from resnet_backbone.data.prepare.shapes import generate_shapes
from resnet_backbone.torchvision_plugin.config import load_config
from tests.helpers import TINY
from tests.processes import Forked, script

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
MANUAL = [ROOT / "README.md", *DOCS]  # what a user reads first
PAGES = [
    *MANUAL,
    *ROOT.glob("[A-Z]*.md"),
    *(p for f in ("benchmarks", "configs", "datasets", "examples") for p in (ROOT / f).rglob("*.md")),
]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}

# Of commands that are not run here, what they need.
NEEDS = {
    r"pip install|make setup|source ": "a download",
    r"prepare_(coco|bccd|cifar10)\.py|imagenet|cifar10_|bccd_|--table small|/small_": "a download",
    r"frcnn_": "GPUs",
    r"make test": "what this is a part of",
    r"torchvision://": "a download",
    r"\b(FILE|FOLDER|JSON|SOURCE)\b": "names of files of one's own",
}
# Words that make a command one of seconds.
STEPS = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[]"]
SHORTER = {
    "datasets/prepare_shapes.py": ["--train", "12", "--val", "4"],
    "tools/train_net.py": [
        *TINY,
        *STEPS,
        *["MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.WEIGHTS"],
        "",
    ],
    "tools/train_classifier.py": ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "4", *STEPS],
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and GitLab make them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def blocks(language: str) -> list[str]:
    return [found for page in MANUAL for found in re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.DOTALL)]


def commands() -> list[str]:
    """Every command of a block, without its comment, and every one in a sentence that has words behind the script."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    lines = [shlex.join(shlex.split(line, comments=True)).replace(" '&&' ", " && ") for line in lines]
    texts = [without_blocks(TEXT[page]) for page in MANUAL]
    inline = [" ".join(span.split()) for text in texts for span in re.findall(r"`([^`]+)`", text)]
    inline = [
        span for span in inline if re.match(r"(python )?(tools|datasets)/\w+\.py \S|resnet-backbone \S+ \S", span)
    ]
    found = [part for line in [*lines, *inline] for part in line.split(" && ")]
    found = [re.sub(r"^resnet-backbone ((?:prepare )?\S+)", as_script, part) for part in found]
    return list(dict.fromkeys(re.sub(r"^(\.venv/bin/)?(python )?(?=(tools|datasets)/)", "", part) for part in found))


def as_script(verb: re.Match[str]) -> str:
    """The script that a verb runs, as a path; KeyError for one that is not there."""
    return f"{VERBS[verb[1]].replace('.', '/')}.py"


COMMANDS = commands()
SCRIPTS = [command for command in COMMANDS if command.startswith(("tools/", "datasets/"))]
RUN = [command for command in COMMANDS if not any(re.search(need, command) for need in NEEDS)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_blocks(TEXT[page]))
    for link in (link for link in links if "://" not in link):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_reached_from_the_readme_and_leads_back():
    assert [page for page in DOCS if f"](docs/{page.name})" not in TEXT[ROOT / "README.md"]] == []
    assert [page for page in DOCS if "](../README.md#where-to-read-on)" not in TEXT[page]] == []


def test_every_example_is_linked_from_the_page_on_detectron2():
    folders = [page.parent.name for page in (ROOT / "examples").glob("*/README.md")]
    assert [
        name for name in folders if f"(../examples/{name}/README.md)" not in TEXT[ROOT / "docs/detectron2.md"]
    ] == []


def test_the_readme_is_two_screens():
    lines = TEXT[ROOT / "README.md"].splitlines()
    assert len(lines) <= 110 and max(map(len, lines)) <= 130


@pytest.mark.parametrize("page", MANUAL, ids=name_of)
def test_files_and_make_targets_exist(page):
    files = set(re.findall(r"\b(?:tools|datasets|configs|benchmarks|examples)/[\w./-]+\.\w+", TEXT[page]))
    assert [path for path in sorted(files) if not (ROOT / path).is_file()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXT[page], re.MULTILINE)) <= targets
    modules = re.findall(r"python -m (benchmarks[\w.]*)", TEXT[page])
    assert [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()] == []


def test_every_command_is_run_or_needs_what_is_not_here():
    assert [command for command in RUN if command not in [*SCRIPTS, "make train"]] == []
    assert [need for need in NEEDS if not any(re.search(need, command) for command in COMMANDS)] == []


class Parsed(Exception):
    """The words of a command line were understood, and nothing was done."""


@pytest.mark.parametrize("command", SCRIPTS)
def test_options_and_keys_of_commands_are_known(command, load_script, monkeypatch):
    def stopping(parse):
        def parse_only(self, args=None, namespace=None):
            raise Parsed(parse(self, args, namespace))

        return parse_only

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
    path, *words = shlex.split(command)
    with pytest.raises(Parsed) as caught:
        load_script(path).main(words)
    args = caught.value.args[0]
    config_file = Path(getattr(args, "config_file", None) or "FILE")
    if config_file.parts[0] == "configs":
        load = load_classification_config if "classification" in config_file.parts else load_config
        load(ROOT / config_file, args.opts)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: re.search(r"ARCH: (\w+)", block)[1])
def test_the_configs_of_the_pages_load(block, tmp_path):
    """Over the base that they name, or that the text names."""
    values = {"_BASE_": "Base-RCNN-FPN.yaml", **yaml.safe_load(block)}
    values["_BASE_"] = str(ROOT / "configs" / values["_BASE_"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    cfg = load_config(tmp_path / "mine.yaml")
    assert cfg.MODEL.WEIGHTS.startswith("imagenet://") and cfg.MODEL.RESNET_BACKBONE.ARCH in cfg.MODEL.WEIGHTS
    assert cfg.DATASETS.TRAIN == values.get("DATASETS", {}).get("TRAIN", cfg.DATASETS.TRAIN)


def test_train_load_and_predict_in_python(shapes, tmp_path, monkeypatch):
    """The block as it stands, on less data and with fewer steps."""
    (block,) = (block for block in blocks("python") if "load_detector" in block)
    for split in ("train", "val"):
        shutil.copytree(shapes / "shapes" / split, tmp_path / "FOLDER" / split)
        shutil.copy(shapes / f"shapes/annotations/{split}.json", tmp_path / "FOLDER" / split)
    shutil.copytree(shapes / "shapes/val", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("supervision")
    pytest.importorskip("pandas")
    words = [*TINY, "SOLVER.MAX_ITER", "2", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.WEIGHTS", ""]
    short = block.replace('{"SOLVER.MAX_ITER": 1000}', repr(words) + ', engine="torchvision"').replace("0.5", "0.0")
    assert short != block
    names: dict[str, Any] = {}
    exec(compile(short, "python.md", "exec"), names)
    assert len(names["table"]) == len(names["detections"]) == len(names["records"]) > 0
    assert (tmp_path / "found.png").is_file() and (tmp_path / "output/FOLDER/plan.yaml").is_file()


def test_the_networks_in_python(tmp_path, monkeypatch):
    """The block as it stands, but for weights that would be downloaded."""
    (block,) = (block for block in blocks("python") if "create_model" in block)
    local = re.sub(r'weights="\w+"', "weights=None", block)
    assert block.count("weights=") == local.count("weights=None") > 0
    monkeypatch.chdir(tmp_path)
    names = {"images": torch.zeros(1, 3, 64, 64)}
    before, last = local.rstrip().rsplit("\n", 1)
    exec(compile(before, "python.md", "exec"), names)
    assert names["logits"].shape == (1, 1000) and names["features"]["res2"].shape == (1, 256, 16, 16)
    torch.save(names["trunk"].state_dict(), "my_weights.pth")
    exec(compile(last, "python.md", "exec"), names)
    assert names["report"]


@pytest.fixture
def folder(tmp_path):
    """Where the commands are called: with the configs, photographs, a video, and data and a config of one's own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    generate_shapes(tmp_path / "own", num_train=6, num_val=1, seed=1)
    (tmp_path / "data").mkdir()
    (tmp_path / "own/train").rename(tmp_path / "data/images")
    document = json.loads((tmp_path / "own/annotations/train.json").read_text(encoding="utf-8"))
    for split, images in (("train", document["images"][:4]), ("val", document["images"][4:])):
        ids = {image["id"] for image in images}
        annotations = [box for box in document["annotations"] if box["image_id"] in ids]
        part = {**document, "images": images, "annotations": annotations}
        (tmp_path / f"data/{split}.json").write_text(json.dumps(part), encoding="utf-8")
    (example,) = (block for block in blocks("yaml") if "my_train" in block)
    (tmp_path / "mine.yaml").write_text(example.replace("_BASE_: ", "_BASE_: configs/"), encoding="utf-8")
    Image.new("RGB", (90, 60), (200, 100, 50)).save(tmp_path / "photo.jpg")
    with VideoWriter(tmp_path / "clip.mp4", 5.0) as video:
        for shade in (50, 200):
            video.write(np.full((48, 64, 3), shade, dtype=np.uint8))
    return tmp_path


@pytest.mark.slow
def test_commands_run(folder):
    """In the order of the pages, on less data and with fewer steps, unless they need what is not here."""
    (recipe,) = re.findall(r"^train:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    train = [line.replace("$(RUN)", "").replace("$(ARGS)", "").strip() for line in recipe.splitlines()]
    environment = {"DETECTRON2_DATASETS": str(folder / "datasets"), "PYTHONPATH": str(ROOT)}
    for command in RUN:
        for line in train if command == "make train" else [command]:
            path, *words = shlex.split(line)
            words = [*words, *SHORTER.get(path, [])]
            status, output = Forked(script(path, *words), folder=folder, environment=environment).finish()
            assert status == 0, f"{line}\n{output[-3000:]}"
    assert (folder / "output/quickstart/demo/photo.jpg").is_file() and (folder / "detector.onnx").is_file()
