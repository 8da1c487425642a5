"""`quantkit migrate`: a cache and a model become a Q/DQ model with the cache's very scales."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch_like import BATCH, LENGTH, TorchLike

from quantkit.network.model import load_model
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.network.qdq_reader import read_qdq
from quantkit.tables import CalibrationTable, Entry, load_table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def migrated(cli):
    """Runs migrate, which must succeed; its JSON."""

    def run(*arguments: object) -> dict:
        code, out, err = cli("migrate", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def feeds() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 50, (BATCH, LENGTH)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def check_partition(done: dict, table: CalibrationTable) -> None:
    """Every entry of the table is carried over, or stands in exactly one list."""
    lists = [set(done["carried"].values())]
    lists += [set(done[name]) for name in ("unnamed", "unknown", "constants", "zero", "unused")]
    assert Counter(name for part in lists for name in part) == Counter(table.names)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("calibrator", "placement", "products", "carried"),
    [
        *(("entropy2", "", 36, 24), ("entropy", "", 36, 24), ("minmax", "", 36, 24), ("legacy", "", 36, 24)),
        *(("entropy2", "gemm+residual+mha", 48, 42), ("entropy2", "general", 50, 50), ("legacy", "general", 49, 49)),
    ],
)
def test_recorded_caches_become_models_with_the_same_scales(
    migrated, shared_dir, folder, calibrator, placement, products, carried
):
    cache = shared_dir / "golden" / "minilm_sst2" / f"int8_{calibrator}.cache"
    onnx.save(TorchLike(6).model(), "model.onnx")
    options = ["--placement", placement] if placement else []
    done = migrated(cache, "model.onnx", "-o", "q.onnx", *options)
    table = load_table(cache)
    check_partition(done, table)
    assert done["unknown"] == done["zero"] == []  # TensorRT's names are the exporter's
    # Legacy calibrates after fusion: the input of the last product is no tensor of its own there.
    assert done["missing"] == (["/Tanh_output_0"] if products == 49 else [])
    assert done["checks"]["openvino"] == ""
    assert done["checks"].get("onnxruntime", "") == ""
    assert (len(done["quantized"]), len(done["carried"])) == (products, carried)
    back = {found.tensor: found for found in read_qdq("q.onnx").activations}
    for tensor, entry in done["carried"].items():
        assert back[tensor].scale.tobytes() == table[entry].scale.tobytes()
        assert back[tensor].symmetric
    if placement == "general":
        softmax = {tensor: entry for tensor, entry in done["carried"].items() if "Softmax" in tensor}
        assert softmax["/Softmax_1_output_0"] == "(Unnamed Layer* 124) [Softmax]_output"
        assert len(softmax) == 6


def test_what_calibrate_wrote_for_a_folder(cli, migrated, folder, tiny_bert_dir, tiny_glue_dir):
    data = ("--task", "sst2", "--data", tiny_glue_dir, "--calib-samples", 16, "--batch", 8, "--seq-len", 24)
    assert cli("calibrate", tiny_bert_dir, *data, "-m", "entropy", "-o", "tables")[0] == 0
    table = load_table("tables/entropy.cache")
    network = load_model(tiny_bert_dir)
    onnx.save(network.proto, "model.onnx")
    expected = insert_qdq(network.proto, table, PrecisionPlan())
    for model in (tiny_bert_dir, "model.onnx"):
        done = migrated("tables/entropy.cache", model, "-o", "q.onnx")
        check_partition(done, table)
        assert done["placement"] == "gemm"
        assert done["quantized"] == expected.quantized
        ours = onnx.load("q.onnx")
        assert {t.name for t in ours.graph.initializer} >= {f"{w}.quantized" for w in expected.weight_scales}
    # The JSON table knows its model, and another one is refused.
    done = migrated("tables/entropy.json", "model.onnx", "-o", "q.onnx")
    assert len(done["carried"]) == 8
    network.proto.graph.initializer[0].raw_data = bytes(len(network.proto.graph.initializer[0].raw_data))
    onnx.save(network.proto, "other.onnx")
    code, _, err = cli("migrate", "tables/entropy.json", "other.onnx", "-o", "r.onnx")
    assert code == 2
    assert "--force" in err
    assert not (folder / "r.onnx").exists()
    assert cli("migrate", "tables/entropy.json", "other.onnx", "-o", "r.onnx", "--force", "--no-check")[0] == 0


def inputs_of_products() -> list[str]:
    return [
        *("/LayerNorm/LayerNormalization_output_0", "/Reshape_4_output_0", "/LayerNorm_1/LayerNormalization_output_0"),
        "/Mul_3_output_0",
    ]


def test_what_cannot_be_carried_over_is_listed(migrated, cli, folder):
    onnx.save(TorchLike(1).model(), "model.onnx")
    first, second, third, _ = inputs_of_products()
    scales = {first: 0.02, second: 0.0, "/Add_output_0": 0.1, "onnx::Constant_8": 0.1, "gone": 0.1, "(x)": 0.0}
    scales |= {"(Unnamed Layer* 3) [Constant]_output": 0.1, "logits": 0.2}
    table = CalibrationTable({name: Entry(value) for name, value in scales.items()}, "entropy")
    table.save("old.cache")
    done = migrated("old.cache", "model.onnx", "-o", "q.onnx")
    check_partition(done, table)
    assert done["carried"] == {first: first}
    assert done["quantized"] == ["/query/MatMul", "/key/MatMul", "/value/MatMul"]
    assert done["unnamed"] == ["(Unnamed Layer* 3) [Constant]_output"]
    assert done["unknown"] == ["gone"]
    assert done["constants"] == ["onnx::Constant_8"]
    assert done["zero"] == [second, "(x)"]
    assert done["missing"] == [third, "/Mul_3_output_0"]
    assert done["unused"] == {"/Add_output_0": "read by Add", "logits": "nothing reads it"}
    assert done["left_float"][second] == "its scale is 0"
    assert done["left_float"]["/dense_1/MatMul"] == f"its input {third} is not quantized"
    assert done["infinite"] == []
    with Path("old.cache").open("a") as file:
        file.write(f"{third}: 7f800000\n")
    code, out, err = cli("migrate", "old.cache", "model.onnx", "-o", "q.onnx")
    assert (code, err) == (0, "")
    assert f"  1 infinite scales\n    {third}\n" in out
    assert "  1 entries that name no tensor of the model\n    gone\n" in out
    assert "  2 zero scales" in out
    assert "  2 tensors without scale" in out
    assert cli("migrate", "old.cache", "model.onnx", "-o", "q.onnx", "--quiet") == (0, "", "")


def test_a_convolutional_network(migrated, folder):
    """SqueezeNet's graph, as the onnx package has it for its own tests: opset 9, weights made by ConstantOfShape."""
    graph = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_squeezenet.onnx"
    if not graph.exists():
        pytest.skip("this onnx package has no light models")
    model = onnx.load(graph)
    names = [name for node in model.graph.node for name in node.output]
    table = CalibrationTable({name: Entry(0.05) for name in ("data_0", *names)}, "minmax")
    table.save("old.cache")
    done = migrated("old.cache", graph, "-o", "q.onnx")
    check_partition(done, table)
    assert done["placement"] == "general"
    assert (len(done["quantized"]), done["unknown"], done["missing"], done["left_float"]) == (26, [], [], {})
    assert done["carried"]["data_0"] == "data_0"
    assert {weight.axis for weight in read_qdq("q.onnx").weights} == {0}
    assert done["checks"] == {"onnxruntime": "", "openvino": ""}


