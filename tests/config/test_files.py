"""Config files that are none, or that mean harm: told with their line, and no other error comes out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from resnet_backbone.classification.config import load_config as load_classifier
from resnet_backbone.config import config_folder, find_config_file
from resnet_backbone.config.checks import suspicions
from resnet_backbone.config.reader import literal, read_settings, shown

NOT_READ = "not a YAML file that can be read safely"
BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]" for n in range(18))])
MERGES = "\n".join(["a0: &a0 {k: 1}", *(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}" for n in range(18))])
FILES = [
    ("", "mine.yaml is empty; write keys"),
    ("# a comment", "mine.yaml is empty"),
    ("- MODEL", "mine.yaml, line 1: a config holds KEY: VALUE pairs, found a list"),
    ("MODEL", "mine.yaml, line 1: a config holds KEY: VALUE pairs, found the value 'MODEL'"),
    ("SOLVER:\n\tMAX_ITER: 5", r"mine.yaml, line 2, column 1: .*indent with spaces, not with tabs"),
    ("SOLVER:\n  MAX_ITER 5\n  BASE_LR: 0.1", "mine.yaml, line 3, column .*: KEY: VALUE a line|mine.yaml, line 3"),
    ("SOLVER:\n  STEPS: [5, 6\n  BASE_LR: 0.1", "mine.yaml, line 3.*is a bracket not closed"),
    ("SOLVER: {STEPS: [5, 6", "mine.yaml, line 1.*is a bracket not closed"),
    ("SOLVER:\n  BASE_LR: 0.1\n MAX_ITER: 5", "mine.yaml, line 3, .*equally far from the left"),
    ("SOLVER: {MAX_ITER: 5}\n---\nSOLVER: {MAX_ITER: 6}", "mine.yaml, line 2, .*take out the line ---"),
    ("WEIGHTS: 'a", "mine.yaml, line 1"),
    ("A: !!python/object/apply:os.system ['true']", f"mine.yaml, line 1: {NOT_READ}: take out the tag"),
    ("A: !!python/name:os.system", NOT_READ),
    ("A: !mine 3", f"{NOT_READ}: take out the tag '!mine'"),
    ("A: !!set {a, b}", NOT_READ),
    ("A: !!binary aGk=", NOT_READ),
    ("A: !!int abc", "mine.yaml, line 1: 'abc' cannot be read as int"),
    ('A: !!int ""', "cannot be read as int"),
    ("A: !!bool 3", "cannot be read as bool"),
    (f"A: {'9' * 5000}", "cannot be read as int: it is too long"),
    (f"A: 1{':59' * 5000}", "cannot be read as int: it is too long"),
    ("A: *nowhere", "mine.yaml, line 1, column 4: .*undefined alias"),
    ("A: &a [*a]", "nested more than 20 deep"),
    ("A: &a {B: *a}", "nested more than 20 deep"),
    ("A: &a {<<: *a}", "nested more than 20 deep"),
    ("A: {<<: 3}", "mine.yaml, line 1: << merges sections"),
    (BOMB, "more than 20000 values, aliases included"),
    (MERGES, "more than 20000 values, aliases included|nested more than 20 deep"),
    ("A: " + "[" * 100_000, "nested more than 20 deep"),
    ("A: " + "{a: " * 100_000, "nested more than 20 deep"),
    ("".join(f"{' ' * n}a:\n" for n in range(1000)), "nested more than 20 deep"),
    ("A: [" + "1, " * 50_000 + "1]", "more than 20000 values"),
    ("A: " + "x" * 2**20, "mine.yaml is larger than 1048576 bytes"),
    ('A: "\\UFFFFFFFF"', "mine.yaml"),
    ("%YAML 1.99999999999999999999999\n---\nA: 1", "mine.yaml"),
    ("A: \x07", "mine.yaml: .*special characters are not allowed"),
    ("A: 1\nB: \x00", f"mine.yaml, line 2: {NOT_READ}: it holds a NUL byte"),
    (b"A: 1\nB: \xff\xfe", f"mine.yaml, line 2: {NOT_READ}: it is not UTF-8"),
    ("SOLVER: {STEPS: 1}".encode("utf-16"), "mine.yaml, line 1: .*NUL byte"),
    ("_BASE_: mine.yaml", "mine.yaml, line 1: _BASE_ goes round in a circle: .*mine.yaml -> .*mine.yaml"),
    ("_BASE_: other.yaml", "other.yaml, line 1: _BASE_ goes round .*mine.yaml -> .*other.yaml -> .*mine.yaml"),
    ("_BASE_: [other.yaml]", "other.yaml, line 1: _BASE_ goes round"),
    ("_BASE_: https://example.org/base.yaml", "mine.yaml, line 1: _BASE_ is 'https://.*download the file"),
    ("_BASE_: detectron2://base.yaml", "download the file"),
    ("_BASE_: 3", "mine.yaml, line 1: _BASE_ is 3; write the path of a config file"),
    ("_BASE_:", "mine.yaml, line 1: _BASE_ is None; write the path"),
    ("_BASE_: {A: 1}", "write the path of a config file"),
    ('_BASE_: ""', "write the path of a config file"),
]
WORDS = [
    "(" * 100_000,
    "[" * 190 + "]" * 190,
    "-" * 20_000 + "1",
    "1+" * 9_000 + "1j",
    "{[]: 1}",
    "0x" + "f" * 9_999,
    "\0",
]


@pytest.fixture
def write(tmp_path):
    def run(content: str | bytes, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return run


@pytest.mark.parametrize(("content", "message"), FILES, ids=[str(number) for number in range(len(FILES))])
def test_what_is_no_config_is_told(load, write, match, content, message):
    write("_BASE_: mine.yaml\n", "other.yaml")
    with pytest.raises(ValueError) as caught:
        load(write(content))
    match(str(caught.value), message)
    assert len(str(caught.value)) < 5000


def test_a_base_by_the_name_of_a_config_of_the_package(load, write):
    """As whoever has the wheel alone names it; a file beside the config goes before."""
    assert load(write("_BASE_: quickstart.yaml\nSEED: 3")).MODEL.RESNET_BACKBONE.ARCH == "resnet18"
    assert load(write("_BASE_: configs/quickstart.yaml", "other.yaml")).SEED == 0
    write("_BASE_: configs/quickstart.yaml\nSEED: 11", "quickstart.yaml")
    assert load(write("_BASE_: quickstart.yaml")).SEED == 11


def test_a_base_that_is_not_there(load, write):
    with pytest.raises(
        FileNotFoundError, match=r"mine.yaml, line 2: _BASE_ is 'no/base.yaml', and there is no file .*no"
    ):
        load(write("SEED: 3\n_BASE_: no/base.yaml"))


def test_chains_of_bases_end(load, write):
    for number in range(30):
        write(f"_BASE_: {number + 1}.yaml\n", f"{number}.yaml")
    write("SEED: 3", "30.yaml")
    with pytest.raises(ValueError, match="a chain of more than 20 _BASE_ files: .*0.yaml -> .*1.yaml"):
        load(write("_BASE_: 0.yaml"))
    for number in range(9):
        write(f"_BASE_: [{number + 1}.yaml, {number + 1}.yaml]\n", f"{number}.yaml")
    write("SEED: 3", "9.yaml")
    with pytest.raises(ValueError, match="a config may have 50 _BASE_ files"):
        load(write("_BASE_: 0.yaml"))


def test_a_child_overrides_its_base_and_the_last_base_the_first(write):
    write("A: {X: 1, Y: 1, Z: 1}\nB: 1", "one.yaml")
    write("A:\n  Y: 2\n  Z: 2", "two.yaml")
    settings = read_settings(write("_BASE_: [one.yaml, two.yaml]\nA:\n\n  Z: 3"))
    found = {key: (setting.value, setting.origin.rpartition("/")[2]) for key, setting in settings.items()}
    assert found == {
        "A.X": (1, "one.yaml, line 1"),
        "A.Y": (2, "two.yaml, line 2"),
        "A.Z": (3, "mine.yaml, line 4"),
        "B": (1, "one.yaml, line 2"),
    }


@pytest.mark.parametrize("word", WORDS, ids=lambda word: shown(word)[:20])
@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "SOLVER.STEPS", "MODEL.MASK_ON"])
def test_words_that_python_cannot_read_are_of_the_wrong_type(load, write, key, word):
    with pytest.raises(ValueError, match=f"^the command line: {key} wants") as caught:
        load("quickstart.yaml", ["MODEL.DEVICE", "cpu", key, word])
    assert len(str(caught.value)) < 1000
    if "\0" not in word:
        section, name = key.split(".")
        with pytest.raises(ValueError, match=f"mine.yaml, line 1: {key} wants"):
            load(write(f'{section}: {{{name}: "{word}"}}'))


def test_words_are_read_as_yacs_reads_them():
    from fvcore.common.config import CfgNode

    for word in [
        "1",
        "1e-3",
        "(1, 2)",
        "[1, [2]]",
        "True",
        "None",
        "'a'",
        "a",
        "a/b",
        "",
        "0x10",
        "{'a': 1}",
        "1,",
        "-1",
    ]:
        decoded = CfgNode._decode_cfg_value(word)
        assert literal(word) == decoded and type(literal(word)) is type(decoded)


def test_broken_files_end_in_nothing_but_errors_of_ours(load, write):
    """A real config with bytes changed, removed and doubled."""
    whole = find_config_file("Base-RCNN-FPN.yaml").read_bytes()
    rng = random.Random(0)
    told = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(content))
            piece = content[start : start + rng.randint(1, 30)]
            content[start : start + rng.randint(0, 20)] = rng.choice(
                [
                    b"",
                    bytes([rng.randrange(256)]),
                    b"[",
                    b"{",
                    b"&a ",
                    b"*a",
                    b"!",
                    b"\t",
                    b"null",
                    b": ",
                    bytes(piece) * 2,
                ]
            )
        try:
            load(write(bytes(content)), ["MODEL.DEVICE", "cpu"])
        except (ValueError, TypeError, OSError) as error:
            told += 1
            assert str(error)
    assert told > 20


ALL = sorted(path.relative_to(config_folder()).as_posix() for path in config_folder().rglob("*.yaml"))
OF_ONE_ENGINE = {
    "torchvision": ("strong/own_data", "strong/torchvision_v2", "torchvision/"),
    "detectron2": ("cascade/", "panoptic/", "semantic/"),
}
RUNS = [name for name in ALL if not name.startswith("classification/")]


@pytest.mark.parametrize("name", RUNS)
def test_no_shipped_config_is_suspicious(load, name, caplog):
    for engine, names in OF_ONE_ENGINE.items():
        if name.startswith(names) and engine not in load.__module__:
            pytest.skip(f"for {engine} alone")
    amp = ["SOLVER.AMP.ENABLED", "False"] if "detectron2" in load.__module__ else []  # which has it on GPUs alone
    assert suspicions(load(name, ["MODEL.DEVICE", "cpu", *amp])) == []
    assert not caplog.records


CLASSIFIERS = [
    (
        "SOLVER: {BASE_LRR: 0.1}",
        "line 2: the classification engine does not obey the key SOLVER.BASE_LRR; .*SOLVER.BASE_LR",
    ),
    ("MODEL: {BACKBONE: {FREEZE_AT: 2}}", "a config with that key is for resnet-backbone train"),
    ("SOLVER: {BASE_LR: 1}", "line 2: SOLVER.BASE_LR wants a number with a point, .*write 1.0"),
    ("SOLVER: {BASE_LR: 0.1, BASE_LR: 0.2}", "line 2: BASE_LR is there twice, first in line 2"),
    ("SOLVER: {BASE_LR: -1.0}", "SOLVER.BASE_LR is -1.0; .*\n  SOLVER.BASE_LR: -1.0 is set in .*mine.yaml, line 2"),
    ("SOLVER: {MOMENTUM: 2.0}", "SOLVER.MOMENTUM is 2.0; .*mine.yaml, line 2"),
    ("SOLVER: {WEIGHT_DECAY: -1.0}", "SOLVER.WEIGHT_DECAY is -1.0; .*mine.yaml, line 2"),
    ("SOLVER: {WARMUP_FACTOR: -1.0}", "SOLVER.WARMUP_FACTOR is -1.0; .*mine.yaml, line 2"),
    ("MODEL: {ARCH: resnet19}", "MODEL.ARCH 'resnet19' must be one of .*mine.yaml, line 2"),
    ("MODEL: {PIXEL_STD: [0.0, 1.0, 1.0]}", "MODEL.PIXEL_STD is .*mine.yaml, line 2"),
    ("MODEL: {STOCHASTIC_DEPTH: 1.0}", "MODEL.STOCHASTIC_DEPTH is 1.0; .*mine.yaml, line 2"),
    ("INPUT: {SIZE: 300, RESIZE_TEST: 200}", "INPUT.RESIZE_TEST 200 must be INPUT.SIZE, 300, .*mine.yaml, line 2"),
    ("DATASETS: {TRAIN: imagenet_train}", r"line 2: DATASETS.TRAIN wants a list: \['imagenet_train'\]"),
    ("TEST: {SCALES: [224.5]}", "line 2: TEST.SCALES wants a list of whole numbers"),
    ("MODEL: {WEIGHTS: 5}", "line 2: MODEL.WEIGHTS wants a word, .*'5'"),
]


@pytest.mark.parametrize(("text", "message"), CLASSIFIERS)
def test_a_mistake_in_a_classifiers_config(refused, match, text, message):
    match(refused(load_classifier, text, base="classification/imagenet_resnet50.yaml"), message)
