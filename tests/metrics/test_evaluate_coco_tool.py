"""tools/evaluate_coco.py on real annotations: ground truth as its own detections is perfect, with either backend."""

from __future__ import annotations

import json

import pytest

from tests.processes import Forked, script


@pytest.fixture
def tool(load_script):
    return load_script("tools/evaluate_coco.py")


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_perfect_detections(tool, coco_mini, tmp_path, capsys, backend):
    annotations = coco_mini / "annotations/instances_val2017.json"
    results = tmp_path / "results.json"
    kept = ("image_id", "category_id", "bbox")
    truth = [a for a in json.loads(annotations.read_text())["annotations"] if not a["iscrowd"]]
    results.write_text(json.dumps([{**{key: a[key] for key in kept}, "score": 0.9} for a in truth]))
    assert tool.main(["--annotations", str(annotations), "--results", str(results), "--backend", backend]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["bbox"]["AP"] == pytest.approx(100) and figures["bbox"]["AP50"] == pytest.approx(100)


def test_a_missing_file_is_one_line_and_status_1(tool, tmp_path, capsys):
    assert tool.main(["--annotations", str(tmp_path / "no.json"), "--results", str(tmp_path / "no.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no.json" in error


def test_what_makes_figures_doubtful_is_printed_last(tmp_path):
    images = [{"id": number, "file_name": f"{number}.png", "height": 80, "width": 96} for number in range(10)]
    boxes = [{"image_id": number, "category_id": 1, "bbox": [5, 5, 20, 20]} for number in range(10)]
    truth = {"images": images, "categories": [{"id": 1, "name": "cell"}]}
    truth["annotations"] = [{**box, "id": number + 1, "area": 400, "iscrowd": 0} for number, box in enumerate(boxes)]
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps([{**box, "score": 0.9} for box in boxes[:3]]))
    for tool in ("evaluate_coco", "evaluate_voc"):
        main = script(f"tools/{tool}.py", "--annotations", "t.json", "--results", "r.json")
        status, output = Forked(main, folder=tmp_path).finish()
        *_, figures, doubt = output.splitlines()
        assert status == 0
        assert json.loads(figures) and "7 of the 10 images with objects have no result" in doubt
