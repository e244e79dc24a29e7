"""Every key of the schema is obeyed by both engines, or refused: another value changes what is built."""

from __future__ import annotations

import copy
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from resnet_backbone.config.reader import leaves, value_of
from resnet_backbone.config.schema import ADDED, DETECTRON2_KEYS, SHARED, ConfigError, Key, detectron2_alone
from resnet_backbone.models.registry import create_model
from tests.config.obeyed import ALSO, BASES, Row

ENGINES = ("torchvision", "detectron2")


def _engine(name: str) -> Any:
    if name == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    return importlib.import_module(f"tests.config.observe_{name}")


@pytest.fixture(autouse=True)
def _data(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def places(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for ``{name}`` in the rows: data, and weights that were trained elsewhere."""
    folder = tmp_path_factory.mktemp("places")
    broken = folder / "broken"
    (broken / "val").mkdir(parents=True)
    document = json.loads((shapes / "shapes/annotations/val.json").read_text())
    for image in document["images"]:
        content = (shapes / "shapes/val" / image["file_name"]).read_bytes()
        (broken / "val" / image["file_name"]).write_bytes(content[: len(content) // 2])
    (broken / "val.json").write_text(json.dumps(document))
    first = document["images"][0]["id"]
    kept = [note for note in document["annotations"] if note["image_id"] != first]
    (broken / "empty.json").write_text(json.dumps({**document, "annotations": kept}))
    torch.manual_seed(5)
    state = create_model("resnet18").state_dict()
    torch.save(state, folder / "classifier.pth")
    torch.save({name: t for name, t in state.items() if not name.startswith("res5")}, folder / "partial.pth")
    return {
        "shapes": str(shapes / "shapes"),
        "broken": str(broken),
        "classifier": str(folder / "classifier.pth"),
        "partial": str(folder / "partial.pth"),
    }


def _cases(name: str) -> list[Any]:
    """Each key that an engine has, and its row; engines are imported when they are asked for."""
    try:
        engine = _engine(name)
    except pytest.skip.Exception:
        return [pytest.param(name, None, None, id=name)]
    cases = [
        pytest.param(name, key, engine.ALL_ROWS.get(key.name), id=f"{name}-{key.name}")
        for key in engine.KEYS.values()
        if key.name not in engine.NOT_SEEN
    ]
    more = [(engine.KEYS[key], row) for key, row in ALSO]
    return cases + [
        pytest.param(name, key, row, id=f"{name}-{key.name}-{row.observer}-{row.base}") for key, row in more
    ]


def _load(engine: Any, row: Row, places: dict[str, str], folder: Path, more: dict[str, Any]) -> Any:
    file, keys = BASES[row.base]
    overrides = {**keys, "OUTPUT_DIR": str(folder / "run"), **row.both, **more}
    words = []
    for key, value in overrides.items():
        text = str(value)
        for place, path in {**places, "folder": str(folder)}.items():
            text = text.replace(f"{{{place}}}", path)
        words += [key, text]
    return engine.Observer.load(file, words)


_OBSERVED: dict[Any, Any] = {}  # of bases, which many keys have in common


@pytest.mark.parametrize(("name", "key", "row"), [case for name in ENGINES for case in _cases(name)])
def test_the_engine_obeys_or_refuses(name, key, row, places, tmp_path, monkeypatch):
    engine = _engine(name)
    choices = key.choices_on(engine.NAME)
    if len(choices) == 1:
        assert row is None or row.observer == "refusal", "a key of one value has nothing to be seen"
        row = Row(_another(choices[0]), "refusal")
    assert row is not None, f"{key.name} has no row in tests/config/obeyed.py: say what another value of it changes"
    if key.name == "MODEL.DEVICE" and torch.cuda.is_available():
        pytest.skip("there is a GPU: tests of training on it see the device")
    if row.observer == "refusal":
        with pytest.raises(ConfigError) as caught:
            _load(engine, row, places, tmp_path, {key.name: row.value})
        assert key.name in caught.value.keys
        return
    observe = getattr(engine.Observer(monkeypatch), row.observer)
    of_base = (name, row.observer, row.base, str(row.both))
    if of_base not in _OBSERVED:
        _OBSERVED[of_base] = copy.deepcopy(observe(_load(engine, row, places, tmp_path / "base", {})))
    base = _OBSERVED[of_base]
    changed = observe(_load(engine, row, places, tmp_path / "changed", {key.name: row.value}))
    kept = [name for name in base.get("losses", ()) if row.every and re.search(row.every, name)]
    assert not row.every or len(kept) == 2
    assert not [name for name in kept if changed["losses"][name] == base["losses"][name]]
    ignored = {fact for fact in base if isinstance(base[fact], Path)} if key.name != "OUTPUT_DIR" else set()
    assert {k: v for k, v in changed.items() if k not in ignored} != {k: v for k, v in base.items() if k not in ignored}


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, 1] if isinstance(value, list) else f"{value}Other"


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_observed_twice_is_the_same(name, places, tmp_path, monkeypatch):
    """Or every key would seem to be obeyed."""
    engine = _engine(name)
    observer = engine.Observer(monkeypatch)
    for index, (base, observe) in enumerate(
        [
            *((base, "detector") for base in BASES if base != "vgg"),
            *(("fpn", kind) for kind in ("data", "training", "process", "run")),
        ]
    ):
        row = Row(None, observe, base)
        first, second = (
            getattr(observer, observe)(_load(engine, row, places, tmp_path / f"{index}{side}", {})) for side in "ab"
        )
        first.pop("folder", None), second.pop("folder", None)
        assert first == second, (base, observe)


def test_each_key_is_there_once_and_says_what_it_does():
    names = [key.name for key in (*SHARED, *ADDED)]
    assert len(names) == len(set(names))
    silent = [key.name for key in (*SHARED, *ADDED) if not key.about and not (key.choices or key.torchvision)]
    assert silent == ["SOLVER.CLIP_GRADIENTS.ENABLED"]
    for key in (*SHARED, *ADDED):
        assert isinstance(key, Key) and (None in (key.range, key.default) or key.range.holds(key.default))


def test_detectron2s_keys_and_defaults_are_detectron2s():
    tree = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed").get_cfg()
    ours = {key.name for key in SHARED} | detectron2_alone()
    assert ours == set(leaves(tree))
    # Names of builders and devices, for which there is no common default.
    other = {"MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.DEVICE"}
    added = {key.name for key in ADDED}
    for key in DETECTRON2_KEYS.values():
        if key.name not in other | added:
            theirs = value_of(tree, key.name)
            assert key.default == (
                list(theirs) if isinstance(theirs, tuple) and not isinstance(key.default, tuple) else theirs
            ), key.name
            assert type(key.default) is type(theirs) or isinstance(theirs, tuple), key.name
