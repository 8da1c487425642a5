"""Refinement: folding changes nothing, each step lowers the error it is for, the result goes with every plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from network_helpers import TOKENS, Foreign, changed_network, feed, moments_of, run, span, table_of, tiny_model

from quantkit.collect.moments import Moments
from quantkit.errors import InputError, TableError, UnknownNameError
from quantkit.network.config import BertConfig
from quantkit.network.edges import find_edges
from quantkit.network.folding import middle, smoothing_factors
from quantkit.network.graph import Network
from quantkit.network.onnx_import import load_onnx
from quantkit.network.precision import MODES, PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.network.ranges import OutputError
from quantkit.network.refine import STEPS, parse_steps, refine
from quantkit.network.refinement import Refinement
from quantkit.network.refinement_file import digest_of, load_refinement, save_refinement
from quantkit.network.rounding import round_nearest, round_second_order
from quantkit.tables.table import CalibrationTable, Entry


def with_outliers(model: onnx.ModelProto) -> None:
    """Gives the norms what the norms of real models have: channels far off zero, and wide ones."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name.endswith("norm.bias") and tensor.name != "layer1.ffn.norm.bias":
            values[3] += 9.0
        if tensor.name.endswith("attention.norm.weight"):
            values[5] *= 12.0
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.fixture(scope="module")
def network(tiny_bert_dir: Path) -> Network:
    return changed_network(tiny_bert_dir, with_outliers)


@pytest.fixture(scope="module")
def moments(network: Network) -> dict[str, Moments]:
    return moments_of(network)


@pytest.fixture(scope="module")
def table(network: Network) -> CalibrationTable:
    return table_of(run(network.proto, feed(100, 32, 20, seed=1), network.activations()))


def noise(network: Network, table: CalibrationTable, plan: PrecisionPlan, refinement: Refinement | None) -> float:
    """Mean squared distance of the logits from FP32's, on sentences that were not seen."""
    tokens = feed(100, 64, 20, seed=77)
    exact = run(network.proto, tokens)["logits"]
    found = run(insert_qdq(network.proto, table, plan, refinement).proto, tokens)["logits"]
    return float(np.mean((found - exact) ** 2))


def test_edges_of_a_bert(network: Network) -> None:
    edges = {edge.tensor: edge for edge in find_edges(network.index)}
    assert list(edges) == [
        *("embeddings.norm", "layer0.attention.context", "layer0.attention.norm", "layer0.ffn.gelu"),
        *("layer0.ffn.norm", "layer1.attention.context", "layer1.attention.norm", "layer1.ffn.gelu"),
    ]
    edge = edges["layer0.ffn.norm"]
    assert [dense.output for dense in edge.readers] == [f"layer1.attention.{p}" for p in ("query", "key", "value")]
    assert (edge.offset, edge.shared) == ("layer0.ffn.norm.bias", True)
    assert [dense.bias for dense in edge.residuals] == ["layer1.attention.output.bias"]
    assert (edges["layer0.ffn.gelu"].offset, edges["layer0.ffn.gelu"].shared) == ("", False)


def test_folding_leaves_the_function_as_it_is(network: Network, moments: dict[str, Moments]) -> None:
    refinement = refine(network.index, moments, PrecisionPlan(), ("shift",), span)
    folded = refinement.model(network.proto)
    tensors = ["layer0.attention.norm", "layer0.ffn.residual", "layer1.attention.probs"]
    before, after = (run(model, TOKENS[0], tensors) for model in (network.proto, folded))
    assert np.allclose(after["logits"], before["logits"], atol=2e-5)
    assert np.allclose(after["layer1.attention.probs"], before["layer1.attention.probs"], atol=1e-4)
    assert np.allclose(after["layer0.ffn.residual"], before["layer0.ffn.residual"], atol=1e-4)
    moved = before["layer0.attention.norm"] - after["layer0.attention.norm"]
    assert np.allclose(moved, middle(moments["layer0.attention.norm"]), atol=1e-4)
    everything = {name for name in refinement.constants if name.endswith("weight")}
    assert not everything  # no matrix changes