def test_weights_as_float_constants(migrated, folder):
    onnx.save(TorchLike(1).model(), "model.onnx")
    CalibrationTable({name: Entry(0.05) for name in inputs_of_products()}).save("old.cache")
    migrated("old.cache", "model.onnx", "-o", "int8.onnx")
    migrated("old.cache", "model.onnx", "-o", "float.onnx", "--float-weights")
    codes = {n.input[0] for n in onnx.load("float.onnx").graph.node if n.op_type == "DequantizeLinear"}
    assert not codes & {t.name for t in onnx.load("float.onnx").graph.initializer}
    logits = [run(name) for name in ("int8.onnx", "float.onnx")]
    np.testing.assert_array_equal(*logits)


def run(path: str) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds())[0]


def test_migrated_models_compute_what_the_float_model_does(migrated, folder):
    """Scales from the model's own activations: INT8 is near FP32, and nearer to itself in another runtime."""
    import onnxruntime as ort

    model = TorchLike(2).model()
    onnx.save(model, "model.onnx")
    names = [output for node in model.graph.node for output in node.output if node.op_type != "Constant"]
    tapped = onnx.load("model.onnx")
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "logits")
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds()), strict=True))
    entries = {name: Entry(np.float32(np.abs(value).max() / 127)) for name, value in found.items()}
    CalibrationTable(entries, "minmax").save("own.cache")
    exact = run("model.onnx")
    for placement in ("gemm", "gemm+residual+mha", "general"):
        done = migrated("own.cache", "model.onnx", "-o", "q.onnx", "--placement", placement)
        assert done["checks"] == {"onnxruntime": "", "openvino": ""}
        ours = run("q.onnx")
        assert 0 < np.abs(ours - exact).max() < 0.15 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cache": "none.cache"}, "no file none.cache"),
        ({"model": "none.onnx"}, "none.onnx"),
        ({"out": "model.onnx"}, "is the model itself"),
        ({"cache": "other.cache"}, "none of the 4 tensors"),
        ({"placement": "gem"}, "Did you mean gemm"),
        ({"cache": "zero.cache"}, "No product of the model could be quantized"),
        ({"model": "quantized.onnx"}, "is quantized already"),
    ],
)
def test_bad_input_is_one_sentence(cli, folder, change, words):
    onnx.save(TorchLike(1).model(), "model.onnx")
    CalibrationTable({name: Entry(0.05) for name in inputs_of_products()}).save("old.cache")
    CalibrationTable({name: Entry(0.0) for name in inputs_of_products()}).save("zero.cache")
    CalibrationTable({"conv1": Entry(0.05)}).save("other.cache")
    assert cli("migrate", "old.cache", "model.onnx", "-o", "quantized.onnx", "--no-check")[0] == 0
    given = {"cache": "old.cache", "model": "model.onnx", "out": "q.onnx", "placement": "gemm", **change}
    code, _, err = cli("migrate", given["cache"], given["model"], "-o", given["out"], "--placement", given["placement"])
    assert code == 2
    assert words in err
    assert "Traceback" not in err
