"""Networks of plugins with TensorRT's own linear layers and its attention plugin, over the stand-in."""

from __future__ import annotations

import json
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
AUTO = Mix()


def define(folder: Path, table=None, *, mix: Mix = AUTO, gpu: Gpu = ADA, built: bool = True, profile=PROFILE):
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


def plain_attention(x, weights, biases, heads: int) -> np.ndarray:
    """Softmax attention of one sentence, float64: (tokens, width)."""
    query, key, value = (
        (x @ w.T + b).reshape(len(x), heads, -1).transpose(1, 0, 2) for w, b in zip(weights, biases, strict=True)
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return ((e / e.sum(-1, keepdims=True)) @ value).transpose(1, 0, 2).reshape(len(x), -1)


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("amax", [(), (3.0, 40.0, 0.5)])
@pytest.mark.parametrize("head, wide", [(16, 64), (32, 32), (64, 64), (24, 32)])
def test_joint_weights_give_the_attention_of_the_checkpoint_s(head: int, wide: int, amax, by_head: bool) -> None:
    draw, heads, inputs, tokens = np.random.default_rng(4), 3, 20, 7
    weights = [draw.standard_normal((heads * head, inputs)) for _ in range(3)]
    biases = [draw.standard_normal(heads * head) for _ in range(3)]
    out, x = draw.standard_normal((10, heads * head)), draw.standard_normal((tokens, inputs))
    by = attention.factors(head, wide, amax)
    joint = attention.joint(weights, heads, wide, by, by_head=by_head)
    bias = attention.joint(biases, heads, wide, by, by_head=by_head)
    assert joint.shape == (3 * heads * wide, inputs) and bias.shape == (3 * heads * wide,)
    # What the plugin makes of it: rows head by head, or all queries, then keys, then values; 1 / sqrt(wide).
    made = (x @ joint.T + bias).reshape(tokens, *((heads, 3, wide) if by_head else (3, heads, wide)))
    query, key, value = (made[:, :, i] if by_head else made[:, i] for i in range(3))
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(wide)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    context = np.einsum("hqk,khd->qhd", e / e.sum(-1, keepdims=True), value).reshape(tokens, -1)
    found = context @ attention.output_weight(out, heads, wide, by).T
    np.testing.assert_allclose(found, plain_attention(x, weights, biases, heads) @ out.T, rtol=2e-4, atol=2e-4)


def test_query_key_and_value_come_to_share_one_range() -> None:
    amax = (3.0, 40.0, 0.5)
    by = attention.factors(32, 64, amax)
    shared = [a * f for a, f in zip(amax, (by.query, by.key, by.value), strict=True)]
    np.testing.assert_allclose(shared, shared[0])
    assert by.query * by.key == pytest.approx(np.sqrt(2))
    assert attention.factors(64, 64) == attention.Factors()


@pytest.mark.parametrize("linear", ["convolution", "fully_connected", "matmul"])
def test_the_joint_weight_stands_in_the_network_in_the_plugin_s_order(fake_trt, wide_bert_dir, linear: str) -> None:
    network, _ = define(wide_bert_dir, mix=Mix(attention="tensorrt", linear=linear), gpu=HOPPER)
    found = layers(network)
    weights = load_file(wide_bert_dir / "model.safetensors")
    parts = [weights[f"bert.encoder.layer.1.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    if linear == "matmul":
        kernel = found["layer1.attention.qkv.weight"]._extra["value"].T
    else:
        kernel = found["layer1.attention.qkv"]._extra["value"].reshape(192, 32)
    # One head of 32 in a kernel for 64: query (times sqrt 2), 32 rows of zeros, key, zeros, value, zeros.
    np.testing.assert_allclose(kernel[:32], parts[0] * np.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(kernel[64:96], parts[1])
    np.testing.assert_array_equal(kernel[128:160], parts[2])
    assert not kernel[32:64].any() and not kernel[96:128].any() and not kernel[160:].any()


def test_layers_names_shapes_and_fields(fake_trt, wide_bert_dir, make_feed, cpu) -> None:
    import tensorrt

    table = cpu.table(make_feed(4, 16))
    network, made = define(
        wide_bert_dir, table, mix=Mix(attention="tensorrt", linear="convolution", sums="half"), gpu=HOPPER
    )
    found = layers(network)
    qkv, context = found["layer0.attention.qkv"], found["layer0.attention.context@scaled"]
    assert qkv.type == tensorrt.LayerType.CONVOLUTION and qkv.get_output(0).shape == (-1, 192, 1, 1)
    assert (qkv.precision, qkv._types[0]) == (tensorrt.int8, tensorrt.int8)
    assert context._extra["plugin"] == "CustomQKVToContextPluginDynamic.2"
    assert context.get_output(0).shape == (-1, 64, 1, 1)
    values = {name: context._extra[name].tolist() for name in ("type_id", "hidden_size", "num_heads", "var_seqlen")}
    assert values == {"type_id": [2], "hidden_size": [64], "num_heads": [1], "var_seqlen": [1]}
    assert context._extra["dq_probs"][0] == pytest.approx(table["layer0.attention.probs"].scale)
    assert [context.get_input(i).name for i in range(4)] == ["layer0.attention.qkv", "longest", "starts", "longest"]
    assert found["longest"]._extra["value"].shape == (128,)  # the shortest kernel for 32 tokens in INT8
    output = found["layer0.attention.output"]
    assert output._types[0] == tensorrt.float16 and output._extra["value"].shape == (32, 64)
    assert found["layer1.ffn.gelu.erf"].precision is None  # told a type, TensorRT would not fuse it
    assert found["pooler.dense"].precision == tensorrt.float16
    assert [network.get_input(i).name for i in range(3)] == ["input_ids", "token_type_ids", "starts"]
    assert network.get_output(0).name == "logits" and made.int8
    half, _ = define(wide_bert_dir, mix=Mix(attention="tensorrt", linear="convolution"), gpu=HOPPER)
    assert layers(half)["longest"]._extra["value"].shape == (64,)
    assert layers(half)["layer0.attention.qkv"].precision == tensorrt.float16


@pytest.mark.parametrize(
    "mix, built",
    [
        (Mix(attention="tensorrt", linear="convolution"), True),
        (Mix(attention="tensorrt", linear="matmul"), True),
        (Mix(attention="tensorrt", linear="convolution", norms="tensorrt"), False),
        (Mix(attention="interleaved", linear="convolution"), False),
    ],
    ids=["convolution", "matmul", "their norms", "interleaved"],
)
def test_every_tensor_that_tensorrt_may_quantize_has_its_range(fake_trt, broad, make_feed, mix, built) -> None:
    import tensorrt

    table = on_the_cpu(broad, make_feed(4, 16))[1]
    network, made = define(broad, table, mix=mix, gpu=HOPPER, built=built)
    names = [network.get_layer(i).name for i in range(network.num_layers)]
    assert len(set(names)) == len(names)  # TensorRT refuses a name that comes twice
    amax = [table[f"layer0.attention.{part}"].amax for part in ("query", "key", "value")]
    shared = np.sqrt(amax[0] * amax[1])
    ranges = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_outputs):
            tensor = layer.get_output(j)
            encoder = tensor.name.startswith(("layer", "embeddings"))
            if encoder and layer.type != tensorrt.LayerType.CONSTANT and tensor.dtype != tensorrt.int32:
                assert tensor._range is not None, tensor.name
                ranges[tensor.name] = tensor._range[1]
    assert ranges["layer0.attention.qkv"] == pytest.approx(shared, rel=1e-5)
    context = table["layer0.attention.context"].amax * shared / amax[2]
    assert ranges["layer0.attention.context@scaled"] == pytest.approx(context, rel=1e-5)
    for name in ("attention.output", "attention.norm", "ffn.intermediate", "ffn.gelu.erf", "ffn.gelu", "ffn.output"):
        assert ranges[f"layer0.{name}"] == pytest.approx(table[f"layer0.{name}"].amax, rel=1e-6)
    assert ranges["embeddings.norm"] == pytest.approx(table["embeddings.norm"].amax, rel=1e-6)
    assert {"layer0.attention.query", "layer0.ffn.gelu", "layer0.attention.probs"} <= set(made.used)


def chosen(mix: Mix = AUTO, gpu: Gpu = ADA, *, built=True, int8=True, packed=True, longest=128, head=64, version=OLD):
    from quantkit.backends.trt.plugins.choice import Wanted, choose
    from quantkit.network.config import BertConfig

    class Config:
        hidden_size, intermediate_size, hidden_act, head_size = 768, 3072, "gelu", head

    config: BertConfig = Config()  # type: ignore[assignment]
    return choose(mix, capabilities(version, gpu), built, Wanted(config, int8, packed, longest))


def test_what_is_best_is_chosen_and_said() -> None:
    assert chosen(gpu=HOPPER).ours and chosen(gpu=HOPPER, packed=False).ours and not chosen(gpu=HOPPER).says
    ada = chosen()
    assert (ada.linear, ada.attention, ada.norms, ada.gelu, ada.sums) == (
        *("convolution", "tensorrt", "own"),
        *("layers", "half"),
    )
    assert ada.kernel == Kernel(64, 128) and ada.constrained
    assert ada.says == (
        "Our linear layers need 9.0 (Hopper); NVIDIA L4 has compute capability 8.9. "
        "TensorRT's own linear layers are used.",
        "TensorRT's attention plugin runs its kernel for heads of 64 and 128 tokens.",
    )
    assert chosen(packed=False).says == (*ada.says, "Padding is left out: such networks take packed sentences.")
    bare = chosen(built=False)
    assert (bare.norms, bare.sums) == ("tensorrt", "int8") and "TensorRT's LayerNorm plugins are used." in bare.says
    unbuilt = chosen(gpu=HOPPER, built=False)
    assert unbuilt.linear == "convolution" and "not built here" in unbuilt.says[0]
    long = chosen(longest=700)
    assert long.attention == "own" and "no kernel for INT8, heads of 64 and 700 tokens" in long.says[1]
    assert chosen(head=32).kernel == Kernel(32, 128)  # 8.9 runs the kernels of 8.0, which has heads of 32
    assert chosen(Mix(linear="convolution"), HOPPER, head=32).attention == "own"  # rather than filling heads up
    wide = chosen(Mix(linear="convolution", attention="tensorrt"), HOPPER, head=32)
    assert wide.kernel == Kernel(64, 128) and "heads of 32 filled up" in wide.says[0]
    assert chosen(int8=False, longest=300).kernel == Kernel(64, 512)  # 384 does not fit into 8.9's shared memory
    assert not chosen(Mix(constrained="no")).constrained
    assert chosen(int8=False).linear == "fully_connected"  # its FP16 convolutions have channels last
    assert chosen(int8=False, version=Version(10, 3)).linear == "matmul"
    assert chosen(Mix(linear="convolution"), HOPPER).sums == "float"  # its INT8 products give float32 or INT8
    assert chosen(Mix(linear="own", attention="tensorrt"), HOPPER).sums == "half"
    blackwell = chosen(gpu=Gpu("B200", (10, 0)), version=Version(10, 8))
    assert blackwell.attention == "own" and "not known to have kernels here" in blackwell.says[1]


@pytest.mark.parametrize(
    "says, given",
    [
        ("Our linear layers need 9.0", {"mix": Mix(linear="own")}),
        ("Our plugins are not built", {"mix": Mix(linear="own"), "gpu": HOPPER, "built": False}),
        ("Our plugins are not built", {"mix": Mix(attention="own"), "built": False}),
        ("Our plugins are not built", {"mix": Mix(norms="own"), "built": False}),
        ("no kernel for FP16, heads of 128", {"mix": Mix(attention="tensorrt"), "int8": False, "head": 128}),
        ("no kernel for INT8, heads of 64 and 700", {"built": False, "longest": 700}),
        ("interleaved attention plugin is INT8 alone", {"mix": Mix(attention="interleaved"), "int8": False}),
        ("stand convolutions", {"mix": Mix(attention="interleaved", linear="matmul")}),
        ("go with our LayerNorm", {"mix": Mix(norms="tensorrt", gelu="own")}),
        ("embedding plugin takes 384 tokens at most", {"mix": Mix(norms="tensorrt"), "longest": 512}),
        ("reads FP16 or INT8 here", {"mix": Mix(norms="tensorrt", sums="float")}),
        ("has no fully connected layers", {"mix": Mix(linear="fully_connected"), "version": Version(10, 3)}),
    ],
)
def test_what_cannot_be_is_said(says: str, given: dict) -> None:
    with pytest.raises(BackendError, match=says) as caught:
        chosen(**given)
    assert caught.value.hint


def test_kernels() -> None:
    assert kernel_for((9, 0), "int8", 32, 30) == Kernel(64, 128)
    assert kernel_for((8, 0), "fp16", 24, 30) == Kernel(32, 128)
    assert kernel_for((8, 0), "fp16", 64, 30) == Kernel(64, 64)
    assert kernel_for((8, 7), "fp16", 64, 512) is None
    assert kernel_for((9, 0), "interleaved", 64, 385) is None
    assert kernel_for((9, 0), "fp16", 65, 64) is None and kernel_for((6, 1), "fp16", 64, 64) is None


def test_capabilities_of_other_gpus() -> None:
    ada, turing, old = (capabilities(OLD, Gpu("G", gpu)) for gpu in ((8, 9), (7, 5), (7, 0)))
    assert ada.can("plugins") and ada.can("own plugins") and not ada.can("own linear")
    assert ada["attention plugin"].says == (
        "TensorRT's attention plugin: FP16 heads of 32 or 64 up to 512 tokens, INT8 heads of 32 or 64 up to 512 tokens."
    )
    assert turing.can("plugins") and not turing.can("own plugins") and turing.can("attention plugin")
    assert old.refusal("plugins") == "Networks of plugins need 7.5; G has compute capability 7.0."
    assert "not known to have kernels" in str(old.refusal("attention plugin"))
    gone = capabilities(Version(11, 0), Gpu("G", (9, 0)))
    assert all("no IPluginV2DynamicExt" in str(gone.refusal(n)) for n in ("plugins", "own linear", "attention plugin"))


def test_engines_are_built_run_and_kept(fake_trt, wide_bert_dir, make_feed, cpu, monkeypatch) -> None:
    """Through the building process, without a library of ours."""
    from quantkit.backends.trt.backend import TensorRTBackend

    feed = make_feed(5, 24)
    mix = Mix(linear="convolution", attention="tensorrt", norms="tensorrt", sums="half")
    options = BuildOptions("int8", "plugins", "dynamic_range", (PROFILE,), packed=True, mix=mix)
    assert BuildOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    backend = TensorRTBackend(audit=False)
    exact, table = cpu(feed), cpu.table(feed)
    with backend.build(Source("", str(wide_bert_dir)), options, table) as engine:
        found = engine.infer(feed)["logits"]
        assert np.abs(found - exact).max() < 0.15 * np.abs(exact).max()
        assert any("attention plugin runs its kernel for heads of 64" in note for note in engine.notes)
        small = engine.infer(make_feed(2, 9, 1))["logits"]
        assert small.shape == (2, exact.shape[1]) and np.isfinite(small).all()


def test_a_fixed_shape_takes_smaller_batches_too(fake_trt, wide_bert_dir, make_feed, cpu) -> None:
    """Nobody asked for packed sentences or gave a range of shapes."""
    from quantkit.backends.trt.backend import TensorRTBackend

    mix = Mix(linear="convolution", attention="tensorrt", norms="tensorrt", sums="half")
    source = Source("", str(wide_bert_dir), batch=5, seq_len=24)
    with TensorRTBackend(audit=False).build(source, BuildOptions("fp16", "plugins", mix=mix)) as engine:
        assert "Padding is left out: such networks take packed sentences." in engine.notes
        for feed in (make_feed(5, 24), make_feed(3, 24, 1), make_feed(1, 24, 2)):
            exact = cpu(feed)
            assert np.abs(engine.infer(feed)["logits"] - exact).max() < 0.02 * np.abs(exact).max()


def test_options_name_the_parts(fake_trt, wide_bert_dir, cli, tmp_path) -> None:
    from quantkit.backends.trt.backend import TensorRTBackend

    def configured(**options):
        return TensorRTBackend().configured(options, lambda: (wide_bert_dir, None))

    made = configured(network="plugins", attention="tensorrt", linear="convolution")
    assert made.options_for("fp16", network="plugins").mix == Mix("convolution", "tensorrt")
    assert made.options_for("fp32", network="plugins").mix == Mix()  # it is made by the network API
    with pytest.raises(InputError, match="are for networks of plugins"):
        configured(attention="own")
    with pytest.raises(UnknownNameError, match="way to attention"):
        configured(network="plugins", attention="flash")
    with pytest.raises(UnknownNameError, match="way to LayerNorm"):
        Mix(norms="none")
    with pytest.raises(InputError, match="chosen for networks of plugins"):
        BuildOptions("fp16", "api", mix=Mix(linear="matmul"))


def test_what_tensorrt_refuses_is_a_sentence(fake_trt, wide_bert_dir, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorrt import _network, _plugins

    mix = Mix(attention="tensorrt", linear="convolution")
    with monkeypatch.context() as patch:
        patch.setattr(_network.INetworkDefinition, "add_convolution_nd", lambda *_: None)
        with pytest.raises(BackendError, match=r"TensorRT refuses the layer 'layer0\.attention\.qkv'"):
            define(wide_bert_dir, mix=mix, gpu=HOPPER)
    monkeypatch.setattr(_plugins, "THEIRS", {})  # a TensorRT whose plugin library has none of them
    with pytest.raises(BackendError, match="does not know the plugin CustomQKVToContextPluginDynamic") as caught:
        define(wide_bert_dir, mix=mix, gpu=HOPPER)
    assert caught.value.hint == "Use --network api."


def test_a_sentence_may_not_be_longer_than_the_positions(fake_trt, wide_bert_dir) -> None:
    with pytest.raises(BackendError, match="may have 1 to 64 tokens, not 100"):
        define(wide_bert_dir, mix=Mix(attention="tensorrt"), gpu=HOPPER, profile=ShapeRange.fixed(2, 100))
