"""Q/DQ: where the pairs are, what they compute, what is left out and why, and that OpenVINO runs INT8 for them."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from network_helpers import Foreign, feed, run, table_of, tiny_model
from onnx import numpy_helper

from quantkit.errors import ModelError, TableError
from quantkit.network.config import BertConfig
from quantkit.network.graph import Network
from quantkit.network.model import load_model
from quantkit.network.onnx_import import load_onnx
from quantkit.network.precision import MODES, Grid, PrecisionPlan
from quantkit.network.qdq import QdqResult, insert_qdq, required_tensors
from quantkit.network.structure import find_encoder
from quantkit.tables.table import CalibrationTable, Entry

PRODUCTS = ["attention.query", "attention.key", "attention.value", "attention.output", "ffn.intermediate", "ffn.output"]


@pytest.fixture(scope="module")
def network(tiny_bert_dir: Path) -> Network:
    return load_model(tiny_bert_dir)


@pytest.fixture(scope="module")
def table(network: Network) -> CalibrationTable:
    return table_of(run(network.proto, feed(100, 8, 20, seed=1), network.activations()))


def pairs(proto: onnx.ModelProto) -> dict[str, str]:
    """Quantized activation -> name of its DequantizeLinear's result."""
    nodes = {node.output[0]: node for node in proto.graph.node}
    results = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in nodes:
            results[nodes[node.input[0]].input[0]] = node.output[0]
    return results


@pytest.mark.parametrize(
    ("mode", "tensors", "nodes"),
    [
        ("gemm", ["<input>", "attention.context", "attention.norm", "ffn.gelu"], [f"{p}.matmul" for p in PRODUCTS]),
        ("ffn-only", ["attention.norm", "ffn.gelu"], ["ffn.intermediate.matmul", "ffn.output.matmul"]),
    ],
)
def test_placement(network: Network, table: CalibrationTable, mode: str, tensors: list[str], nodes: list[str]) -> None:
    result = insert_qdq(network.proto, table, PrecisionPlan(mode))
    inputs = {0: "embeddings.norm", 1: "layer0.ffn.norm"}
    expected = {inputs[i] if t == "<input>" else f"layer{i}.{t}" for i in range(2) for t in tensors}
    assert pairs(result.proto) == {t: f"{t}.dequantized" for t in expected}
    assert result.grids.keys() == expected
    assert result.quantized == [f"layer{i}.{n}" for i in range(2) for n in nodes]
    assert result.skipped == {}
    assert result.weight_scales.keys() == {node.replace(".matmul", ".weight") for node in result.quantized}
    for node in result.proto.graph.node:
        reads = [name for name in node.input if name.endswith(".dequantized")]
        assert len(reads) == (2 if node.name in result.quantized else 0), node.name


def test_residuals_read_the_shared_pair(network: Network, table: CalibrationTable) -> None:
    result = insert_qdq(network.proto, table, PrecisionPlan("gemm+residual"))
    nodes = {node.name: node for node in result.proto.graph.node}
    assert list(nodes["layer1.attention.residual"].input) == ["layer1.attention.output", "layer0.ffn.norm.dequantized"]
    assert list(nodes["layer1.ffn.residual"].input) == ["layer1.ffn.output", "layer1.attention.norm.dequantized"]
    assert "layer0.attention.residual" not in result.quantized
    kept = insert_qdq(network.proto, table, PrecisionPlan("gemm+residual", frozenset({"layer1.ffn.residual"})))
    nodes = {node.name: node for node in kept.proto.graph.node}
    assert nodes["layer1.ffn.residual"].input[1] == "layer1.attention.norm"
    assert nodes["layer0.ffn.residual"].input[1] == "layer0.attention.norm.dequantized"


def test_attention_products(network: Network, table: CalibrationTable) -> None:
    int8, uint8 = Grid(np.float32(1 / 127)), Grid(np.float32(1 / 255), 0, False)
    for symmetric, int8_only, unit in ((True, True, int8), (True, False, uint8), (False, False, uint8)):
        plan = PrecisionPlan("gemm+residual+mha", symmetric=symmetric, int8_only=int8_only)
        result = insert_qdq(network.proto, table, plan)
        assert len(result.quantized) == 2 * 8
        nodes = {node.name: node for node in result.proto.graph.node}
        name = "layer0.attention"
        assert list(nodes[f"{name}.scores"].input) == [
            f"{name}.query_heads.dequantized",
            f"{name}.key_heads.dequantized",
        ]
        assert list(nodes[f"{name}.context_heads"].input) == [
            f"{name}.probs.dequantized",
            f"{name}.value_heads.dequantized",
        ]
        assert result.grids[f"{name}.probs"] == unit
        # An alias takes the range of what it reorders; a product of two activations needs both around zero.
        assert result.grids[f"{name}.query_heads"] == Grid(table[f"{name}.query_scaled"].scale)


