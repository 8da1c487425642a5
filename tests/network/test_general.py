"""The general placement: MatMul, Gemm and Conv of any graph, per-channel kernels, and what stays FP32 and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from network_helpers import table_of
from onnx import TensorProto, helper, numpy_helper

from quantkit.errors import ModelError, TableError
from quantkit.network.general import place_everywhere
from quantkit.network.index import GraphIndex
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.network.qdq_reader import find_scales
from quantkit.tables import CalibrationTable, Entry


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def convnet() -> onnx.ModelProto:
    """Conv with bias -> Relu -> grouped Conv -> Relu -> ConvTranspose -> mean -> Gemm -> MatMul with itself."""
    constants = {
        **{"k1": draw(6, 3, 3, 3), "b1": draw(6), "k2": draw(6, 3, 3, 3, seed=1), "k3": draw(6, 4, 2, 2, seed=2)},
        **{"fc": draw(5, 4, seed=3), "axes": np.array([2, 3])},
    }
    nodes = [
        helper.make_node("Conv", ["image", "k1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], name="conv2", group=2),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("ConvTranspose", ["r2", "k3"], ["up"], name="up"),
        helper.make_node("ReduceMean", ["up", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "fc"], ["scores"], name="fc", transB=1),
        helper.make_node("Transpose", ["scores"], ["turned"], name="turn"),
        helper.make_node("MatMul", ["scores", "turned"], ["out"], name="gram"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [4, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


FEED = {"image": draw(4, 3, 8, 8, seed=9)}
TENSORS = ("r1", "r2", "mean", "scores")


def tables(model: onnx.ModelProto) -> CalibrationTable:
    return table_of({**run_float(model, TENSORS), **FEED})


def run_float(model: onnx.ModelProto, names: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([info.name for info in session.get_outputs()], session.run(None, FEED), strict=True))


def test_every_product_is_quantized_and_the_result_is_near() -> None:
    model = convnet()
    table = tables(model)
    result = insert_qdq(model, table, PrecisionPlan(), rule=place_everywhere)
    onnx.checker.check_model(result.proto, full_check=True)
    assert result.quantized == ["conv1", "conv2", "fc", "gram"]
    assert result.skipped == {"up": "ConvTranspose of this form is not covered by the general rule"}
    exact, ours = (run_float(m)["out"] for m in (model, result.proto))
    assert 0 < np.abs(exact - ours).max() < 0.05 * np.abs(exact).max()
    found = find_scales(result.proto)
    # "turned" only reorders "scores": it has no entry of its own and takes the other's.
    assert {a.tensor: a.scale for a in found.activations} == {
        **{name: table[name].scale for name in ("image", "r1", "mean", "scores")},
        "turned": table["scores"].scale,
    }
    assert all(a.symmetric for a in found.activations)


def test_kernels_are_quantized_per_output_channel() -> None:
    model = convnet()
    result = insert_qdq(model, tables(model), PrecisionPlan(), rule=place_everywhere)
    weights = {w.tensor: w for w in find_scales(result.proto).weights}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, axis in (("k1", 0), ("k2", 0), ("fc", 0)):
        rest = tuple(range(1, constants[name].ndim))
        expected = np.abs(constants[name]).max(axis=rest) / np.float32(127)
        assert weights[name].axis == axis
        np.testing.assert_array_equal(weights[name].scales, expected)
        codes = next(t for t in result.proto.graph.initializer if t.name == f"{name}.quantized")
        assert np.abs(numpy_helper.to_array(codes)).max(axis=rest).tolist() == [127] * len(expected)
    assert weights.keys() == {"k1", "k2", "fc"}


def test_a_weight_that_two_products_read_along_different_axes() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        helper.make_node("Gemm", ["y", "w"], ["z"], name="second", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(draw(4, 6) * np.arange(1, 5, dtype=np.float32)[:, None], "w")],
        value_info=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    table = CalibrationTable({"x": Entry(0.02), "y": Entry(0.02)})
    result = insert_qdq(model, table, PrecisionPlan(), rule=place_everywhere)
    axes = {node.output[0]: [a.i for a in node.attribute] for node in result.proto.graph.node if "w" in node.output[0]}
    assert sorted(axes.values()) == [[0], [1]]
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    exact, ours = (plain(m, x) for m in (model, result.proto))
    assert np.abs(exact - ours).max() < 0.05 * np.abs(exact).max()


def plain(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("drop", "zero", "quantized", "skipped"),
    [
        ("r1", "", ["conv1", "fc", "gram"], {"r1": "no entry", "conv2": "its input r1 is not quantized"}),
        ("scores", "", ["conv1", "conv2", "fc"], {"scores": "no entry", "gram": "its input scores is not quantized"}),
        ("", "r1", ["conv1", "fc", "gram"], {"r1": "its scale is 0", "conv2": "its input r1 is not quantized"}),
    ],
)
def test_what_has_no_usable_scale_stays_float_and_is_listed(drop, zero, quantized, skipped) -> None:
    model = convnet()
    entries = {name: entry for name, entry in tables(model).entries.items() if name != drop}
    if zero:
        entries[zero] = Entry(0.0)
    result = insert_qdq(model, CalibrationTable(entries), PrecisionPlan(), rule=place_everywhere)
    assert result.quantized == quantized
    for name, why in skipped.items():
        assert why in result.skipped[name]


def test_patterns_take_products_out() -> None:
    model = convnet()
    plan = PrecisionPlan(skip=frozenset({"conv*", "gram"}))
    result = insert_qdq(model, tables(model), plan, rule=place_everywhere)
    assert result.quantized == ["fc"]
    assert result.skipped["conv1"] == "left in FP32 by the pattern 'conv*'"


def test_tables_of_other_models_and_models_without_products_are_refused() -> None:
    model = convnet()
    with pytest.raises(TableError, match="none of the"):
        insert_qdq(model, CalibrationTable({"other": Entry(1.0)}), PrecisionPlan(), rule=place_everywhere)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="r")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    with pytest.raises(ModelError, match="no MatMul, Gemm or Conv"):
        place_everywhere(GraphIndex(graph), CalibrationTable({"x": Entry(1.0)}), PrecisionPlan())
