"""Which run folders are taken, which are refused and with which words."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from resnet_backbone.compare.runs import read_runs
from resnet_backbone.metrics.run_facts import read_facts
from resnet_backbone.torchvision_plugin.config import load_config


def change_facts(folder: Path, inference: str = "inference", **values: object) -> None:
    facts = asdict(read_facts(folder / inference)) | values
    (folder / inference / "facts.json").write_text(json.dumps(facts))


def test_what_is_read(pair):
    first, second = read_runs(pair)
    assert (first.name, second.name) == ("first", "second")
    assert (first.arch, second.arch) == ("resnet18", "resnet34")
    assert first.settings["SOLVER.WARMUP_ITERS"] != second.settings["SOLVER.WARMUP_ITERS"] == 7
    assert first.figures["bbox"]["AP"] < second.figures["bbox"]["AP"]
    assert first.training.iterations == 60


def test_names(pair, tmp_path):
    assert [run.name for run in read_runs(pair, ["VGG", "ResNet"])] == ["VGG", "ResNet"]
    twin = shutil.copytree(pair[0], tmp_path / "twin" / "first")
    names = [run.name for run in read_runs([pair[0], twin])]
    assert names == [f"{pair[0].parent.name}/first", "twin/first"]
    with pytest.raises(ValueError, match="2 runs need 2 names, got 1"):
        read_runs(pair, ["VGG"])
    with pytest.raises(ValueError, match="two runs are called VGG"):
        read_runs(pair, ["VGG", "VGG"])


def test_no_run_is_nothing_to_look_at():
    with pytest.raises(ValueError, match="name the folder of a run"):
        read_runs([])


def test_the_same_folder_twice(pair, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(pair[0])
    with pytest.raises(ValueError, match="same folder") as error:
        read_runs([pair[0], link])
    assert str(pair[0]) in str(error.value) and str(link) in str(error.value)


def test_no_run_folder(pair, tmp_path):
    with pytest.raises(ValueError, match="no folder .*nowhere"):
        read_runs([pair[0], tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no config.yaml"):
        read_runs([pair[0], tmp_path])


@pytest.mark.parametrize("part", ["coco_instances_results.json", "metrics.json", "facts.json"])
def test_a_run_that_is_not_evaluated_gets_a_command_that_can_be_run(make_run, pair, part):
    folder = make_run("old run")
    (folder / "inference" / part).unlink()
    with pytest.raises(ValueError, match=f"not evaluated: no {part}") as error:
        read_runs([pair[0], folder])
    words = shlex.split(str(error.value).splitlines()[-1])
    assert words[:2] == ["resnet-backbone", "train"]
    config, (only, *overrides) = words[words.index("--config-file") + 1], words[words.index("--eval-only") :]
    cfg = load_config(config, overrides)
    assert only == "--eval-only"
    assert cfg.MODEL.WEIGHTS == str(folder / "model_final.pth") and cfg.OUTPUT_DIR == str(folder)


def test_a_training_that_is_not_over_gets_the_command_that_goes_on(make_run, pair):
    folder = make_run("stopped")
    (folder / "model_final.pth").unlink()
    with pytest.raises(ValueError, match="60 of 60 iterations .* no model_final.pth"):
        read_runs([pair[0], folder])
    lines = (folder / "metrics.json").read_text().splitlines()
    (folder / "metrics.json").write_text("\n".join(lines[:3]) + "\n")
    (folder / "model_final.pth").write_bytes(b"of an earlier run")
    with pytest.raises(ValueError, match="40 of 60 iterations") as error:
        read_runs([pair[0], folder])
    assert f"--resume OUTPUT_DIR {folder}" in str(error.value)


def test_an_evaluation_on_the_way_is_not_the_final_one(make_run, pair):
    """As after a final evaluation that failed: the files are those of iteration 30 of 60."""
    folder = make_run("half")
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    figures = json.loads((folder / "inference/metrics.json").read_text())
    on_the_way, last = (index for index, line in enumerate(lines) if "shapes_val/bbox/AP" in line)
    lines[on_the_way]["shapes_val/bbox/AP"] = figures["bbox"]["AP"]

    def write(records):
        (folder / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))

    write(lines)
    assert read_runs([pair[0], folder])[1].training.iterations == 60
    write(lines[:last] + lines[last + 1 :])
    with pytest.raises(ValueError, match="was evaluated after 30 of 60 iterations, and not since") as error:
        read_runs([pair[0], folder])
    assert f"--eval-only MODEL.WEIGHTS '{folder / 'model_final.pth'}'".replace("'", "") in str(error.value)


@pytest.mark.parametrize("content", ['{"bbox": {"AP"', "[]", '{"bbox": 3}'])
def test_figures_that_are_none_name_their_file(make_run, pair, content):
    folder = make_run("broken")
    (folder / "inference/metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"inference/metrics\.json is .*evaluate again"):
        read_runs([pair[0], folder])


def test_an_evaluation_alone_is_enough(make_run, pair):
    run = read_runs([pair[0], make_run("evaluated", trained=False)])[1]
    assert run.training is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dataset": "shapes_test"}, "one was evaluated on shapes_val, the other on shapes_test"),
        ({"class_names": ["cat"]}, "their classes are .*square.* and cat"),
        ({"annotations_sha256": "0" * 64}, "were not the same file"),
    ],
)
def test_other_data_is_refused(make_run, pair, values, words):
    folder = make_run("other")
    change_facts(folder, **values)
    with pytest.raises(ValueError, match=words) as error:
        read_runs([pair[0], folder])
    assert str(pair[0]) in str(error.value) and str(folder) in str(error.value)


def test_several_test_sets(make_run, pair):
    folder = make_run("two", overrides=("DATASETS.TEST", "['shapes_val', 'shapes_train']"))
    (folder / "inference").rename(folder / "moved")
    (folder / "inference").mkdir()
    (folder / "moved").rename(folder / "inference/shapes_val")
    with pytest.raises(ValueError, match="choose one with --dataset, of shapes_val, shapes_train"):
        read_runs([pair[0], folder])
    assert read_runs([pair[0], folder], dataset="shapes_val")[1].facts.dataset == "shapes_val"
    with pytest.raises(ValueError, match="not evaluated on shapes_train, only on shapes_val"):
        read_runs([pair[0], folder], dataset="shapes_train")


def test_results_of_another_evaluation_are_refused(make_run, pair, compare):
    folder = make_run("stale")
    results = folder / "inference/coco_instances_results.json"
    found = json.loads(results.read_text())
    results.write_text(json.dumps(found[:-2]))
    with pytest.raises(ValueError, match="not of one evaluation"):
        compare([pair[0], folder])
    results.write_text(json.dumps([{**found[0], "image_id": 10**6}]))
    with pytest.raises(ValueError, match="image_id 1000000, which is not among"):
        compare([pair[0], folder])


def test_annotations_that_moved_or_changed(shapes, make_run, compare, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    folders = [make_run(name, data=data, seed=seed) for seed, name in enumerate(["a", "b"])]
    ap = compare(folders).main.bootstrap.runs[0].figures["AP"].value
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="annotation file is not at .*--annotations JSON"):
        compare(folders)
    assert compare(folders, data_root=moved).main.bootstrap.runs[0].figures["AP"].value == ap
    json_path = moved / "shapes/annotations/val.json"
    found = compare(folders, annotations=json_path, images=moved / "shapes/val", num_pictures=1)
    assert found.main.bootstrap.runs[0].figures["AP"].value == ap and len(found.gallery) == 1
    with pytest.raises(FileNotFoundError, match="image folder is not at .*--pictures 0"):
        compare(folders, annotations=json_path, num_pictures=1)
    json_path.write_text(json_path.read_text() + " ")
    with pytest.raises(ValueError, match="has changed since"):
        compare(folders, annotations=json_path)
