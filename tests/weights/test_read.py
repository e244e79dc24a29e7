import argparse
import collections
import datetime
import gzip
import io
import json
import pathlib
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from resnet_backbone.weights import read_weights
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.read import read_file

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.tensor([1.5]), "n": torch.tensor(7)}


def assert_same(found, expected=TENSORS):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".PTH"])
def test_torch_files(tmp_path, suffix, zipped):
    path = tmp_path / f"w{suffix}"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_file(path).tensors)
    assert_same(read_file(str(path)).tensors)


def test_safetensors(tmp_path):
    safetensors.torch.save_file(TENSORS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    raw = read_file(tmp_path / "w.safetensors")
    assert_same({name: raw.tensors[name] for name in TENSORS})
    assert raw.metadata["format"] == "pt"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", [dict, collections.OrderedDict])
def test_pickles_of_arrays(tmp_path, protocol, container):
    arrays = container((name, tensor.numpy()) for name, tensor in TENSORS.items())
    content = {"model": arrays, "__author__": "torchvision", "step": np.float32(2.5)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    raw = read_file(tmp_path / "w.pkl")
    assert_same(raw.tensors)
    assert raw.metadata["__author__"] == "torchvision"
    assert raw.metadata["step"] == 2.5


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_pickles_of_old_and_new_numpy(tmp_path, module):
    content = pickle.dumps({"a.weight": TENSORS["a.weight"].numpy()}, 2)
    content = content.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", module.encode())
    (tmp_path / "w.pkl").write_bytes(content)
    assert_same(read_file(tmp_path / "w.pkl").tensors, {"a.weight": TENSORS["a.weight"]})


def test_a_pickle_of_python_2(tmp_path):
    """As Python 2 and numpy 1 write {"w": array([1.5, -2], dtype=float32)}: names and data are byte strings."""
    content = (
        b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02\x85q\tcnumpy\ndtype\nq\nU\x02f4q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03"
        b"U\x01<q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89U\x08\x00\x00\xc0?\x00\x00\x00\xc0q\x10tq\x11bs."
    )
    (tmp_path / "w.pkl").write_bytes(content)
    assert_same(read_file(tmp_path / "w.pkl").tensors, {"w": torch.tensor([1.5, -2.0])})


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2", "i8", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_types_and_orders(tmp_path, dtype, order, protocol):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=dtype, order=order)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": array}, protocol))
    found = read_file(tmp_path / "w.pkl").tensors["w"]
    np.testing.assert_array_equal(found.numpy(), array)
    found.zero_()  # owns memory that may be written to


def test_unwraps_and_says_what_it_leaves_out(tmp_path):
    content = {
        "state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()},
        "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}},
        "model_ema": dict(TENSORS),
        "epoch": 3,
        "classes": ["cat", "dog"],
    }
    torch.save(content, tmp_path / "w.pth")
    raw = read_file(tmp_path / "w.pth")
    assert_same(raw.tensors)
    assert raw.metadata == {"epoch": 3, "classes": ["cat", "dog"], "left_out": ["model_ema", "optimizer"]}


def test_blobs_of_caffe2_without_their_momentum(tmp_path):
    blobs = {"conv1_w": np.ones((2, 2), "f4"), "conv1_w_momentum": np.zeros((2, 2), "f4")}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}, 2))
    raw = read_file(tmp_path / "w.pkl")
    assert list(raw.tensors) == ["conv1_w"]
    assert raw.metadata == {"cfg": "text", "left_out": ["conv1_w_momentum"]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["module.a.b", "module._orig_mod.c"], ["a.b", "c"]),
        (["features.module.0.weight", "classifier.0.weight"], ["features.0.weight", "classifier.0.weight"]),
        (["layer1._orig_mod.0.conv1.weight"], ["layer1.0.conv1.weight"]),
        (["module.a", "a"], ["module.a", "a"]),  # which of the two is meant, nobody knows
        (["submodule.a", "module"], ["submodule.a", "module"]),
    ],
)
def test_what_pytorchs_wrappers_put_into_names_is_taken_out(tmp_path, names, expected):
    torch.save(dict.fromkeys(names, TENSORS["n"]), tmp_path / "w.pth")
    assert list(read_file(tmp_path / "w.pth").tensors) == expected