def test_foreign_graphs_are_refined_alike(tiny_bert_dir: Path, tmp_path: Path) -> None:
    onnx.save(Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).model(), tmp_path / "m.onnx")
    foreign = load_onnx(tmp_path / "m.onnx")
    edges = find_edges(foreign.index)
    assert [bool(edge.offset) for edge in edges] == [True, False, True, False] * 2
    refinement = refine(foreign.index, moments_of(foreign), PrecisionPlan(), STEPS, span)
    exact, folded = (run(model, TOKENS[0]) for model in (foreign.proto, refinement.model(foreign.proto)))
    name = foreign.output_name
    assert np.allclose(folded[name], exact[name], atol=2e-5)
    theirs = table_of(run(foreign.proto, feed(100, 8, 20, seed=1), foreign.activations()))
    result = insert_qdq(foreign.proto, theirs, PrecisionPlan(), refinement)
    onnx.checker.check_model(result.proto, full_check=True)
    assert np.abs(run(result.proto, TOKENS[0])[name] - exact[name]).max() < 0.1


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_grid_gets_much_better(
    network: Network, table: CalibrationTable, moments: dict[str, Moments], symmetric: bool
) -> None:
    plan = PrecisionPlan(symmetric=symmetric)
    plain = noise(network, table, plan, None)
    shifted = noise(network, table, plan, refine(network.index, moments, plan, ("shift",), span))
    smoothed = noise(network, table, plan, refine(network.index, moments, plan, ("shift", "smooth"), span))
    best = noise(network, table, plan, refine(network.index, moments, plan, STEPS, span))
    assert shifted < 0.9 * plain
    assert smoothed < 0.75 * shifted
    assert best < 0.3 * plain


@pytest.mark.parametrize("mode", list(MODES))
def test_one_refinement_goes_with_every_plan(
    network: Network, table: CalibrationTable, moments: dict[str, Moments], mode: str
) -> None:
    refinement = refine(network.index, moments, PrecisionPlan(symmetric=False), STEPS, span)
    for skip in (frozenset(), frozenset({"1"}), frozenset({"layer0.attention.query.matmul", "*.gelu"})):
        plan = PrecisionPlan(mode, skip, symmetric=False)
        result = insert_qdq(network.proto, table, plan, refinement)
        onnx.checker.check_model(result.proto, full_check=True)
        exact = run(network.proto, TOKENS[0])["logits"]
        assert np.abs(run(result.proto, TOKENS[0])["logits"] - exact).max() < 0.1
        if "residual" in mode:
            assert "changed channels" in result.skipped["layer0.ffn.residual"]


def test_everything_skipped_is_the_float_model(
    network: Network, table: CalibrationTable, moments: dict[str, Moments]
) -> None:
    refinement = refine(network.index, moments, PrecisionPlan(), STEPS, span)
    result = insert_qdq(network.proto, table, PrecisionPlan(skip=frozenset("*")), refinement)
    exact = run(network.proto, TOKENS[0])["logits"]
    assert np.allclose(run(result.proto, TOKENS[0])["logits"], exact, atol=2e-5)


def test_residual_plans_smooth_only_what_no_residual_reads(
    network: Network, table: CalibrationTable, moments: dict[str, Moments]
) -> None:
    plan = PrecisionPlan("gemm+residual", symmetric=False)
    refinement = refine(network.index, moments, plan, STEPS, span)
    assert refinement.factors.keys() <= {f"layer{i}.{t}" for i in range(2) for t in ("ffn.gelu", "attention.context")}
    result = insert_qdq(network.proto, table, plan, refinement)
    assert result.skipped == {}
    assert noise(network, table, plan, refinement) < 0.5 * noise(network, table, plan, None)


def test_a_smoothed_tensor_is_multiplied_in_front_of_its_pair(
    network: Network, table: CalibrationTable, moments: dict[str, Moments]
) -> None:
    refinement = refine(network.index, moments, PrecisionPlan(), ("smooth",), span)
    name = "layer0.attention.norm"
    result = insert_qdq(network.proto, table, PrecisionPlan(), refinement)
    nodes = {node.name: node for node in result.proto.graph.node}
    assert nodes[f"{name}.quantized"].input[0] == f"{name}.smoothed"
    values = run(result.proto, TOKENS[0], [name, f"{name}.smoothed"])
    assert np.allclose(values[f"{name}.smoothed"], values[name] * refinement.factors[name])
    assert nodes["layer0.ffn.residual"].input[1] == name  # the residual connection reads what it read


