"""Bad input: one sentence with the next step, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest


@pytest.fixture
def base(tiny_bert_dir, tiny_glue_dir, tmp_path):
    """Arguments of a run that works."""
    return {
        "MODEL": tiny_bert_dir,
        "--task": "sst2",
        "--data": tiny_glue_dir,
        "--calib-samples": 16,
        "--batch": 8,
        "--seq-len": 24,
        "--precision": "fp32,int8",
        "--out": tmp_path / "out",
    }


def spread(arguments: dict) -> list:
    options = {name: value for name, value in arguments.items() if name != "MODEL"}
    return ["run", arguments["MODEL"], *(part for pair in options.items() for part in pair)]


@pytest.fixture
def refused(cli):
    """Runs, checks the form of the refusal, and gives the text."""

    def run(arguments: dict) -> str:
        code, out, err = cli(*spread(arguments))
        assert code == 2, (code, out, err)
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if not line.endswith("...")]
        assert lines[0].startswith("quantkit: ")
        return err

    return run


def write(path, text: str):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--task", "sst3", "Did you mean sst2"),
        ("--method", "entropi", "Did you mean entropy"),
        ("--backend", "openvin", "Did you mean openvino"),
        ("--precision", "int9", "Did you mean int8"),
        ("--precision", ",", "empty"),
        ("--placement", "gem", "gemm+residual"),
        ("--data", "no/such/folder", "no file or folder"),
        ("--adapter", "no/such/adapter", "adapter_config.json"),
        ("--tokenizer", "no/such/tokenizer", "no folder"),
        ("--table", "no/such/table.json", "no file"),
        ("--batch", 0, "at least 1"),
        ("--threads", -1, "at least 0"),
        ("--seq-len", 65, "64 positions"),
        ("--calib-samples", 0, "at least 1"),
        ("--percentile", 101, "percentile"),
        ("MODEL", "no/such model", "no file or folder"),
    ],
)
def test_a_wrong_option(base, refused, option, value, expected):
    if option == "--percentile":
        base["--method"] = "percentile"
    assert expected in refused(base | {option: value})


def test_a_model_without_weights(base, refused, tiny_bert_dir, tmp_path):
    shutil.copy(tiny_bert_dir / "config.json", tmp_path)
    assert "model.safetensors" in refused(base | {"MODEL": tmp_path})


def test_missing_and_unexpected_weights_are_listed(base, refused, tiny_bert_dir, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights | {"bert.encoder.layer.9.extra": np.ones(3, np.float32)}, model / "model.safetensors")
    message = refused(base | {"MODEL": model})
    assert "encoder.layer.1.output.dense.bias" in message
    assert "encoder.layer.9.extra" in message


def test_nan_in_activations_names_the_tensor(base, refused, tiny_bert_dir, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    # Finite weights whose product overflows float32: Inf in the first dense layer, NaN after it.
    weights["bert.encoder.layer.0.intermediate.dense.weight"] *= np.float32(3e38)
    save_file(weights, model / "model.safetensors")
    message = refused(base | {"MODEL": model})
    assert "layer0.ffn" in message
    assert "Inf" in message


def test_labels_that_do_not_fit_the_model(base, refused):
    assert "output" in refused(base | {"--task": "stsb"})


def test_an_onnx_file_that_is_none(base, refused, tmp_path, tiny_bert_dir):
    model = write(tmp_path / "model.onnx", "not a model")
    message = refused(base | {"MODEL": model, "--tokenizer": tiny_bert_dir})
    assert "model.onnx" in message


def test_an_onnx_file_that_is_not_bert_like(base, refused, tmp_path, tiny_bert_dir):
    import onnx
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "image.onnx")
    assert "input_ids" in refused(base | {"MODEL": tmp_path / "image.onnx", "--tokenizer": tiny_bert_dir})


def test_an_onnx_file_without_a_tokenizer(base, refused, tmp_path, tiny_bert_dir):
    import onnx

    from quantkit.network.model import load_model

    onnx.save(load_model(tiny_bert_dir).proto, tmp_path / "model.onnx")
    assert "--tokenizer" in refused(base | {"MODEL": tmp_path / "model.onnx"})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("dev.tsv", "", "empty"),
        ("dev.tsv", "sentence\tlabel\n", "dev.tsv"),
        ("dev.tsv", "words\tmark\nhello\t1\n", "--text-column"),
        ("dev.tsv", "sentence\tlabel\nhello\t1\nworld\n", "dev.tsv:3"),
        ("dev.tsv", "sentence\tlabel\nhello\t2\n", "dev.tsv:2"),
        ("dev.jsonl", '{"sentence": "hello", "label": 1}\n{"sentence":\n', "dev.jsonl:2"),
        ("dev.csv", 'sentence,label\n"hello,1\n', "dev.csv"),
        ("dev.parquet", "no parquet", "dev.parquet"),
        ("dev.tsv", b"sentence\tlabel\nhel\xfflo\t1\n", "dev.tsv:2"),
    ],
)
def test_data_that_cannot_be_read(base, refused, tmp_path, tiny_glue_dir, name, content, expected):
    data = write(tmp_path / name, content)
    train = tiny_glue_dir / "SST-2" / "train.tsv"
    assert expected in refused(base | {"--data": data, "--calib-data": train})


def test_an_output_folder_that_is_a_file(base, refused, tmp_path):
    assert "--out" in refused(base | {"--out": write(tmp_path / "file", "x")})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(base, refused, tmp_path):
    tmp_path.chmod(0o500)
    assert "--out" in refused(base | {"--out": tmp_path / "out"})


def test_no_space_is_one_sentence(base, cli, monkeypatch):
    import errno

    from quantkit import files

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    code, _, err = cli(*spread(base))
    assert code == 2
    assert "No space left" in err
    assert "Traceback" not in err


def test_json_carries_the_error(base, cli):
    code, out, _ = cli(*spread(base | {"--task": "sst3"}), "--json")
    assert code == 2
    assert "sst2" in json.loads(out)["hint"]


def test_too_long_texts_are_cut_and_counted(base, cli):
    code, out, err = cli(*spread(base | {"--seq-len": 8, "--precision": "fp32"}), "--json")
    assert code == 0, err
    assert json.loads(out)["task"]["truncated"] > 0
