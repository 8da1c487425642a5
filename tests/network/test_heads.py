"""Attentions are recognised, and changed without a change of what they compute; others are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from network_helpers import TOKENS, Foreign, feed, moments_of, run, table_of, tiny_model
from onnx import helper, numpy_helper

from quantkit.collect.moments import Moments, MomentsAccumulator
from quantkit.network.balancing import balance
from quantkit.network.config import BertConfig
from quantkit.network.edges import with_constants
from quantkit.network.folding import Folder
from quantkit.network.graph import Network
from quantkit.network.heads import Attention, find_attentions
from quantkit.network.index import GraphIndex
from quantkit.network.model import load_model
from quantkit.network.onnx_import import load_onnx
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.network.refine import STEPS, refine
from quantkit.network.refinement import Refinement
from quantkit.tables.table import Entry

OUTPUT = "layer0.attention.output"


def edited(proto: onnx.ModelProto, **factors: float) -> onnx.ModelProto:
    """A copy in which the last channel of a projection's result in layer 0 is this much larger."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for tensor in model.graph.initializer:
        for part, factor in factors.items():
            if tensor.name.startswith(f"layer0.attention.{part}."):
                values = numpy_helper.to_array(tensor).copy()
                values[..., -1] *= factor
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.fixture(scope="module")
def plain(tiny_bert_dir: Path) -> onnx.ModelProto:
    return load_model(tiny_bert_dir).proto


@pytest.fixture(scope="module")
def network(plain: onnx.ModelProto) -> Network:
    """One channel of keys, and one of values, is far wider than the others; a key's offset is large."""
    model = edited(plain, key=9.0, query=1 / 9, value=6.0)
    for tensor in model.graph.initializer:
        if tensor.name == "layer0.attention.key.bias":
            values = numpy_helper.to_array(tensor).copy()
            values[3] += 20.0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return Network(model)


@pytest.fixture(scope="module")
def moments(network: Network) -> dict[str, Moments]:
    return moments_of(network)


@pytest.fixture(scope="module")
def attention(network: Network) -> Attention:
    return find_attentions(network.index)[0]


def test_an_attention_of_our_own_graph(network: Network) -> None:
    first, second = find_attentions(network.index)
    assert (first.query, first.key, first.value, first.context, first.heads) == (
        *("layer0.attention.query_scaled", "layer0.attention.key", "layer0.attention.value"),
        *("layer0.attention.context", 2),
    )
    dense = (second.query_dense, second.key_dense, second.value_dense, second.output_dense)
    assert [part.bias for part in dense] == [
        f"layer1.attention.{part}.bias" for part in ("query", "key", "value", "output")
    ]


@pytest.mark.parametrize("steps", [("shift",), ("smooth",), ("shift", "smooth")])
def test_the_network_computes_the_same(
    network: Network, moments: dict[str, Moments], attention: Attention, steps: tuple[str, ...]
) -> None:
    folder = Folder(network.index)
    done = balance(attention, folder, moments, steps, symmetric=True)
    tensors = [*done.moments, attention.context]
    probs, output = "layer0.attention.probs", "layer0.attention.output"
    changed = with_constants(network.proto, folder.constants)
    before, after = (run(model, TOKENS[5], [*tensors, probs, output]) for model in (network.proto, changed))
    for name in (probs, output, "logits"):
        assert np.allclose(after[name], before[name], atol=2e-5)
    for name in tensors[1 if steps == ("shift",) else 0 :]:
        assert not np.allclose(after[name], before[name], atol=1e-2)
    # What it says of the tensors now is what they are.
    seen = {**done.moments, attention.context: done.context(moments[attention.context])}
    accumulators = {name: MomentsAccumulator() for name in tensors}
    for tokens in TOKENS:
        values = run(changed, tokens, tensors)
        for name in tensors:
            accumulators[name].update(values[name], tokens["attention_mask"] != 0)
    for name in tensors:
        found = accumulators[name].moments()
        assert np.allclose(seen[name].low, found.low, atol=1e-4)
        assert np.allclose(seen[name].mean, found.mean, atol=1e-4)
        assert np.allclose(seen[name].gram, found.gram, atol=1e-2)


def test_keys_are_centred_and_channels_evened_out(
    network: Network, moments: dict[str, Moments], attention: Attention
) -> None:
    done = balance(attention, Folder(network.index), moments, STEPS, symmetric=True)
    key, value = done.moments[attention.key], done.moments[attention.value]
    assert np.allclose(key.low, -key.high, atol=1e-4)
    assert moments[attention.key].high.max() > 15 and key.high.max() < 3
    assert np.abs(value.mean).max() < 1e-6

    def unevenness(seen: Moments) -> float:
        reach = np.maximum(-seen.low, seen.high)
        return float(reach.max() / np.median(reach))

    assert unevenness(key) < 0.5 * unevenness(moments[attention.key])
    assert unevenness(value) < 0.5 * unevenness(moments[attention.value])
    assert done.chosen[attention.key] == done.chosen[attention.query] == 0.5


