"""External constants: read when they lie beside the model, refused everywhere else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from network_helpers import feed, run

from quantkit.errors import ModelError
from quantkit.network.model import load_model
from quantkit.network.onnx_import import load_onnx


@pytest.fixture()
def model_file(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with its constants in weights.bin beside it."""
    proto = onnx.ModelProto()
    proto.CopyFrom(load_model(tiny_bert_dir).proto)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=256)
    return folder / "m.onnx"


def relocate(file: Path, **entries: str) -> None:
    """Changes what the first external constant says of its place."""
    proto = onnx.load(file, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    for entry in tensor.external_data:
        entry.value = entries.pop(entry.key, entry.value)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    file.write_bytes(proto.SerializeToString())


def test_constants_beside_the_model(model_file: Path, tiny_bert_dir: Path) -> None:
    ours, back = load_model(tiny_bert_dir), load_onnx(model_file)
    assert back.sha256 == ours.sha256
    assert np.array_equal(run(back.proto, feed(100))["logits"], run(ours.proto, feed(100))["logits"])


def test_constants_in_a_folder_below(model_file: Path, tiny_bert_dir: Path) -> None:
    below = model_file.parent / "data"
    below.mkdir()
    shutil.copy(model_file.parent / "weights.bin", below / "w.bin")
    relocate(model_file, location="data/w.bin")
    assert load_onnx(model_file).sha256 == load_model(tiny_bert_dir).sha256


@pytest.mark.parametrize("text", [b"weights.bin", b"location"], ids=["value", "key"])
def test_a_place_that_is_no_text(model_file: Path, text: bytes) -> None:
    """protobuf gives bytes, or fails to give anything, where a string is not UTF-8."""
    model_file.write_bytes(model_file.read_bytes().replace(text, b"\xff" * len(text)))
    with pytest.raises(ModelError, match=r"not UTF-8|damaged"):
        load_onnx(model_file)


@pytest.mark.parametrize("location", ["weights\0.bin", "w" * 5000, "loop/w"], ids=["null byte", "too long", "circle"])
def test_names_that_no_file_can_have(model_file: Path, location: str) -> None:
    (model_file.parent / "loop").symlink_to("loop")
    relocate(model_file, location=location)
    with pytest.raises(ModelError, match=r"cannot be a file|not beside the model"):
        load_onnx(model_file)


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "/etc/hostname",
        "data/../../weights.bin",
        "..\\weights.bin",
        "C:\\weights.bin",
        "\\\\host\\w",
        "",
    ],
)
def test_paths_out_of_the_folder(model_file: Path, location: str) -> None:
    shutil.copy(model_file.parent / "weights.bin", model_file.parent.parent / "weights.bin")
    relocate(model_file, location=location)
    with pytest.raises(ModelError, match="no path inside the model's folder"):
        load_onnx(model_file)


def test_links_out_of_the_folder(model_file: Path) -> None:
    weights = model_file.parent / "weights.bin"
    outside = weights.rename(model_file.parent.parent / "outside.bin")
    weights.symlink_to(outside)
    with pytest.raises(ModelError, match="a link that leads out"):
        load_onnx(model_file)
    weights.unlink()
    (model_file.parent / "link").symlink_to(model_file.parent.parent)
    relocate(model_file, location="link/outside.bin")
    with pytest.raises(ModelError, match="a link that leads out"):
        load_onnx(model_file)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "other.bin"}, "not beside the model"),
        ({"offset": "-4"}, "at offset -4"),
        ({"offset": "many"}, "not given in numbers"),
        ({"length": "4"}, "the model says 4"),
        ({"offset": "1000000000"}, "ends before"),
    ],
)
def test_places_that_do_not_fit(model_file: Path, entries: dict[str, str], words: str) -> None:
    relocate(model_file, **entries)
    with pytest.raises(ModelError, match=words):
        load_onnx(model_file)


def test_a_file_cut_off(model_file: Path) -> None:
    weights = model_file.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match="cut off"):
        load_onnx(model_file)
    weights.unlink()
    with pytest.raises(ModelError, match="not beside the model"):
        load_onnx(model_file)


def test_impossible_shapes_and_types(model_file: Path) -> None:
    for change, words in (("dims", "impossible shape"), ("data_type", "unknown element type")):
        proto = onnx.load(model_file, load_external_data=False)
        tensor = next(t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
        if change == "dims":
            tensor.dims[0] = -1
        else:
            tensor.data_type = 99
        spoiled = model_file.with_name(f"{change}.onnx")
        spoiled.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=words):
            load_onnx(spoiled)
