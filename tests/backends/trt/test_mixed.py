"""Networks of plugins with TensorRT's own linear layers and its attention plugin, over the stand-in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantkit.backends.trt.capabilities import Gpu, capabilities
from quantkit.backends.trt.fused import Kernel, kernel_for
from quantkit.backends.trt.options import BuildOptions, Mix, ShapeRange, Source
from quantkit.backends.trt.plugins import attention
from quantkit.backends.trt.plugins.packing import pack
from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError, InputError, UnknownNameError

PROFILE = ShapeRange((1, 2), (4, 16), (8, 32))
HOPPER, ADA = Gpu("NVIDIA H100", (9, 0)), Gpu("NVIDIA L4", (8, 9))
OLD = Version(8, 6, 0)


def define(folder: Path, table=None, *, mix: Mix = Mix(), gpu: Gpu = ADA, built: bool = True, profile=PROFILE):
    """A network over the stand-in, and what defined it."""
    import tensorrt

    from quantkit.backends.trt.network import define_plugins

    tensorrt.init_libnvinfer_plugins(None, "")
    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    precision, ranges = ("int8", "dynamic_range") if table else ("fp16", "")
    options = BuildOptions(precision, "plugins", ranges, (profile,), packed=True, mix=mix)
    able = capabilities(OLD, gpu)
    made = define_plugins(
        tensorrt, network, Source("", str(folder)), options, table, lambda product: [], able, built=built
    )
    return network, made


def logits(network, feed) -> np.ndarray:
    from tensorrt._compute import compute, freeze

    given = {name: array.astype(np.int32) for name, array in pack(feed).items()}
    with np.errstate(invalid="ignore"):  # rows behind the last sentence hold anything
        return compute(freeze(network), given)["logits"]


def layers(network) -> dict[str, object]:
    return {network.get_layer(i).name: network.get_layer(i) for i in range(network.num_layers)}


MIXES = [
    Mix(attention="tensorrt"),
    Mix(attention="own", linear="convolution"),
    Mix(attention="tensorrt", linear="fully_connected"),
    Mix(attention="tensorrt", linear="matmul"),
    Mix(attention="tensorrt", linear="convolution", gelu="own"),
    Mix(attention="tensorrt", linear="convolution", sums="int8"),
    Mix(attention="tensorrt", linear="convolution", sums="float", constrained="no"),
    Mix(attention="tensorrt", linear="convolution", norms="tensorrt", sums="half"),
    Mix(attention="tensorrt", linear="own"),
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(str(v) for v in vars(mix).values() if v != "auto"))
def test_logits_are_those_of_the_cpu(fake_trt, wide_bert_dir, make_feed, cpu, mix: Mix) -> None:
    feed = make_feed(5, 24)
    exact = cpu(feed)
    for table, tolerance in ((None, 0.02), (cpu.table(feed), 0.15)):
        network, _ = define(wide_bert_dir, table, mix=mix, gpu=HOPPER)
        found = logits(network, feed)
        assert np.abs(found - exact).max() < tolerance * np.abs(exact).max()
        if table:
            assert np.abs(found - exact).max() > 1e-3 * np.abs(exact).max()  # it is INT8


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer, 768 wide, with 12 heads: the width that TensorRT's INT8 LayerNorm takes."""
    from tests.tiny import tiny_weights

    folder = tmp_path_factory.mktemp("broad")
    config = {
        **{"model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 768},
        **{"num_hidden_layers": 1, "num_attention_heads": 12, "intermediate_size": 96, "vocab_size": 100},
        **{"max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
        "id2label": {"0": "a", "1": "b"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tiny_weights(768, 1, 96, 100, 64, 2), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "mix",
    [
        Mix(attention="interleaved", linear="convolution"),
        Mix(attention="tensorrt", linear="convolution", norms="tensorrt", sums="int8"),
        Mix(attention="tensorrt", linear="fully_connected", norms="tensorrt", sums="half"),
    ],
    ids=["interleaved", "int8", "half"],
)
def test_int8_hidden_states(fake_trt, broad, make_feed, mix: Mix) -> None:
    feed = make_feed(4, 20)
    exact, table = on_the_cpu(broad, feed)
    network, _ = define(broad, table, mix=mix, gpu=HOPPER, built=False)
    found = logits(network, feed)
    assert np.abs(found - exact).max() < 0.15 * np.abs(exact).max()


def on_the_cpu(folder: Path, feed):
    """FP32 logits and a table."""
    import quantkit
    from quantkit.backends import get_backend
    from quantkit.network.model import load_model

    network = load_model(folder)
    fixed = network.fixed(*feed["input_ids"].shape)
    with get_backend("onnxruntime").compile(fixed, "fp32") as engine:
        exact = engine.infer(feed)["logits"]
    with get_backend("onnxruntime").tap(fixed, network.activations()) as tap:
        batch = {name: array.copy() for name, array in tap.infer(feed).items()}
    return exact, quantkit.calibrate_arrays([batch], method="minmax")
