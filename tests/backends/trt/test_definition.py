"""BERT through the network API: the same tensors under the same names as the ONNX graph."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quantkit.backends import get_backend
from quantkit.backends.trt.definition import TrtBuilder
from quantkit.backends.trt.network import define_bert, float_tensors, inputs_of
from quantkit.backends.trt.options import DENSE, NORMS, BuildOptions, Source
from quantkit.errors import BackendError


def defined(tiny_bert_dir, options: BuildOptions, batch: int = 0, seq_len: int = 0):
    """The tiny BERT as a network of the stand-in, and its builder."""
    import tensorrt

    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    source = Source(model=str(tiny_bert_dir), batch=batch, seq_len=seq_len)
    return network, define_bert(tensorrt, network, source, options)


def run(network, feed: dict[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Tensors of a network, computed by the stand-in."""
    from tensorrt._compute import compute, freeze

    return compute(freeze(network), {name: array.astype(np.int32) for name, array in feed.items()}, names)


@pytest.mark.parametrize("dense, norm, fused", itertools.product(DENSE, NORMS, (True, False)))
@pytest.mark.parametrize("shape", [(0, 0), (4, 16)])
def test_every_tensor_equals_the_onnx_graph_s(fake_trt, network, tiny_bert_dir, make_feed, dense, norm, fused, shape):
    options = BuildOptions("fp32", "api", dense=dense, norm=norm, fuse_qkv=fused)
    built, _ = defined(tiny_bert_dir, options, *shape)
    feed = make_feed(4, 16)
    names = network.activations()
    with get_backend("onnxruntime").tap(network.fixed(4, 16), names) as tap:
        expected = {name: array.copy() for name, array in tap.infer(feed).items()}
    found = run(built, feed, names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


def test_float_tensors_are_the_activations_and_what_the_builder_derives(fake_trt, network, tiny_bert_dir) -> None:
    import tensorrt

    for options in (BuildOptions("fp32", "api"), BuildOptions("fp32", "api", dense="convolution")):
        built, builder = defined(tiny_bert_dir, options, 4, 16)
        own = [name for name in float_tensors(tensorrt, built) if name not in network.activations()]
        assert set(own) == set(builder.derived)
        assert set(network.activations()) <= set(float_tensors(tensorrt, built))
        for name, sources in builder.derived.items():
            assert set(sources) <= set(network.activations()), name


def test_inputs_are_int32_and_dynamic_where_nothing_is_fixed(fake_trt, tiny_bert_dir) -> None:
    import tensorrt

    built, _ = defined(tiny_bert_dir, BuildOptions("fp32", "api"))
    assert [(t.name, t.shape, t.dtype) for t in inputs_of(built)] == [
        (name, (-1, -1), tensorrt.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    fixed, _ = defined(tiny_bert_dir, BuildOptions("fp32", "api"), 2, 8)
    assert inputs_of(fixed)[0].shape == (2, 8)
    assert fixed.get_output(0).name == "logits"


def test_query_key_and_value_are_one_product(fake_trt, tiny_bert_dir) -> None:
    products = {}
    for fused in (True, False):
        built, _ = defined(tiny_bert_dir, BuildOptions("fp32", "api", fuse_qkv=fused), 4, 16)
        names = [built.get_layer(i).name for i in range(built.num_layers)]
        products[fused] = [n for n in names if n.startswith("layer0.attention.") and n.endswith(".matmul")]
    assert "layer0.attention.qkv.matmul" in products[True]
    assert "layer0.attention.qkv.matmul" not in products[False]
    assert set(products[False]) < set(products[True])


def test_a_layer_that_tensorrt_refuses_is_named(fake_trt) -> None:
    import tensorrt

    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    builder = TrtBuilder(tensorrt, network)
    x, y = builder.input("x", (2, 3)), builder.input("y", (2, 4))
    with pytest.raises(BackendError, match="refuses the layer 'sum'"):
        builder.add(x, y, name="sum")


def test_a_version_without_a_layer_is_a_sentence(fake_trt) -> None:
    import tensorrt

    class Old:
        def add_input(self, name, dtype, shape):
            return tensorrt.Builder(tensorrt.ILogger()).create_network(1).add_input(name, dtype, shape)

    builder = TrtBuilder(tensorrt, Old())
    x = builder.input("x", (2, 3))
    with pytest.raises(BackendError, match="networks have no add_cast, which 'float' needs"):
        builder.cast_float(x, name="float")