@pytest.mark.parametrize(
    "name", ["w.th", "w.pth.tar", "w.ckpt", "w.bin", "w", "w.pkl", "w.safetensors", "w.model", "w.7"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "arrays"])
def test_the_content_tells_the_format_and_not_the_name(tmp_path, name, form):
    if form == "safetensors":
        safetensors.torch.save_file(TENSORS, tmp_path / name)
    elif form == "arrays":
        (tmp_path / name).write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in TENSORS.items()}))
    else:
        torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=form == "zip")
    found = read_file(tmp_path / name).tensors
    assert_same({name: found[name] for name in TENSORS})


def other_formats():
    buffers = {name: io.BytesIO() for name in ("npz", "tar", "torchscript")}
    np.savez(buffers["npz"], a=np.ones(2))
    with tarfile.open(fileobj=buffers["tar"], mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffers["torchscript"])
    return {
        "gzip": (gzip.compress(b"x"), "a gzip file; unpack it"),
        "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        "npy": (b"\x93NUMPY\x01\0", r"an array of numpy \(\.npy\)"),
        "JSON": (b'{"a.weight": [1.0]}', "damaged, or no weight file"),
        "ONNX": (b"\x08\x07\x12\x07pytorch", r"no weight file: it begins with b'\\x08"),
        "npz": (buffers["npz"].getvalue(), r"not of torch.save: it holds \[.a\.npy"),
        "tar": (buffers["tar"].getvalue(), "a tar archive; unpack it"),
        "torchscript": (buffers["torchscript"].getvalue(), "program of TorchScript"),
    }


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ""])
@pytest.mark.parametrize("form", list(other_formats()))
def test_of_another_format_it_says_what_it_looks_like(tmp_path, form, suffix):
    content, said = other_formats()[form]
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_file(tmp_path / f"w{suffix}")


class AttributeDict(dict):
    """As Lightning stores hyper-parameters."""