def test_refinements_on_disk(network: Network, moments: dict[str, Moments], tmp_path: Path) -> None:
    made = refine(network.index, moments, PrecisionPlan(), STEPS, span)
    read, seconds = load_refinement(save_refinement(tmp_path / "r.npz", made, 1.5))
    assert (seconds, read.steps, list(read.edges)) == (1.5, made.steps, list(made.edges))
    assert dict(read.entries) == dict(made.entries)
    for part in ("constants", "biases", "factors", "summands"):
        mine, theirs = getattr(made, part), getattr(read, part)
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine), part
    for name, weight in made.weights.items():
        assert np.array_equal(weight.codes, read.weights[name].codes)
        assert np.array_equal(weight.scales, read.weights[name].scales)
    data = (tmp_path / "r.npz").read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"no zip"):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(TableError, match="no refinement, or a damaged one"):
            load_refinement(tmp_path / "bad.npz")


def test_a_refinement_that_was_touched_or_forged_is_refused(
    network: Network, moments: dict[str, Moments], tmp_path: Path
) -> None:
    made = refine(network.index, moments, PrecisionPlan(), STEPS, span)
    with np.load(save_refinement(tmp_path / "r.npz", made, 1.5)) as archive:
        arrays = dict(archive)
    header = json.loads(arrays.pop("header").tobytes())

    def refused(
        why: str, kept: dict[str, Any] = arrays, *, right: bool = True, save: Any = np.savez, **odd: Any
    ) -> None:
        told = header | odd
        if right:
            told["sha256"] = digest_of(told, kept)
        save(tmp_path / "bad.npz", header=np.frombuffer(json.dumps(told).encode(), np.uint8), **kept)
        with pytest.raises(TableError, match=why):
            load_refinement(tmp_path / "bad.npz")

    refused("does not fit its content", arrays | {"codes/0": arrays["codes/0"][::-1].copy()}, right=False)
    refused("does not fit its content", right=False, seconds=2.5)
    refused("compressed", save=np.savez_compressed)
    refused("version 2", version=2)
    refused("expected", arrays | {"codes/0": arrays["codes/0"].astype(np.int16)})
    shapes = header["shapes"]
    refused("expected", shapes=shapes | {"codes/0": [1 << 40, 1 << 40]})
    short = shapes | {"scales/0": [shapes["scales/0"][0] - 1]}
    refused("do not fit each other", arrays | {"scales/0": arrays["scales/0"][:-1]}, shapes=short)
    refused("no refinement, or a damaged one", entries={"x": [1, 2]})


def test_second_order_rounding_beats_the_nearest() -> None:
    draw = np.random.default_rng(1)
    mixing = draw.normal(size=(24, 96))
    rows = (draw.normal(size=(4000, 24)) @ mixing + 0.1 * draw.normal(size=(4000, 96))).astype(np.float32)
    weight = draw.normal(size=(96, 40)).astype(np.float32)
    plain, careful = round_nearest(weight), round_second_order(weight, rows.T.astype(np.float64) @ rows / len(rows))
    assert np.array_equal(plain.scales, careful.scales)
    assert np.abs(careful.codes.astype(int)).max() <= 127
    costs = [float(np.sum((rows @ (weight - found.values)) ** 2)) for found in (plain, careful)]
    assert costs[1] < 0.5 * costs[0]
    same = round_second_order(weight, np.eye(96))
    assert np.array_equal(same.codes, plain.codes)  # nothing to make up for where inputs are independent


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("outputs", [8, 200])
def test_the_error_of_a_range_is_measured_at_the_outputs(symmetric: bool, outputs: int) -> None:
    draw = np.random.default_rng(2)
    rows = draw.normal(size=(50, 16)).astype(np.float32)
    weight = draw.normal(size=(16, outputs)).astype(np.float32)
    error = OutputError(rows, [weight], symmetric)
    step = 2.0 / 127 if symmetric else 3.0 / 255
    codes = np.rint(rows / step) + (0 if symmetric else round(1.0 / step))
    low, high = (-127, 127) if symmetric else (0, 255)
    codes = np.clip(codes, low, high) - (0 if symmetric else round(1.0 / step))
    expected = np.sum(((codes * step - rows) @ weight) ** 2)
    assert np.isclose(error.of_range(-1.0, 2.0), expected, rtol=1e-3)


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_input_that_was_zero_throughout_has_no_error(symmetric: bool) -> None:
    error = OutputError(np.zeros((6, 4), np.float32), [np.ones((4, 3), np.float32)], symmetric)
    assert error.of_range(0.0, 0.0) == 0.0
    assert error.best_range(0.0, 0.0) == (0.0, 0.0)