def test_aliases_may_stand_for_each_other_in_the_table(network: Network, table: CalibrationTable) -> None:
    sources = CalibrationTable({n: e for n, e in table.entries.items() if n not in network.aliases()})
    plan = PrecisionPlan("gemm+residual+mha")
    with_sources, with_all = insert_qdq(network.proto, sources, plan), insert_qdq(network.proto, table, plan)
    assert with_sources.skipped == {}
    assert with_sources.grids == with_all.grids


@pytest.mark.parametrize("mode", list(MODES))
def test_required_tensors_are_enough_and_all_needed(network: Network, table: CalibrationTable, mode: str) -> None:
    plan = PrecisionPlan(mode)
    needed = required_tensors(network.proto, plan)
    assert not set(needed) & network.aliases().keys()
    enough = CalibrationTable({name: table[name] for name in needed})
    assert insert_qdq(network.proto, enough, plan).quantized == insert_qdq(network.proto, table, plan).quantized
    for name in needed:
        lacking = CalibrationTable({n: e for n, e in enough.entries.items() if n != name})
        assert insert_qdq(network.proto, lacking, plan).skipped, name


@pytest.mark.parametrize("symmetric", [True, False])
def test_models_are_valid_and_names_stay(network: Network, table: CalibrationTable, symmetric: bool) -> None:
    before = network.proto.SerializeToString(deterministic=True)
    for base in (network.proto, network.fixed(3, 11)):
        for mode in MODES:
            result = insert_qdq(base, table, PrecisionPlan(mode, symmetric=symmetric))
            onnx.checker.check_model(result.proto, full_check=True)
            assert [n for n in Network(result.proto).names if ".quantized" not in n and ".dequantized" not in n] == [
                name for node in base.graph.node for name in node.output
            ]
            run(result.proto, feed(100))
    assert network.proto.SerializeToString(deterministic=True) == before


def round_trip(x: np.ndarray, grid: Grid) -> np.ndarray:
    """Quantize and dequantize in NumPy, by the definition."""
    low, high = (-128, 127) if grid.signed else (0, 255)
    codes = np.clip(np.rint(x / grid.scale) + grid.zero_point, low, high)
    return ((codes - grid.zero_point) * grid.scale).astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_are_those_of_fake_quantization(network: Network, table: CalibrationTable, symmetric: bool) -> None:
    result = insert_qdq(network.proto, table, PrecisionPlan("gemm", symmetric=symmetric))
    weights = {t.name: numpy_helper.to_array(t) for t in network.proto.graph.initializer}
    values = run(result.proto, feed(100), [*network.activations(), *(f"{t}.dequantized" for t in result.grids)])
    for tensor, grid in result.grids.items():
        assert np.array_equal(values[f"{tensor}.dequantized"], round_trip(values[tensor], grid)), tensor
    for product in network.weight_matmuls()[:12]:
        weight, scales = weights[product.weight], result.weight_scales[product.weight]
        assert np.array_equal(scales, (np.abs(weight).max(0) / np.float32(127)).astype(np.float32))
        fake = np.clip(np.rint(weight / scales), -127, 127).astype(np.float32) * scales
        expected = round_trip(values[product.activation], result.grids[product.activation]) @ fake
        assert np.abs(values[product.output] - expected).max() < 2e-5, product.node


def test_grids_follow_the_table_and_the_plan(network: Network, table: CalibrationTable) -> None:
    entries = dict(table.entries)
    entries["embeddings.norm"] = Entry(np.float32(0.01), -0.5, 3.0)  # amax 1.27 clips the upper end only
    entries["layer0.ffn.gelu"] = Entry(np.float32(0.02))  # no extremes: only the symmetric grid is known
    changed = CalibrationTable(entries)
    signed = insert_qdq(network.proto, changed, PrecisionPlan()).grids
    assert signed["embeddings.norm"] == Grid(np.float32(0.01))
    unsigned = insert_qdq(network.proto, changed, PrecisionPlan(symmetric=False)).grids
    assert unsigned["embeddings.norm"] == Grid.between(-0.5, entries["embeddings.norm"].amax)
    assert unsigned["embeddings.norm"].zero_point == round(0.5 / 1.77 * 255)
    assert unsigned["layer0.ffn.gelu"] == Grid(np.float32(0.02))


def without(table: CalibrationTable, **changed: Entry | None) -> CalibrationTable:
    entries = {**table.entries, **changed}
    return CalibrationTable({name: entry for name, entry in entries.items() if entry is not None})


