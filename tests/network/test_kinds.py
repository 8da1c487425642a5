"""Kinds of activations: quantkit's own BERT, and the spellings that exporters use."""

from __future__ import annotations

import onnx
import pytest

from quantkit.network.graph import Network
from quantkit.network.kinds import MASKED_LOGITS, classify
from quantkit.network.model import load_model

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def kinds_of(body, inputs="float[b, s, 8] x, int64[b, s] attention_mask"):
    """Kinds in a graph written as text; constants: c (8), w (8, 8), one, half, root, eps, low, shape."""
    text = f"""{HEADER} g ({inputs}) => (float[b, s, 8] y)
    <float[8] c = {{1,1,1,1,1,1,1,1}}, float[8, 8] w = {{{",".join(["1"] * 64)}}}, float one = {{1}},
     float half = {{0.5}}, float root = {{1.41421}}, float eps = {{1e-6}}, float three = {{3}},
     float low = {{-3.4e38}}, float zero = {{0}}, int64[2] axes = {{1, 2}}>
    {{ {body} }}"""
    return classify(Network(onnx.parser.parse_model(text)).index)


@pytest.fixture(scope="module")
def bert(tiny_bert_dir):
    return load_model(tiny_bert_dir)


def test_every_activation_of_bert_has_a_kind_in_order(bert):
    assert list(classify(bert.index).kinds) == bert.activations()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embeddings.word", "embedding"),
        ("embeddings.sum", "embedding"),
        ("embeddings.norm", "layer norm"),
        ("mask.float", "mask"),
        ("mask.additive", "mask"),
        ("layer1.attention.query.matmul", "matmul"),
        ("layer1.attention.query", "dense"),
        ("layer1.attention.query_heads", "dense"),
        ("layer1.attention.scores", "attention scores"),
        ("layer1.attention.scores_masked", "masked logits"),
        ("layer1.attention.probs", "softmax"),
        ("layer1.attention.context_heads", "attention context"),
        ("layer1.attention.context", "attention context"),
        ("layer1.attention.residual", "residual"),
        ("layer1.attention.norm", "layer norm"),
        ("layer1.ffn.gelu.erf", "gelu step"),
        ("layer1.ffn.gelu", "gelu"),
        ("layer1.ffn.residual", "residual"),
        ("pooler.tanh", "tanh"),
        ("logits", "dense"),
    ],
)
def test_the_tensors_of_bert(bert, name, kind):
    assert classify(bert.index).kinds[name] == kind


def test_masked_scores_know_their_scores(bert):
    found = classify(bert.index)
    expected = {f"layer{i}.attention.scores_masked": f"layer{i}.attention.scores" for i in range(2)}
    assert found.unmasked == expected
    assert found.masked == tuple(expected)


def test_a_softmax_keeps_its_kind_through_transposes_casts_and_nan_guards():
    found = kinds_of("""
        k = Transpose <perm = [0, 2, 1]> (x)
        s = MatMul(x, k)
        p = Softmax(s)
        bad = IsNaN(p)
        safe = Where(bad, zero, p)
        t = Transpose <perm = [0, 2, 1]> (safe)
        d = Dropout(t)
        y = MatMul(d, x)""")
    assert {name: found.kinds[name] for name in ("s", "p", "safe", "t", "d", "y")} == {
        "s": "attention scores",
        "p": "softmax",
        "safe": "softmax",
        "t": "softmax",
        "d": "softmax",
        "y": "attention context",
    }
    assert found.unmasked == {}


ADDED = """
    wide = Unsqueeze(attention_mask, axis)
    f = Cast <to = 1> (wide)
    shifted = Sub(f, one)
    bias = Mul(shifted, low)
    k = Transpose <perm = [0, 2, 1]> (x)
    raw = MatMul(x, k)
    s = Div(raw, root)
    m = Add(s, bias)
"""


