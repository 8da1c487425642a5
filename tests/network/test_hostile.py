"""Models and adapters that ask for more than any machine has: refused, or left as they are, at once."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from quantkit.errors import ModelError


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("ConstantOfShape", ["extents"]),
        ("Expand", ["one", "extents"]),
        ("Tile", ["one", "extents"]),
        ("Range", ["zero", "most", "step"]),
    ],
)
def test_constants_that_a_few_bytes_ask_for_are_not_computed(tmp_path, operator, inputs):
    from onnx import TensorProto, helper, numpy_helper, save

    held = {"extents": np.int64([1 << 11, 1 << 11]), "one": np.ones((1, 1), np.float32), "w": np.ones(1, np.float32)}
    held |= {"zero": np.float32(0), "most": np.float32(1 << 22), "step": np.float32(1)}
    nodes = []
    for i in range(40):
        nodes += [
            helper.make_node(operator, inputs, [f"c{i}"]),
            helper.make_node("ReduceMax", [f"c{i}"], [f"m{i}"], keepdims=0),
        ]
    nodes.append(helper.make_node("Sum", ["x", *(f"m{i}" for i in range(40))], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, n) for n, v in held.items()])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    # 40 times 2^22 elements of 4 bytes are 640 MiB; with that many elements as the limit, a few of them are folded.
    script = (
        "import resource, sys; import quantkit.network.shapes as s, quantkit.network.onnx_import as o, onnx.reference;"
        "s.LARGEST = 1 << 22; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak();"
        "print(len(o.read_plain(sys.argv[1])[0].graph.node), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "m.onnx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nodes, grown_kib = map(int, done.stdout.split())
    assert nodes > 1
    assert grown_kib < 200 * 1024


@pytest.fixture
def adapter(tmp_path):
    """Writes an adapter of one pair of matrices and reads it."""
    from safetensors.numpy import save_file

    from quantkit.network.lora import Adapter

    def made(rows: int = 4, columns: int = 6, **settings):
        pair = {"A": np.ones((1, columns), np.float32), "B": np.ones((rows, 1), np.float32)}
        names = {f"base_model.model.q.lora_{side}.weight": matrix for side, matrix in pair.items()}
        save_file(names, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, **settings}))
        return Adapter.from_dir(tmp_path)

    return made


def test_thin_matrices_are_not_multiplied_into_one_that_fits_no_memory(adapter):
    with pytest.raises(ModelError, match=r"\(1000000, 1000000\)"):
        adapter(10**6, 10**6).merged("q.weight", np.ones((4, 6), np.float32))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e308])
def test_a_factor_that_makes_weights_infinite_is_refused(adapter, alpha):
    with pytest.raises(ModelError, match=r"q\.weight holds 24 values that are NaN or infinite"):
        adapter(lora_alpha=alpha).merged("q.weight", np.ones((4, 6), np.float32))


def test_a_rank_that_is_no_number_is_refused(adapter):
    with pytest.raises(ModelError, match="adapter configuration"):
        adapter(r=float("inf"))


@pytest.mark.parametrize("pattern", ["(a+)+", "(.*)*x", r"(a)\1", "a*a*a*a*b", "(?=a)", "x" * 1001])
def test_patterns_that_may_take_forever_are_refused(adapter, pattern):
    with pytest.raises(ModelError, match="take forever"):
        adapter(rank_pattern={pattern: 2}).merged("q.weight", np.ones((4, 6), np.float32))


@pytest.mark.parametrize("pattern", ["q", "(k|q)", r".*\.?q", "(?:q|v)", "[pq]"])
def test_patterns_of_usual_adapters_are_taken(adapter, pattern):
    merged = adapter(lora_alpha=1, alpha_pattern={pattern: 3}).merged("q.weight", np.ones((4, 6), np.float32))
    assert merged.tolist() == np.full((4, 6), 4).tolist()


def test_element_types_that_onnx_does_not_have_are_refused(tmp_path):
    from onnx import TensorProto, helper

    from quantkit.network.onnx_import import read_plain

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:]))
    model.graph.value_info.add(name="z").type.tensor_type.elem_type = 128
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError):
        read_plain(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", [b"NODE", b"GRAPH"], ids=["node", "graph"])
def test_a_name_that_is_no_text_is_refused(tmp_path, name):
    from onnx import TensorProto, helper

    from quantkit.network.onnx_import import read_plain

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node("Relu", ["x"], ["y"], name="NODE")
    model = helper.make_model(helper.make_graph([node], "GRAPH", ends[:1], ends[1:]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString().replace(name, b"\xff" * len(name)))
    with pytest.raises(ModelError, match=r"not UTF-8|valid ONNX model"):
        read_plain(tmp_path / "m.onnx")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("held", [3, 7])
def test_a_constant_that_does_not_fill_its_shape_is_refused(tmp_path, raw, held):
    from onnx import TensorProto, helper, numpy_helper

    from quantkit.network.onnx_import import read_plain

    values = np.arange(held, dtype=np.float32)
    made = numpy_helper.from_array(values, "w") if raw else helper.make_tensor("w", TensorProto.FLOAT, [held], values)
    made.dims[:] = [5, 1]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, 5]) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [made]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"does not hold what its shape|valid ONNX model"):
        read_plain(tmp_path / "m.onnx")
