"""Copies of wide channels: which are chosen, what their grids do, and that the network stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from network_helpers import TOKENS, Foreign, changed_network, feed, moments_of, run, span, table_of, tiny_model

from quantkit.collect.moments import Moments, MomentsAccumulator
from quantkit.errors import TableError
from quantkit.network import refine_edge as refining
from quantkit.network import splitting
from quantkit.network.config import BertConfig
from quantkit.network.edges import find_edges
from quantkit.network.graph import Network
from quantkit.network.index import GraphIndex
from quantkit.network.onnx_import import load_onnx
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.network.ranges import OutputError
from quantkit.network.refine import STEPS, refine
from quantkit.network.refinement import Refinement
from quantkit.network.refinement_file import load_refinement, save_refinement
from quantkit.network.splitting import Split, is_split, split

WIDE = (3, 7)
GELU = "layer0.ffn.gelu"
UNSPLIT = tuple(step for step in STEPS if step != "split")


def with_wide_channels(model: onnx.ModelProto) -> None:
    """Gives each hidden layer two channels that reach far beyond all others."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if "intermediate" in tensor.name and values.shape[-1] > 2:
            values[..., WIDE] *= 30.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.fixture(autouse=True)
def few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden layers of these tests are narrow."""
    monkeypatch.setattr(splitting, "SHARE", 8)
    monkeypatch.setattr(splitting, "MULTIPLE", 4)


@pytest.fixture(scope="module")
def network(tiny_bert_dir: Path) -> Network:
    return changed_network(tiny_bert_dir, with_wide_channels)


@pytest.fixture(scope="module")
def moments(network: Network) -> dict[str, Moments]:
    return moments_of(network)


def moments_from(rows: np.ndarray) -> Moments:
    accumulator = MomentsAccumulator(kept_rows=len(rows))
    accumulator.update(rows.astype(np.float32))
    return accumulator.moments()


def test_copies_go_where_rounding_costs_most() -> None:
    rows = np.random.default_rng(1).normal(size=(500, 32))
    weight = np.ones((32, 5), np.float32)
    rows[:, 4] *= 40
    rows[:, 9] *= 12
    rows[:, 20] *= 100
    weight[20] = 0  # nothing reads it
    made = split(moments_from(rows), [weight])
    assert made is not None
    assert np.array_equal(made.channels[:32], np.arange(32))
    assert sorted(made.channels[32:]) == [4, 4, 4, 9]
    assert split(moments_from(rows[:, :16]), [weight[:16]]) is None  # too narrow for a block of copies


def test_copies_are_rounded_on_grids_that_complete_each_other() -> None:
    made = Split(np.array([0, 1, 2, 1, 1, 2], np.int32))
    assert np.allclose(made.shares, [1, 1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2])
    assert np.allclose(made.offsets, [0, -1 / 3, -1 / 4, 0, 1 / 3, 1 / 4])
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.allclose(made.reading(weight)[[1, 3, 4]].sum(axis=0), weight[1])

    rows = np.random.default_rng(2).uniform(-1, 1, (20_000, 1)).astype(np.float32)
    one = np.ones((1, 1), np.float32)
    alone = OutputError(rows, [one], True).of_range(-1, 1)
    for copies in (2, 3, 5):
        made = Split(np.zeros(copies, np.int32))
        error = OutputError(rows[:, made.channels], [made.reading(one)], True, made.offsets)
        # Off by the ends of the range, where the moved grids clip half a step.
        assert error.of_range(-1.01, 1.01) == pytest.approx(alone / copies**2, rel=0.1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_noise_falls(network: Network, moments: dict[str, Moments], symmetric: bool) -> None:
    table = table_of(run(network.proto, feed(100, 32, 20, seed=1), network.activations()))
    others = frozenset({"*attention*", "*intermediate*", "embeddings.norm"})
    plan, tokens = PrecisionPlan(skip=others, symmetric=symmetric), feed(100, 64, 20, seed=77)
    exact, distance = run(network.proto, tokens)["logits"], {}
    for steps in (UNSPLIT, STEPS):
        refinement = refine(network.index, moments, plan, steps, span)
        result = insert_qdq(network.proto, table, plan, refinement)
        assert result.quantized == ["layer0.ffn.output.matmul", "layer1.ffn.output.matmul"]
        distance[steps] = float(np.mean((run(result.proto, tokens)["logits"] - exact) ** 2))
    assert {edge["tensor"] for edge in refinement.edges if edge.get("copies")} == {GELU, "layer1.ffn.gelu"}
    assert distance[STEPS] < 0.6 * distance[UNSPLIT]


@pytest.mark.parametrize("steps", [("split",), ("shift", "split"), ("split", "smooth"), STEPS])
@pytest.mark.parametrize("skip", [(), ("*intermediate*",), ("layer0.ffn.output.*",), ("1",)])
def test_any_steps_with_any_plan(
    network: Network,
    moments: dict[str, Moments],
    steps: tuple[str, ...],
    skip: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refining, "WORTH", 100.0)  # without smoothing they do not pay
    table = table_of(run(network.proto, feed(100, 32, 20, seed=1), network.activations()))
    plan = PrecisionPlan("gemm+mha", frozenset(skip))
    refinement = refine(network.index, moments, plan, steps, span)
    assert set(refinement.channels[GELU][-8:]) <= set(WIDE)
    proto = insert_qdq(network.proto, table, plan, refinement).proto
    onnx.checker.check_model(proto, full_check=True)
    exact, tensor = run(network.proto, TOKENS[0])["logits"], "layer0.ffn.output"
    assert np.abs(run(proto, TOKENS[0])["logits"] - exact).max() < 0.25
    before, after = (run(model, TOKENS[0], [tensor])[tensor] for model in (network.proto, proto))
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    width = GraphIndex(proto.graph).shape(GELU)
    # Where nothing behind the GELU is quantized, nothing is copied.
    assert width is not None
    assert width[-1] == len(moments[GELU].mean) + (0 if "layer0.ffn.output.*" in skip else 8)


def test_copies_change_nothing_in_float32(network: Network, moments: dict[str, Moments]) -> None:
    edges = {edge.tensor: edge for edge in find_edges(network.index) if edge.source is not None}
    assert list(edges) == [GELU, "layer1.ffn.gelu"]
    made = {}
    for name, edge in edges.items():
        weight = onnx.numpy_helper.to_array(network.index.initializers[edge.readers[0].product.weight])
        copies = split(moments[name], [weight])
        assert copies is not None
        made[name] = copies.channels
    model = onnx.ModelProto()
    model.CopyFrom(network.proto)
    bias = np.arange(len(moments[GELU].mean), dtype=np.float32)
    refinement = Refinement(channels=made, biases={"layer0.ffn.intermediate.bias": bias})
    widened = splitting.widen(model, refinement, made)
    assert np.array_equal(widened.biases["layer0.ffn.intermediate.bias"], bias[made[GELU]])
    onnx.checker.check_model(model, full_check=True)
    exact, found = (run(proto, TOKENS[0], [GELU]) for proto in (network.proto, model))
    assert np.array_equal(found[GELU], exact[GELU][..., made[GELU]])
    assert np.allclose(found["logits"], exact["logits"], atol=2e-5)


def test_foreign_graphs_with_a_gelu_of_many_nodes(
    tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refining, "WORTH", 100.0)  # whether it pays or not
    onnx.save(Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).model(), tmp_path / "m.onnx")
    foreign = load_onnx(tmp_path / "m.onnx")
    assert [edge.source is not None for edge in find_edges(foreign.index)] == [False, False, False, True] * 2
    assert max(len(edge.between) for edge in find_edges(foreign.index)) > 4
    refinement = refine(foreign.index, moments_of(foreign), PrecisionPlan(), STEPS, span)
    assert len(refinement.channels) == 2
    theirs = table_of(run(foreign.proto, feed(100, 8, 20, seed=1), foreign.activations()))
    result = insert_qdq(foreign.proto, theirs, PrecisionPlan(), refinement)
    onnx.checker.check_model(result.proto, full_check=True)
    name = foreign.output_name
    exact = run(foreign.proto, TOKENS[0])[name]
    assert np.abs(run(result.proto, TOKENS[0])[name] - exact).max() < 0.1


def test_a_hidden_layer_that_something_else_reads_is_left_alone(network: Network) -> None:
    for tensor in (GELU, "layer0.ffn.intermediate"):
        proto = onnx.ModelProto()
        proto.CopyFrom(network.proto)
        proto.graph.output.append(GraphIndex(proto.graph).info[tensor])
        edges = {edge.tensor: edge for edge in find_edges(GraphIndex(proto.graph))}
        assert edges[GELU].source is None
        assert edges["layer1.ffn.gelu"].source is not None
    proto.CopyFrom(network.proto)
    proto.graph.node.append(onnx.helper.make_node("Neg", ["layer0.ffn.intermediate"], ["other"], name="other"))
    assert {edge.tensor: edge for edge in find_edges(GraphIndex(proto.graph))}[GELU].source is None


def test_copies_that_do_not_pay_are_not_made(
    network: Network, moments: dict[str, Moments], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refining, "WORTH", 0.0)
    refinement = refine(network.index, moments, PrecisionPlan(), STEPS, span)
    assert not refinement.channels
    assert not any(edge.get("copies") for edge in refinement.edges)


def test_copies_on_disk(network: Network, moments: dict[str, Moments], tmp_path: Path) -> None:
    made = refine(network.index, moments, PrecisionPlan(), STEPS, span)
    read, _ = load_refinement(save_refinement(tmp_path / "r.npz", made, 1.5))
    assert made.channels.keys() == read.channels.keys() == {GELU, "layer1.ffn.gelu"}
    assert all(np.array_equal(made.channels[name], read.channels[name]) for name in made.channels)
    for bad in ([0, 2, 1, 0], [-1, 0, 1], [], [[0, 1], [1, 0]], [0, 1, 2**31 - 2]):
        channels = np.array(bad, np.int32)
        assert not is_split(channels)
        with pytest.raises(TableError, match="no copies of channels"):
            load_refinement(save_refinement(tmp_path / "bad.npz", Refinement(channels={"x": channels}), 0.0))
