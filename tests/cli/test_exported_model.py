"""The model that a run leaves behind, read by the runtimes themselves without quantkit."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_bert_dir, tiny_glue_dir):
    """`quantkit build` of the asymmetric and the symmetric model, with TensorRT's beside the first."""
    from quantkit.library import run

    found = {}
    for symmetric in (False, True):
        out = tmp_path_factory.mktemp("symmetric" if symmetric else "asymmetric")
        run(
            tiny_bert_dir, task="sst2", data=tiny_glue_dir, calib_samples=40, batch=8, seq_len=32, threads=1, out=out,
            precisions="int8", placement="gemm+residual+mha", symmetric=symmetric, tensorrt_model=not symmetric,
        )  # fmt: skip
        found["symmetric" if symmetric else "asymmetric"] = out
    return found


def feed(rows: int = 3, length: int = 17) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    ids = draw.integers(5, 100, (rows, length))
    mask = np.ones_like(ids)
    ids[-1, 9:], mask[-1, 9:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def in_onnxruntime(path) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
    )
    return session.run(["logits"], feed())[0]


def in_openvino(path) -> np.ndarray:
    from quantkit.backends.openvino import runtime

    model = runtime.core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model(feed())["logits"]


def in_numbers(path) -> np.ndarray:
    """Every operator of the file on its own, in float, nothing fused."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], feed())[0]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("asymmetric", "int8.onnx"), ("symmetric", "int8.onnx"), ("asymmetric", "int8-tensorrt.onnx")],
)
def test_one_file_gives_the_same_logits_everywhere(folders, kind, name):
    path = folders[kind] / name
    onnx.checker.check_model(str(path))
    expected = in_numbers(path)
    spread = np.abs(expected).max()
    for found in (in_openvino(path), in_onnxruntime(path)):
        assert found.shape == (3, 2)
        # A value on the edge between two codes may fall to either side, by rounding of sums in another order.
        np.testing.assert_allclose(found, expected, atol=0.03 * spread)


def test_the_symmetric_model_obeys_the_parser_and_the_asymmetric_does_not(folders):
    from quantkit.backends.trt.exported import parser_problems

    assert parser_problems(onnx.load(folders["asymmetric"] / "int8-tensorrt.onnx")) == []
    assert any("uint8" in problem for problem in parser_problems(onnx.load(folders["asymmetric"] / "int8.onnx")))


def test_the_readme_s_commands_run(folders, monkeypatch):
    """Its Python blocks, as they stand, in the folder."""
    pytest.importorskip("onnxruntime")
    folder = folders["asymmetric"]
    text = (folder / "README.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 2
    monkeypatch.chdir(folder)
    for block in blocks:
        names = dict(feed())
        exec(block, names)
        np.testing.assert_allclose(names["logits"], in_numbers("int8.onnx"), atol=0.03 * np.abs(names["logits"]).max())


def test_a_readme_of_somebody_else_is_left_alone(folders, tmp_path):
    from quantkit.report.readme import write_readme

    record = json.loads((folders["symmetric"] / "record.json").read_text())
    (tmp_path / "README.md").write_text("# Mine\n")
    assert write_readme(record, tmp_path) is None
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    (tmp_path / "README.md").unlink()
    for _ in range(2):
        assert "Made by quantkit" in write_readme(record, tmp_path).read_text()


def test_the_readme_says_what_can_run_where(folders, tmp_path):
    from quantkit.report.readme import write_readme

    text = (folders["asymmetric"] / "README.md").read_text()
    assert "TensorRT 8.6 to 10 reads `int8-tensorrt.onnx`" in text
    assert "uint8 with a zero point" in text
    record = json.loads((folders["asymmetric"] / "record.json").read_text())
    assert record["interface"] == {"inputs": ["input_ids", "attention_mask", "token_type_ids"], "output": "logits"}
    symmetric = (folders["symmetric"] / "README.md").read_text()
    assert "probabilities uint8 from 0" in symmetric
    assert "cannot run there" in symmetric
    record = json.loads((folders["symmetric"] / "record.json").read_text())
    record["plan"]["mode"] = "gemm"
    (tmp_path / "int8.onnx").write_bytes(b"a model")
    without_products = write_readme(record, tmp_path).read_text()
    assert "`--tensorrt-model` writes" in without_products
    assert "cannot run there" not in without_products
