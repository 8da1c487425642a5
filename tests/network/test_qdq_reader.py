"""Scales read out of Q/DQ models: ours, onnxruntime's, and every form that can be met."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantkit.errors import ModelError, QuantkitError, TableError
from quantkit.network.qdq_reader import find_scales, read_qdq, verify_scales


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int = 19) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def pair(zero_point: np.ndarray | None, scale: object = np.float32(0.1)) -> onnx.ModelProto:
    inputs = ["s"] if zero_point is None else ["s", "z"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *inputs], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *inputs], ["y"]),
    ]
    return model_of(nodes, {"s": scale, **({} if zero_point is None else {"z": zero_point})})


def test_int8_around_zero_is_the_tables_own_grid() -> None:
    found = find_scales(pair(np.int8(0)))
    (activation,) = found.activations
    assert (activation.tensor, activation.scale, activation.zero_point, activation.dtype) == (
        "x",
        np.float32(0.1),
        0,
        "int8",
    )
    table, notes = found.table()
    assert table["x"].scale == np.float32(0.1)
    assert (table["x"].minimum, notes) == (None, [])


@pytest.mark.parametrize(
    ("zero_point", "dtype", "low", "high"),
    [
        (np.uint8(0), "uint8", 0, 255),
        (None, "uint8", 0, 255),
        (np.uint8(128), "uint8", -128, 127),
        (np.uint8(10), "uint8", -10, 245),
        (np.int8(-128), "int8", 0, 255),
    ],
)
def test_any_other_grid_becomes_a_range(zero_point, dtype, low, high) -> None:
    found = find_scales(pair(zero_point))
    assert found.activations[0].dtype == dtype
    assert found.activations[0].zero_point == (0 if zero_point is None else int(zero_point))
    table, notes = found.table()
    step = float(np.float32(0.1))
    assert (table["x"].minimum, table["x"].maximum) == (low * step, high * step)
    assert table["x"].scale == np.float32(max(-low, high) * step / 127)
    assert "1 tensors have a grid that is not int8 around zero" in notes[0]


def test_weights_are_listed_by_themselves() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w.quantized", "ws", "wz"], ["w.dequantized"], axis=0),
        helper.make_node("QuantizeLinear", ["v", "vs"], ["vq"], axis=1),
        helper.make_node("DequantizeLinear", ["vq", "vs"], ["vd"], axis=1),
        helper.make_node("DequantizeLinear", ["b_quantized", "s"], ["bd"]),
        helper.make_node("MatMul", ["x", "w.dequantized"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["hq"]),
        helper.make_node("DequantizeLinear", ["hq", "s", "z"], ["y"]),
    ]
    constants = {
        **{"w.quantized": np.ones((3, 3), np.int8), "ws": np.array([1, 2, 3], np.float32), "wz": np.zeros(3, np.int8)},
        **{"v": np.ones((2, 3), np.float32), "vs": np.array([4, 5, 6], np.float32)},
        **{"b_quantized": np.ones(3, np.int32), "s": np.float32(0.5), "z": np.int8(0)},
    }
    found = find_scales(model_of(nodes, constants))
    assert [a.tensor for a in found.activations] == ["h"]
    rows = [(w.tensor, w.scales.tolist(), w.zero_points.tolist(), w.axis, w.dtype) for w in found.weights]
    assert rows == [
        ("w", [1, 2, 3], [0, 0, 0], 0, "int8"),
        ("v", [4, 5, 6], [0, 0, 0], 1, "uint8"),
        ("b", [0.5], [0], None, "int32"),
    ]
    assert found.table()[0].names == ("h",)


def test_constants_in_nodes_and_what_cannot_be_read() -> None:
    scale = helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.array(0.25, np.float32)))
    nodes = [
        scale,
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("QuantizeLinear", ["a", "m", "z"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "m", "z"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "vector", "zs"], ["q3"]),
        helper.make_node("DequantizeLinear", ["q3", "vector", "zs"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z16"], ["q4"]),
        helper.make_node("DequantizeLinear", ["q4", "s", "z16"], ["y"]),
        helper.make_node("QuantizeLinear", ["x", "vector1", "z"], ["q5"]),
    ]
    constants = {
        **{"z": np.int8(0), "vector": np.ones(3, np.float32), "zs": np.zeros(3, np.int8), "z16": np.int16(0)},
        "vector1": np.float32(0.5),
    }
    found = find_scales(model_of(nodes, constants, opset=21))
    assert [(a.tensor, float(a.scale)) for a in found.activations] == [("x", 0.25)]
    words = ("computed at run time", "per channel", "int16", "quantized twice")
    assert len(found.notes) == 4
    for note, word in zip(found.notes, words, strict=True):
        assert word in note


def test_scales_that_no_build_can_use_name_the_tensor() -> None:
    with pytest.raises(TableError, match="tensor 'x': The scale inf"):
        find_scales(pair(np.int8(0), np.float32(np.inf))).table()


def test_scales_that_do_not_come_back_are_found() -> None:
    model = pair(np.int8(0))
    verify_scales(model, {"x": np.float32(0.1)})
    for scales in ({"x": np.nextafter(np.float32(0.1), np.float32(1))}, {"other": np.float32(0.1)}):
        with pytest.raises(ModelError, match="does not come back"):
            verify_scales(model, scales)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="is not valid"):
        verify_scales(model, {})


def test_files_without_pairs_and_files_that_are_no_models(tmp_path) -> None:
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["y"])], {}), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no QuantizeLinear or DequantizeLinear"):
        read_qdq(tmp_path / "m.onnx")
    (tmp_path / "n.onnx").write_bytes(b"\x08\x01nothing")
    with pytest.raises(ModelError, match=r"n\.onnx"):
        read_qdq(tmp_path / "n.onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_onnxruntimes_quantizer_wrote(tmp_path, symmetric) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    weight = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    onnx.save(model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight}), tmp_path / "f.onnx")
    batches = [{"x": np.array([[-1, 2, 0.5], [0, 0, 1]], np.float32)}]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self):
            return next(self.rest, None)

    quantization.quantize_static(
        tmp_path / "f.onnx",
        tmp_path / "q.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric},
    )
    found = read_qdq(tmp_path / "q.onnx")
    own = {a.tensor: a for a in found.activations}
    assert own["x"].dtype == ("int8" if symmetric else "uint8")
    if symmetric:
        assert own["x"].zero_point == 0
    else:
        assert float(own["x"].scale) == pytest.approx(3 / 255)
        assert own["x"].zero_point == 85
        entry = found.table()[0]["x"]
        assert (entry.minimum, entry.maximum) == (pytest.approx(-1), pytest.approx(2))
    (kernel,) = [w for w in found.weights if w.dtype == "int8"]
    assert kernel.tensor == "w"
    assert (kernel.axis, kernel.scales.size) == (1, 3)


GOOD = pair(np.uint8(3)).SerializeToString()


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_model_is_scales_or_our_own_error(data) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(bytes(damaged))
    except (DecodeError, ValueError):
        return
    with suppress(QuantkitError):
        find_scales(model).table()