def test_a_channel_that_no_weight_reads_does_not_widen_the_range() -> None:
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(200, 16)).astype(np.float32)
    rows[:, 0] *= 20
    weight = draw.normal(size=(16, 8)).astype(np.float32)
    weight[0] = 0
    low, high = float(rows.min()), float(rows.max())
    found = OutputError(rows, [weight], False).best_range(low, high)
    assert found == (low * 0.5, high * 0.5)
    weight[0] = 1
    assert OutputError(rows, [weight], False).best_range(low, high) != found


def test_smoothing_factors_even_out() -> None:
    reach, weights = np.array([1.0, 4.0, 16.0, 0.0]), np.array([1.0, 1.0, 1.0, 1.0])
    full = smoothing_factors(reach, weights, 1.0)
    assert np.allclose(full[:3] / full[0], [1, 4, 16])
    assert full[3] == 1  # a channel that is always 0 is left alone
    assert np.isclose(np.prod(full[:3]), 1)
    half = smoothing_factors(reach, weights, 0.5)
    assert np.allclose(half[:3] / half[0], [1, 2, 4])
    assert np.array_equal(smoothing_factors(np.zeros(3), np.ones(3), 0.5), np.ones(3))


def test_steps_by_name() -> None:
    assert parse_steps("all") == STEPS
    assert parse_steps("none") == ()
    assert parse_steps("bias, shift") == ("shift", "bias")
    with pytest.raises(UnknownNameError, match="smoth"):
        parse_steps("smoth")
    for bad in ("", "none,shift"):
        with pytest.raises(InputError):
            parse_steps(bad)


def test_what_no_constant_can_shift_is_shifted_in_front_of_a_symmetric_quantizer(
    network: Network, table: CalibrationTable, moments: dict[str, Moments]
) -> None:
    assert not refine(network.index, moments, PrecisionPlan(symmetric=False), STEPS, span).summands
    refinement = refine(network.index, moments, PrecisionPlan(), ("shift",), span)
    name = "layer0.ffn.gelu"
    assert refinement.summands.keys() == {"layer0.ffn.gelu", "layer1.ffn.gelu"}
    others = frozenset({"1", "layer0.attention.*", "layer0.ffn.intermediate.*", "embeddings.norm"})
    result = insert_qdq(network.proto, table, PrecisionPlan(skip=others), refinement)
    assert result.quantized == ["layer0.ffn.output.matmul"]
    nodes = {node.name: node for node in result.proto.graph.node}
    shifted_name = nodes[f"{name}.quantized"].input[0]
    assert shifted_name == f"{name}.shifted_1"  # the GELU itself has a tensor of that name
    values = run(result.proto, TOKENS[0], [name, shifted_name, "layer0.ffn.output"])
    assert np.allclose(values[shifted_name], values[name] - middle(moments[name]), atol=1e-5)
    exact = run(refinement.model(network.proto), TOKENS[0], ["layer0.ffn.output"])["layer0.ffn.output"]
    assert np.abs(values["layer0.ffn.output"] - exact).max() < 0.02 * np.abs(exact).max()  # the bias takes it back


def test_the_bias_takes_what_clipping_costs_on_average(
    network: Network, table: CalibrationTable, moments: dict[str, Moments]
) -> None:
    """Ranges of half the width clip the upper side: without the correction the results of the products drift."""

    def clipped(name: str, seen: Moments) -> Entry:
        full = span(name, seen)
        return Entry(np.float32(full.amax / 254), full.minimum, full.maximum)

    names = ["layer0.ffn.output"]
    exact = run(network.proto, TOKENS[3], names)[names[0]]
    others = frozenset({"1", "layer0.attention.*", "layer0.ffn.intermediate.*", "embeddings.norm"})
    plan, drift = PrecisionPlan(skip=others, symmetric=False), []
    for steps in (("smooth",), ("smooth", "bias")):
        refinement = refine(network.index, moments, plan, steps, clipped)
        found = run(insert_qdq(network.proto, table, plan, refinement).proto, TOKENS[3], names)[names[0]]
        kept = TOKENS[3]["attention_mask"] != 0
        drift.append(float(np.abs((found - exact)[kept].mean(axis=0)).mean()))
    assert drift[1] < 0.4 * drift[0]