def test_missing_and_zero_entries_are_told_and_left_out(network: Network, table: CalibrationTable) -> None:
    lacking = without(table, **{"layer0.ffn.gelu": None, "layer1.attention.norm": Entry(np.float32(0))})
    result = insert_qdq(network.proto, lacking, PrecisionPlan())
    assert result.skipped == {
        "layer0.ffn.gelu": "the calibration table has no entry for it",
        "layer0.ffn.output.matmul": "its input layer0.ffn.gelu is not quantized",
        "layer1.attention.norm": "its scale is 0",
        "layer1.ffn.intermediate.matmul": "its input layer1.attention.norm is not quantized",
    }
    assert len(result.quantized) == 10
    nodes = {node.name: node for node in result.proto.graph.node}
    assert list(nodes["layer0.ffn.output.matmul"].input) == ["layer0.ffn.gelu", "layer0.ffn.output.weight"]
    assert "layer0.ffn.output.weight" in {t.name for t in result.proto.graph.initializer}


def test_an_attention_product_needs_both_inputs(network: Network, table: CalibrationTable) -> None:
    lacking = without(table, **{f"layer0.attention.key{end}": None for end in ("", "_split", "_heads")})
    result = insert_qdq(network.proto, lacking, PrecisionPlan("gemm+residual+mha"))
    assert result.skipped["layer0.attention.scores"] == "its input layer0.attention.key_heads is not quantized"
    assert "layer0.attention.query_heads" not in pairs(result.proto)
    assert "layer0.attention.context_heads" in result.quantized


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["1"], ["layer1"]),
        (["layer1.*"], ["layer1"]),
        (["layer*.ffn.gelu"], ["layer0.ffn.output", "layer1.ffn.output"]),
        (["*.key.weight"], ["layer0.attention.key", "layer1.attention.key"]),
        (["embeddings.norm"], ["layer0.attention.query", "layer0.attention.key", "layer0.attention.value"]),
        (["layer0.attention.output.matmul"], ["layer0.attention.output"]),
    ],
)
def test_patterns_keep_things_in_fp32(
    network: Network, table: CalibrationTable, skip: list[str], left: list[str]
) -> None:
    result = insert_qdq(network.proto, table, PrecisionPlan(skip=frozenset(skip)))
    everything = insert_qdq(network.proto, table, PrecisionPlan()).quantized
    expected = [name for name in everything if not name.startswith(tuple(left))]
    assert result.quantized == expected
    assert set(result.skipped) == set(everything) - set(expected)
    assert all("pattern" in reason for reason in result.skipped.values())


def test_everything_skipped_is_the_float_model(network: Network, table: CalibrationTable) -> None:
    result = insert_qdq(network.proto, table, PrecisionPlan(skip=frozenset("*")))
    assert (result.quantized, result.grids) == ([], {})
    tokens = feed(100)
    assert np.array_equal(run(result.proto, tokens)["logits"], run(network.proto, tokens)["logits"])


def test_the_table_of_another_model(network: Network) -> None:
    with pytest.raises(TableError, match=r"none of the 8 tensors to quantize, such as embeddings\.norm"):
        insert_qdq(network.proto, CalibrationTable({"conv1": Entry(np.float32(0.1))}), PrecisionPlan())


def test_graphs_that_cannot_be_quantized(network: Network, table: CalibrationTable) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(network.proto)
    old.opset_import[0].version = 12
    with pytest.raises(ModelError, match="opset 12"):
        insert_qdq(old, table, PrecisionPlan())
    plain = onnx.ModelProto()
    plain.CopyFrom(network.proto)
    for node in plain.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "Relu"
    with pytest.raises(ModelError, match="No encoder layer"):
        insert_qdq(plain, table, PrecisionPlan())


@pytest.fixture(scope="module")
def foreign(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Network:
    file = tmp_path_factory.mktemp("foreign") / "model.onnx"
    onnx.save(Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).model(), file)
    return load_onnx(file)


@pytest.mark.parametrize("mode", list(MODES))
def test_foreign_graphs_are_quantized_alike(
    network: Network, table: CalibrationTable, foreign: Network, mode: str
) -> None:
    theirs = table_of(run(foreign.proto, feed(100, 8, 20, seed=1), foreign.activations()))
    plan, tokens = PrecisionPlan(mode, symmetric=False), feed(100)
    ours_q, theirs_q = insert_qdq(network.proto, table, plan), insert_qdq(foreign.proto, theirs, plan)
    onnx.checker.check_model(theirs_q.proto, full_check=True)
    assert len(theirs_q.quantized) == len(ours_q.quantized)
    assert theirs_q.skipped == {}
    ours_logits, their_logits = run(ours_q.proto, tokens)["logits"], run(theirs_q.proto, tokens)["logits"]
    exact = run(network.proto, tokens)["logits"]
    assert 0 < np.abs(ours_logits - exact).max() < 0.2
    if "mha" not in mode:  # there the query is quantized before or after its scaling
        assert np.abs(ours_logits - their_logits).max() < 0.02
    else:
        assert np.abs(their_logits - exact).max() < 0.2