class HistoryBuffer:
    """As MMEngine stores curves; whoever rebuilds it runs this code."""

    ran = False

    def __init__(self):
        self.log_history, self.methods = np.ones(3), {"mean": np.mean}

    def __setstate__(self, state):
        HistoryBuffer.ran = True


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_objects_beside_the_network_are_left_out_and_nothing_of_them_runs(tmp_path, zipped):
    args = argparse.Namespace(lr=0.1, output=pathlib.Path("out"), start=datetime.datetime.now(), best=np.float64(3))
    beside = {
        "args": args,
        "hyper_parameters": AttributeDict(lr=0.1, inner=AttributeDict(deeper=args)),
        "message_hub": {"loss": HistoryBuffer()},
        "metric": np.float64(76.1),
        "rng": np.random.default_rng(0).bit_generator.state["state"],
        "path": pathlib.Path("somewhere"),
        "numbers": collections.defaultdict(None, {"a": 1}),
    }
    torch.save({"state_dict": TENSORS, **beside}, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    raw = read_file(tmp_path / "w")
    assert_same(raw.tensors)
    plain = {"rng": beside["rng"], "numbers": {"a": 1}}
    left_out = sorted(beside.keys() - plain.keys())
    assert raw.metadata == {**plain, "left_out": left_out}
    assert not HistoryBuffer.ran


@pytest.mark.parametrize(
    "content", [argparse.Namespace(a=1), torch.nn.Linear(2, 2), {"state_dict": AttributeDict(TENSORS)}]
)
def test_objects_in_place_of_the_network_are_refused_by_name(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds a (argparse\.Namespace|torch\..*\.Linear|tests\..*\.AttributeDict)"):
        read_file(tmp_path / "w.pth")


NETWORK = {"conv1.weight": torch.ones(2), "layer1.0.conv1.weight": torch.ones(3)}
OTHER = {name: 2 * tensor for name, tensor in NETWORK.items()}
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


def under(prefix, tensors=NETWORK):
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("content", "part", "others"),
    [
        ({"state_dict": NETWORK, "state_dict_ema": OTHER, "optimizer": OPTIMIZER}, "state_dict_ema", ["state_dict"]),
        ({"model": under("module."), "model_ema": {**under("module.", OTHER), "n_averaged": torch.tensor(3)}},
         "model_ema", ["model", "n_averaged"]),
        ({"model": NETWORK, "teacher": under("backbone.", OTHER)}, "teacher", ["model"]),
        ({"model": NETWORK, "ema": {"decay": 0.9, "shadow": OTHER}}, "ema", ["model"]),
        ({"epoch": 3, "ema_state_dict": OTHER, "state_dict": NETWORK}, "ema_state_dict", ["state_dict"]),
    ],
)  # fmt: skip
def test_another_network_of_a_file_is_told_and_taken_on_request(tmp_path, content, part, others, caplog):
    path = tmp_path / "w.pth.tar"
    torch.save(content, path)
    usual, asked = read_file(path), read_file(f"{path}#{part}")
    assert_same(usual.tensors, NETWORK)
    assert usual.others == (part,) and part in usual.metadata["left_out"]
    name = next(name for name in asked.tensors if name.endswith("conv1.weight"))
    assert torch.equal(asked.tensors[name], OTHER["conv1.weight"])
    weights = read_weights(path)
    assert part in weights.left_out
    assert f"for another write #{part} behind" in caplog.text
    other = read_weights(f"{path}#{part}")
    assert torch.equal(other.state_dict["stem.conv1.weight"], OTHER["conv1.weight"])
    assert sorted(other.left_out) == others
    with pytest.raises(WeightsError, match=f"holds no 'nothing'; it has .*{part}"):
        read_file(f"{path}#nothing")


@pytest.mark.parametrize(
    "content",
    [
        {"student": under("module.backbone."), "teacher": under("backbone."), "dino_loss": {"center": torch.ones(1)}},
        {"state_dict": {**under("module.student."), **under("module.teacher."), "module.queue": torch.ones(5)}},
        {"model": {**under("teacher.backbone.bottom_up."), **under("student.backbone.bottom_up.")}, "iteration": 3},
    ],
)
def test_of_several_networks_none_of_them_usual_nobody_guesses(tmp_path, content):
    path = tmp_path / "w.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="several networks, student, teacher; .* weights.pth#student"):
        read_weights(path)
    assert read_weights(f"{path}#teacher").state_dict.keys() == {"stem.conv1.weight", "res2.0.conv1.weight"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"state_dict": under("model.", OTHER), "current_model_state": under("model.", NETWORK), "epoch": 1}, ""),
        ({"state_dict": {**under("model.", NETWORK), **under("ema.module.", OTHER)}, "loops": {}}, "#ema"),
        ({"state_dict": NETWORK, "callbacks": {"EMA": {"shadow": under("model.", OTHER)}}}, "#callbacks.EMA"),
        ({"state": {"model": under("model.", OTHER), "optimizers": {}}, "rng": []}, ""),
        (under("ema.module.", OTHER), ""),
    ],
    ids=["lightning-averaging", "lightning-two", "lightning-callback", "composer", "alone"],
)
def test_averaged_weights_of_training_tools(tmp_path, content, part):
    torch.save(content, tmp_path / "w.ckpt")
    tensors = read_file(f"{tmp_path / 'w.ckpt'}{part}").tensors
    assert {name.removeprefix("ema.").removeprefix("model."): tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in OTHER.items()
    }


@pytest.mark.parametrize("part", ["teacher", "module.teacher", "teacher.", "state_dict.teacher"])
def test_a_part_may_be_written_as_the_file_names_it(tmp_path, part):
    torch.save({"state_dict": {**under("module.student."), **under("module.teacher.", OTHER)}}, tmp_path / "w.pth")
    assert_same(read_file(f"{tmp_path / 'w.pth'}#{part}").tensors, OTHER)