@pytest.mark.parametrize(
    ("mask", "unmasked"),
    [
        (ADDED, {"m": "s"}),
        (ADDED.replace("Add(s, bias)", "Add(bias, s)"), {"m": "s"}),
        (ADDED + "n = Max(m, low) \n p0 = Identity(n)", {"m": "s", "n": "s", "p0": "s"}),
        (ADDED.replace("m = Add(s, bias)", "hide = Cast <to = 9> (wide) \n m = Where(hide, s, low)"), {"m": "s"}),
        (ADDED.replace("m = Add(s, bias)", "kept = Mul(s, f) \n m = Add(kept, bias)"), {"m": "kept"}),
        (ADDED.replace("Add(s, bias)", "Add(s, root)"), {}),
    ],
    ids=["added", "mask first", "clamped", "chosen", "multiplied first", "no mask"],
)
def test_masks_in_the_spellings_of_exporters(mask, unmasked):
    last = (list(unmasked) or ["m"])[-1]
    body = f"axis = Constant <value_ints = [1]> () \n {mask} \n p = Softmax({last}) \n y = MatMul(p, x)"
    found = kinds_of(body)
    assert found.unmasked == unmasked
    assert [name for name, kind in found.kinds.items() if kind == MASKED_LOGITS] == list(unmasked)
    assert found.kinds["p"] == "softmax"


def test_a_mask_outside_of_attention_makes_no_masked_logits():
    found = kinds_of("""
        axis = Constant <value_ints = [2]> ()
        wide = Unsqueeze(attention_mask, axis)
        f = Cast <to = 1> (wide)
        z = Add(x, f)
        y = MatMul(z, w)""")
    assert found.kinds["f"] == "mask"
    assert found.kinds["z"] != MASKED_LOGITS
    assert found.unmasked == {}


GELUS = {
    "erf, halved last": "v = Div(h, root) \n e = Erf(v) \n a = Add(e, one) \n m = Mul(h, a) \n g = Mul(m, half)",
    "erf, halved first": "q = Mul(h, half) \n v = Div(h, root) \n e = Erf(v) \n a = Add(e, one) \n g = Mul(q, a)",
    "tanh": """cube = Pow(h, three) \n small = Mul(cube, half) \n sum = Add(h, small) \n v = Mul(sum, half)
        e = Tanh(v) \n a = Add(e, one) \n q = Mul(h, half) \n g = Mul(q, a)""",
}


@pytest.mark.parametrize("gelu", GELUS.values(), ids=GELUS.keys())
def test_a_decomposed_gelu_is_one(gelu):
    found = kinds_of(f"z = MatMul(x, w) \n h = Add(z, c) \n {gelu} \n y = MatMul(g, w)")
    inner = [name for name in found.kinds if name not in ("z", "h", "g", "y")]
    assert found.kinds["h"] == "dense"
    assert found.kinds["g"] == "gelu"
    assert {found.kinds[name] for name in inner} == {"gelu step"}


def test_a_tanh_alone_is_no_gelu():
    found = kinds_of("z = MatMul(x, w) \n h = Tanh(z) \n g = Add(h, c) \n y = Mul(g, c)")
    assert found.kinds["h"] == "tanh"
    assert "gelu" not in found.kinds.values()


def test_a_decomposed_layer_norm_is_one():
    found = kinds_of("""
        z = MatMul(x, w)
        r = Add(z, x)
        mean = ReduceMean <axes = [-1]> (r)
        d = Sub(r, mean)
        sq = Mul(d, d)
        var = ReduceMean <axes = [-1]> (sq)
        ve = Add(var, eps)
        sd = Sqrt(ve)
        n = Div(d, sd)
        scaled = Mul(n, c)
        norm = Add(scaled, c)
        y = MatMul(norm, w)""")
    assert found.kinds["r"] == "residual"
    assert found.kinds["norm"] == "layer norm"
    steps = ("mean", "d", "sq", "var", "ve", "sd", "n", "scaled")
    assert {found.kinds[name] for name in steps} == {"layer norm step"}