def test_derived_names_that_are_taken(network: Network, table: CalibrationTable) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(network.proto)
    for node in model.graph.node:
        for part in (node.input, node.output):
            for i, name in enumerate(part):
                part[i] = "embeddings.norm.quantized" if name == "mask.float" else name
    result = insert_qdq(model, table, PrecisionPlan())
    onnx.checker.check_model(result.proto)
    assert "embeddings.norm.quantized_1" in {name for node in result.proto.graph.node for name in node.output}


def test_a_shared_weight_is_quantized_once(network: Network, table: CalibrationTable) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(network.proto)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "layer0.ffn.output.weight" if name == "layer1.ffn.output.weight" else name
    result = insert_qdq(model, table, PrecisionPlan())
    assert len(result.quantized) == 12
    assert len(result.weight_scales) == 11
    kept = insert_qdq(model, table, PrecisionPlan(skip=frozenset({"1"})))
    names = {t.name for t in kept.proto.graph.initializer}
    assert {"layer0.ffn.output.weight", "layer0.ffn.output.weight.quantized"} <= names


def executed(result: QdqResult) -> tuple[list[dict[str, str]], np.ndarray]:
    """What OpenVINO runs, node by node, and the logits it gives."""
    ov = pytest.importorskip("openvino")
    core = ov.Core()
    model = core.read_model(result.proto.SerializeToString(), b"")
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    nodes = [{k: i[k].value for k in ("layerType", "runtimePrecision", "originalLayersNames")} for i in infos]
    return nodes, next(iter(compiled(feed(100)).values()))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names of precisions are those of x86")
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("symmetric", "codes"), [(True, "i8"), (False, "u8")])
@pytest.mark.parametrize("mode", list(MODES))
def test_openvino_runs_the_layers_in_int8(
    network: Network, table: CalibrationTable, mode: str, symmetric: bool, codes: str, static: bool
) -> None:
    base = network.fixed(3, 11) if static else network.proto
    result = insert_qdq(base, table, PrecisionPlan(mode, symmetric=symmetric))
    nodes, logits = executed(result)
    dense = Counter(n["runtimePrecision"] for n in nodes if n["layerType"] == "FullyConnected")
    assert dense[codes] == len(result.weight_scales)
    assert set(dense) <= {codes, "f32"}
    # The attention's first product is a MatMul of its own, or part of the kernel the attention is fused into.
    scores = [n for n in nodes if "layer0.attention.scores" in n["originalLayersNames"].split(",")]
    expected = "i8" if "mha" in mode else "f32"
    assert [n["runtimePrecision"] for n in scores if n["layerType"] in ("MatMul", "Subgraph")] == [expected], scores
    assert np.abs(logits - run(result.proto, feed(100))["logits"]).max() < 0.1


def test_a_scale_behind_the_scores_goes_to_the_query(foreign: Network) -> None:
    """Exports divide the scores by sqrt(d); a fused INT8 attention needs the factor in front of the product."""
    theirs = table_of(run(foreign.proto, feed(100, 8, 20, seed=1), foreign.activations()))
    pair = find_encoder(foreign.index).products[0]
    scores = next(node.output[0] for node in foreign.proto.graph.node if node.name == pair.scores_node)
    divided = next(node for node in foreign.proto.graph.node if node.op_type == "Div" and node.input[0] == scores)
    result = insert_qdq(foreign.proto, theirs, PrecisionPlan("gemm+residual+mha"))
    nodes = {node.name: node for node in result.proto.graph.node}
    assert divided.name not in nodes
    assert nodes[pair.scores_node].output[0] == divided.output[0]
    plain = theirs[foreign.aliases().get(pair.query, pair.query)].scale
    factor = np.float32(1 / np.sqrt(16))
    assert result.grids[pair.query] == Grid(np.float32(plain * factor))
    values = run(result.proto, feed(100), [pair.query, f"{pair.query}.scaled", f"{pair.query}.dequantized"])
    assert np.allclose(values[f"{pair.query}.scaled"], values[pair.query] * factor)
    assert np.abs(values[f"{pair.query}.dequantized"] - values[f"{pair.query}.scaled"]).max() <= plain * factor * 0.51
    kept = insert_qdq(foreign.proto, theirs, PrecisionPlan("gemm"))
    assert divided.name in {node.name for node in kept.proto.graph.node}