def test_noise_of_attention_products_falls(network: Network, moments: dict[str, Moments]) -> None:
    """Against the refinement of everything but the attentions' own tensors."""
    table = table_of(run(network.proto, feed(100, 32, 20, seed=1), network.activations()))
    plan = PrecisionPlan("gemm+mha")
    refinement = refine(network.index, moments, plan, STEPS, _never)
    tokens = feed(100, 64, 20, seed=77)
    only = PrecisionPlan("gemm+mha", frozenset({"*.weight"}))  # nothing else hides what becomes of the products

    def noise(refined: Refinement | None) -> float:
        exact = run(network.proto if refined is None else refined.model(network.proto), tokens, [OUTPUT])[OUTPUT]
        found = run(insert_qdq(network.proto, table, only, refined).proto, tokens, [OUTPUT])[OUTPUT]
        return float(np.mean((found - exact)[tokens["attention_mask"] != 0] ** 2))

    assert noise(refinement) < 0.3 * noise(None)
    # Ranges that a table has under the names of reordered tensors do not win over the refined ones.
    assert "layer0.attention.key_heads" in table.entries
    named = {edge["tensor"]: edge for edge in refinement.edges}
    assert named["layer0.attention.key"]["shifted"] and not named["layer0.attention.query_scaled"]["shifted"]
    assert named["layer0.attention.context"]["shifted"]


def _never(name: str, _: Moments) -> Entry:
    raise AssertionError(name)


def test_an_exporters_graph(tiny_bert_dir: Path, tmp_path: Path) -> None:
    onnx.save(Foreign(tiny_model(tiny_bert_dir), BertConfig.from_dir(tiny_bert_dir)).model(), tmp_path / "m.onnx")
    foreign = load_onnx(tmp_path / "m.onnx")
    found = find_attentions(foreign.index)
    assert len(found) == 2 and found[0].heads == 2
    folder = Folder(foreign.index)
    for one in found:
        balance(one, folder, moments_of(foreign), STEPS, symmetric=True)
    assert len(folder.constants) == 16
    exact, same = (run(model, TOKENS[0]) for model in (foreign.proto, with_constants(foreign.proto, folder.constants)))
    assert np.allclose(same[foreign.output_name], exact[foreign.output_name], atol=2e-5)


def _node(model: onnx.ModelProto, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def _read_keys_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("layer0.attention.key_heads", 1, None))


def _limit_scores(model: onnx.ModelProto) -> None:
    """tanh between scores and softmax: it tells scores apart by their place, not only by their distance."""
    model.graph.node.insert(
        list(model.graph.node).index(_node(model, "layer0.attention.probs")),
        helper.make_node("Tanh", ["layer0.attention.scores_masked"], ["limited"], name="limited"),
    )
    _node(model, "layer0.attention.probs").input[0] = "limited"


def _soft_mask(model: onnx.ModelProto) -> None:
    """A Where whose constant is in sight of the scores."""
    node = _node(model, "layer0.attention.scores_masked")
    model.graph.initializer.append(numpy_helper.from_array(np.array(-3.0, np.float32), "visible"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    node.op_type = "Where"
    node.input[:] = ["always", "layer0.attention.scores", "visible"]


def _other_heads(model: onnx.ModelProto) -> None:
    """Heads take every second channel, so channels of one head do not lie side by side."""
    for part in ("query", "key", "value"):
        shape = next(t for t in model.graph.initializer if t.name == f"layer0.attention.{part}_split.shape")
        values = numpy_helper.to_array(shape).copy()
        shape.CopyFrom(numpy_helper.from_array(values[[0, 1, 3, 2]], shape.name))
        node = _node(model, f"layer0.attention.{part}_heads")
        perm = node.attribute[0].ints
        perm[:] = [{2: 3, 3: 2}.get(axis, axis) for axis in perm]


@pytest.mark.parametrize("change", [_read_keys_elsewhere, _limit_scores, _soft_mask, _other_heads])
def test_what_would_not_stay_the_same_is_left_alone(plain: onnx.ModelProto, change: Any) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    change(model)
    if change is _other_heads:
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model)
    found = [attention.key for attention in find_attentions(GraphIndex(model.graph))]
    assert found == ["layer1.attention.key"]