def test_a_part_with_the_name_of_its_entry(tmp_path):
    torch.save({"model": {**under("module.model."), **under("module.attacker.model.", OTHER)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="several networks, attacker.model, model;"):
        read_weights(tmp_path / "w.pth")
    assert_same(read_file(f"{tmp_path / 'w.pth'}#model").tensors, NETWORK)
    assert_same(read_file(f"{tmp_path / 'w.pth'}#attacker.model").tensors, OTHER)


def test_a_part_below_one_of_several_entries(tmp_path):
    torch.save({"student": under("backbone."), "teacher": under("backbone.", OTHER), "epoch": 1}, tmp_path / "w.pth")
    assert_same(read_file(f"{tmp_path / 'w.pth'}#teacher.backbone").tensors, OTHER)
    with pytest.raises(WeightsError, match="holds no 'ema'; it has student, teacher"):
        read_file(f"{tmp_path / 'w.pth'}#ema")


def test_the_blocks_of_another_kind_of_network_are_no_networks(tmp_path):
    torch.save({f"features.block{n}.conv1.weight": torch.ones(2) for n in range(3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="3 of 3 tensors are no part of a ResNet or VGG as we know them"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "prefix", ["0.", "model.", "net.", "encoder.", "model.encoder.", "module._orig_mod.model.", "a.b.c.d."]
)
@pytest.mark.parametrize("beside", [{}, {"criterion.weight": torch.ones(7)}, {"n_averaged": torch.tensor(5)}])
def test_any_prefix_of_the_network(tmp_path, prefix, beside):
    torch.save({"state_dict": {**beside, **under(prefix)}}, tmp_path / "w.ckpt")
    weights = read_weights(tmp_path / "w.ckpt")
    assert weights.state_dict.keys() == {"stem.conv1.weight", "res2.0.conv1.weight"}
    assert weights.left_out == tuple(beside)


def test_a_detector_behind_a_prefix(tmp_path):
    detector = {**under("backbone.bottom_up.stem."), "proposal_generator.rpn_head.conv.weight": torch.ones(1)}
    torch.save({"state_dict": {**under("model.", detector), "n_averaged": torch.tensor(5)}}, tmp_path / "w.ckpt")
    raw = read_file(tmp_path / "w.ckpt")
    assert_same(raw.tensors, detector)
    assert raw.metadata["left_out"] == ["n_averaged"]


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q."])
@pytest.mark.parametrize(
    ("beside", "head"),
    [
        ({"fc.1.weight": torch.ones(7, 2), "fc.1.bias": torch.ones(7)}, ["linear.bias", "linear.weight"]),
        ({"fc.0.weight": torch.ones(2, 2), "fc.2.weight": torch.ones(7, 2)}, []),
        ({"projection_head.0.weight": torch.ones(2, 2), "prototypes.weight": torch.ones(7, 2)}, []),
        ({"fc.weight": torch.ones(7, 2), "projector.0.weight": torch.ones(2, 2)}, ["linear.weight"]),
    ],
    ids=["dropout", "moco_v2", "swav", "two"],
)
def test_heads_of_several_layers_are_left_out_and_told(tmp_path, prefix, beside, head):
    torch.save({"state_dict": under(prefix, {**NETWORK, **beside})}, tmp_path / "w.ckpt")
    weights = read_weights(tmp_path / "w.ckpt")
    assert sorted(weights.state_dict) == [*head, "res2.0.conv1.weight", "stem.conv1.weight"]
    left = len(NETWORK) + len(beside) - len(weights.state_dict)
    assert len(weights.left_out) == left and weights.num_classes == (7 if head else 0)


def test_a_classifier_of_mmpretrain(tmp_path):
    head = {"head.fc.weight": torch.ones(10, 2), "head.fc.bias": torch.ones(10)}
    torch.save({"meta": {"CLASSES": ["a"]}, "state_dict": {**under("backbone."), **head}}, tmp_path / "w.pth")
    assert not holds_detector(read_file(tmp_path / "w.pth").tensors)
    weights = read_weights(tmp_path / "w.pth")
    assert (weights.num_classes, weights.left_out) == (10, ())


def test_a_name_with_the_sign_of_a_part(tmp_path):
    torch.save(NETWORK, tmp_path / "epoch#3.pth")
    assert_same(read_file(tmp_path / "epoch#3.pth").tensors, NETWORK)
    torch.save({"model": NETWORK, "ema": OTHER}, tmp_path / "epoch#4.pth")
    assert_same(read_file(tmp_path / "epoch#4.pth#ema").tensors, OTHER)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no tensors"),
        ({"model": {}}, "no tensors"),
        ([TENSORS["n"]], "list"),
        (TENSORS["n"], "Tensor"),
        ({"a": TENSORS["n"], "lr": 0.1}, r"lr \(float\)"),
        ({"a": TENSORS["n"], "b": {"c": TENSORS["n"]}}, r"b \(dict\)"),
        ({"a": TENSORS["n"], 5: TENSORS["n"]}, "5"),
    ],
)
def test_refuses_other_content(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=said) as caught:
        read_file(tmp_path / "w.pth")
    assert "w.pth" in str(caught.value)


@pytest.fixture
def index(tmp_path):
    """``index(change)``: of two shards, one of each format; ``change`` is made to its ``weight_map``."""

    def write(**change: object) -> pathlib.Path:
        names = list(TENSORS)
        safetensors.torch.save_file({name: TENSORS[name] for name in names[1:]}, tmp_path / "a.safetensors")
        torch.save({names[0]: TENSORS[names[0]]}, tmp_path / "b.bin")
        weight_map = {**dict.fromkeys(names[1:], "a.safetensors"), names[0]: "b.bin", **change}
        path = tmp_path / "w.index.json"
        path.write_text(json.dumps({"weight_map": weight_map}))
        return path

    return write


def test_shards(index, tmp_path):
    raw = read_file(index())
    assert raw.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(raw.tensors[name], tensor) for name, tensor in TENSORS.items())
    before = raw.sha256
    torch.save({next(iter(TENSORS)): torch.zeros_like(next(iter(TENSORS.values())))}, tmp_path / "b.bin")
    assert read_file(index()).sha256 == before  # it writes the shards again
    torch.save({next(iter(TENSORS)): next(iter(TENSORS.values())) + 1}, tmp_path / "b.bin")
    assert read_file(tmp_path / "w.index.json").sha256 != before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": "c.bin"}, "names c.bin, which is not beside it"),
        ({"x": "../b.bin"}, r"names the file \.\./b\.bin, expected one that lies beside it"),
        ({"x": "/etc/passwd"}, "expected one that lies beside it"),
        ({"x": 3}, "expected one that lies beside it"),
        ({"x": "b.bin"}, "1 names are in one of them alone: x"),
        ({"x": "w.index.json"}, "which is an index itself"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(index, change, said):
    with pytest.raises((WeightsError, FileNotFoundError), match=said):
        read_file(index(**change))


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{", '{"a": NaN}'])
def test_json_that_is_no_index(tmp_path, content):
    path = tmp_path / "w.index.json"
    path.write_text(content)
    with pytest.raises(WeightsError, match="w.index.json"):
        read_file(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"garbage" * 100, r"damaged|complete"),
        (b"\x80\x02}", r"damaged|complete"),
        (b"PK\x03\x04" + b"\0" * 100, r"damaged|complete"),
    ],
)
def test_damaged_files(tmp_path, suffix, content, said):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


def complete_file(suffix):
    buffer = io.BytesIO()
    if suffix == ".safetensors":
        return safetensors.torch.save(TENSORS)
    if suffix == ".pkl":
        return pickle.dumps({name: tensor.numpy() for name, tensor in TENSORS.items()})
    torch.save(TENSORS, buffer, _use_new_zipfile_serialization=suffix == ".pth")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".pkl"])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(tmp_path, suffix, part):
    content = complete_file(suffix)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(WeightsError):
        read_file(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weight file"):
        read_file(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path)


@pytest.mark.parametrize("shape", [(3,), (2**40,), (-2,), (1, 1)])
def test_an_array_whose_shape_is_not_that_of_its_data(tmp_path, shape):
    class Lying:
        def __reduce__(self):
            function, arguments, state = np.zeros(2, "f4").__reduce__()
            return function, arguments, (state[0], shape, *state[2:])

    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": Lying()}))
    with pytest.raises(WeightsError, match="shape"):
        read_file(tmp_path / "w.pkl")


def test_bytes_in_another_encoding_are_refused(tmp_path):
    """Only latin1 is what pickle itself writes for bytes; other codecs do other things than encode."""
    good = pickle.dumps({"model": {"a": np.ones(2, "f4")}, "note": b"x\xe9"}, 2)
    (tmp_path / "w.pkl").write_bytes(good)
    assert list(read_file(tmp_path / "w.pkl").tensors) == ["a"]
    (tmp_path / "w.pkl").write_bytes(good.replace(b"latin1", b"utf_16"))
    with pytest.raises(WeightsError, match="another encoding than latin1"):
        read_file(tmp_path / "w.pkl")


def test_arrays_of_another_type_are_refused(tmp_path):
    good = pickle.dumps({"a": np.ones(2, "f4")}, 2)
    (tmp_path / "w.pkl").write_bytes(good.replace(b"cnumpy\nndarray\n", b"ccollections\nOrderedDict\n"))
    with pytest.raises(WeightsError, match="another type than numpy.ndarray"):
        read_file(tmp_path / "w.pkl")
