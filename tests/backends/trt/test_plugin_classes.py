"""The plugins as TensorRT meets them: made from fields, serialized, asked for shapes and types, run.

The C++ classes are compiled against a stand-in of TensorRT's interface and run their kernels on the emulated machine;
networks are those that quantkit defines, so that an engine's logits can be compared with FP32's.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from quantkit.backends.trt.options import BuildOptions, Mix, ShapeRange, Source
from quantkit.backends.trt.plugins.packing import pack

TYPES = {np.float32: 0, np.float16: 1, np.int8: 2, np.int32: 3}
BYTES = {np.dtype(np.float32): 1, np.dtype(np.int8): 3, np.dtype(np.int16): 4, np.dtype(np.int32): 5}
"""NumPy type -> number of the field's type."""


class Host:
    """Plugins of the compiled library."""

    def __init__(self, library: Path) -> None:
        # TensorRT's registry is looked up among the process's global symbols.
        self.raw = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.raw.host_make.restype = ctypes.c_void_p
        assert self.raw.quantkit_register() == 0

    def make(self, kind: str, values: dict[str, np.ndarray]) -> int | None:
        names = (ctypes.c_char_p * len(values))(*(name.encode() for name in values))
        data = (ctypes.c_void_p * len(values))(*(array.ctypes.data for array in values.values()))
        types = (ctypes.c_int * len(values))(*(BYTES[array.dtype] for array in values.values()))
        lengths = (ctypes.c_int * len(values))(*(array.size for array in values.values()))
        return self.raw.host_make(kind.encode(), len(values), names, data, types, lengths)

    def run(self, kind: str, values: dict[str, np.ndarray], inputs: list[np.ndarray]) -> list[np.ndarray]:
        plugin = ctypes.c_void_p(self.make(kind, values))
        assert plugin.value, kind
        inputs = [np.ascontiguousarray(array) for array in inputs]
        count = self.raw.host_outputs(plugin)
        dims = np.zeros((len(inputs) + count, 8), np.int32)
        ranks = [array.ndim for array in inputs]
        for row, array in zip(dims, inputs, strict=False):
            row[: array.ndim] = array.shape
        pointer = ctypes.c_void_p
        outputs = []
        for i in range(count):
            given = (ctypes.c_int * len(ranks))(*ranks[: len(inputs)])
            found = dims[len(inputs) + i]
            rank = self.raw.host_shape(
                plugin, i, len(inputs), pointer(dims.ctypes.data), given, pointer(found.ctypes.data)
            )
            dtype = {number: kind for kind, number in TYPES.items()}[self.raw.host_type(plugin, i)]
            outputs.append(np.full(found[:rank], 77, dtype))
        everything = [*inputs, *outputs]
        types = (ctypes.c_int * len(everything))(*(TYPES[array.dtype.type] for array in everything))
        ranks = (ctypes.c_int * len(everything))(*(array.ndim for array in everything))
        given, made = (
            (pointer * len(arrays))(*(array.ctypes.data for array in arrays)) for arrays in (inputs, outputs)
        )
        status = self.raw.host_run(plugin, len(inputs), count, pointer(dims.ctypes.data), ranks, types, given, made)
        self.raw.host_destroy(plugin)
        assert status == 0, (kind, status)
        return outputs


@pytest.fixture
def host(emulated: Path) -> Host:
    return Host(emulated)


@pytest.fixture
def through_classes(fake_trt: None, host: Host, monkeypatch: pytest.MonkeyPatch):
    """The stand-in of TensorRT, with its plugins computed by the C++ classes."""
    from tensorrt import _plugins

    for kind in [kind for kind in _plugins.PLUGINS if kind.startswith("Quantkit")]:

        def run(given, extra, kind=kind):
            values = {name: value for name, value in extra.items() if name not in ("plugin", "ranges", "int8")}
            return host.run(kind, values, _plugins.converted([np.asarray(x) for x in given], extra))

        monkeypatch.setitem(_plugins.PLUGINS, kind, run)


def logits(folder: Path, options: BuildOptions, table, feed) -> np.ndarray:
    """The stand-in's answer."""
    import tensorrt
    from tensorrt._compute import compute, freeze

    from quantkit.backends.trt.network import define_plugins

    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    kept = define_plugins(
        tensorrt, network, Source("", str(folder)), options, table, lambda product: [(16, 0), (64, 4)]
    )
    given = pack(feed) if options.packed else feed
    found = compute(freeze(network), {name: array.astype(np.int32) for name, array in given.items()})["logits"]
    assert kept.kept
    return found


PROFILE = ShapeRange((1, 2), (4, 16), (8, 32))


@pytest.mark.parametrize("precision, tolerance", [("fp16", 0.01), ("int8", 0.12)])
def test_a_network_s_logits(through_classes, wide_bert_dir, make_feed, cpu, precision: str, tolerance: float) -> None:
    feed = make_feed(3, 21)
    exact = cpu(feed)
    table = cpu.table(feed) if precision == "int8" else None
    ranges = "dynamic_range" if table else ""
    found = [
        logits(wide_bert_dir, BuildOptions(precision, "plugins", ranges, (PROFILE,), packed=packed), table, feed)
        for packed in (False, True)
    ]
    assert found[0].shape == exact.shape
    assert np.abs(found[0] - exact).max() < tolerance * np.abs(exact).max()
    np.testing.assert_allclose(found[1], found[0], atol=1e-3 * np.abs(exact).max())
    assert (precision == "int8") == (np.abs(found[0] - exact).max() > 0.01 * np.abs(exact).max())


LINEAR = {"n": 32, "k": 16, "type": 2, "out_type": 1, "gelu": 0, "out_scale": 1.0}


def linear_values(**changes) -> dict[str, np.ndarray]:
    """Fields of a linear layer."""
    values = LINEAR | changes
    numbers = {k: np.array([v], np.float32 if isinstance(v, float) else np.int32) for k, v in values.items()}
    weight = np.ones((int(values["n"]), int(values["k"])), np.int8)
    vectors = {"alpha": np.ones(int(values["n"]), np.float32), "beta": np.zeros(int(values["n"]), np.float32)}
    return numbers | {"weight": weight} | vectors


def test_fields_that_do_not_fit_make_no_plugin(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    assert host.make("QuantkitLinear", linear_values())
    for changes, says in (
        ({"n": 33}, "not a multiple of 32"),
        ({"k": 15}, "not a multiple of 16 bytes"),
        ({"type": 0}, "INT8 or FP16"),
        ({"type": 3}, "the type is not"),
        ({"out_type": 2, "out_scale": 0.0}, "scale of an INT8 tensor is not positive"),
    ):
        assert host.make("QuantkitLinear", linear_values(**changes)) is None
        assert says in capfd.readouterr().err
    short = linear_values()
    short["alpha"] = short["alpha"][:31].copy()
    assert host.make("QuantkitLinear", short) is None
    assert "the field alpha has another size" in capfd.readouterr().err
    missing = linear_values()
    del missing["beta"]
    assert host.make("QuantkitLinear", missing) is None
    assert "the field beta is missing" in capfd.readouterr().err
    assert host.make("QuantkitNothing", {}) is None


def test_shapes_that_do_not_fit_are_refused_when_run(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="QuantkitLinear', 3"):
        host.run("QuantkitLinear", linear_values(), [np.ones((2, 3, 17), np.int8)])
    assert "the input has another width" in capfd.readouterr().err
    with pytest.raises(AssertionError, match="QuantkitLinear', 1"):
        host.run("QuantkitLinear", linear_values(), [np.ones((2, 3, 16), np.float16)])
    one = {"packed": np.ones(1, np.int32)}
    with pytest.raises(AssertionError, match="QuantkitFirst', 3"):
        host.run("QuantkitFirst", one, [np.ones((2, 3, 16), np.float16), np.array([0, 1, 2], np.int32)])
    assert "(tokens, width) when packed" in capfd.readouterr().err


def test_the_tile_of_the_next_larger_number_of_rows_is_taken(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    x = np.ones((5, 16), np.int8)
    for tiles, works in (([4, 99, 5, 0, 6, 99], True), ([3, 0, 4, 0], True), ([5, 99], False), ([4, 0, 64, 99], False)):
        values = linear_values() | {"tiles": np.array(tiles, np.int32)}
        if works:
            np.testing.assert_array_equal(host.run("QuantkitLinear", values, [x])[0], np.full((5, 32), 16, np.float16))
        else:
            with pytest.raises(AssertionError, match="QuantkitLinear', 3"):
                host.run("QuantkitLinear", values, [x])
            assert "running the kernel" in capfd.readouterr().err


def test_plain_norm_and_bias_gelu_and_classifier(host: Host) -> None:
    from scipy.special import erf

    draw = np.random.default_rng(0)
    x = draw.standard_normal((3, 2, 40)).astype(np.float16)
    gamma, beta, bias = (draw.standard_normal(40).astype(np.float32) for _ in range(3))

    def number(value: float) -> np.ndarray:
        return np.array([value], np.float32 if isinstance(value, float) else np.int32)

    kinds = {"type": number(1), "residual_type": number(-1), "out_type": number(0), "quantize": number(0)}
    found = host.run("QuantkitNorm", {"gamma": gamma, "beta": beta, "epsilon": number(1e-12), **kinds}, [x])[0]
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True)) * gamma + beta
    np.testing.assert_allclose(found, exact, atol=2e-5)
    values = {"bias": bias, "type": number(1), "out_type": number(2), "width": number(40)}
    found = host.run("QuantkitBiasGelu", values | {"out_scale": number(0.05), "out_shift": number(-3.0)}, [x])[0]
    exact = (wide + bias) * 0.5 * (1 + erf((wide + bias) / np.sqrt(2)))
    assert np.abs(found - np.clip(exact / 0.05 - 3, -127, 127)).max() < 0.501
    weight = draw.standard_normal((3, 40)).astype(np.float32)
    found = host.run("QuantkitClassifier", {"weight": weight, "bias": bias[:3].copy()}, [x[:, 0]])[0]
    np.testing.assert_allclose(found, np.tanh(wide[:, 0]) @ weight.T + bias[:3], atol=1e-4)


@pytest.mark.parametrize(
    "mix",
    [
        Mix(attention="own", linear="convolution", gelu="own"),
        Mix(attention="own", linear="convolution", sums="int8"),
        Mix(attention="tensorrt", linear="own"),
    ],
    ids=lambda mix: f"{mix.linear}-{mix.attention}-{mix.sums}",
)
@pytest.mark.parametrize("int8", [False, True])
def test_a_mixed_network_s_logits(through_classes, wide_bert_dir, make_feed, cpu, mix: Mix, int8: bool) -> None:
    """Tensors of four dimensions: (tokens, width, 1, 1), INT8 in vectors of 32 channels."""
    import tensorrt
    from tensorrt._compute import compute, freeze

    from quantkit.backends.trt.capabilities import Gpu, capabilities
    from quantkit.backends.trt.network import define_plugins
    from quantkit.backends.trt.versions import Version

    feed = make_feed(3, 21)
    exact, table = cpu(feed), cpu.table(feed) if int8 else None
    tensorrt.init_libnvinfer_plugins(None, "")
    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    precision, ranges = ("int8", "dynamic_range") if int8 else ("fp16", "")
    options = BuildOptions(precision, "plugins", ranges, (PROFILE,), packed=True, mix=mix)
    able = capabilities(Version(8, 6), Gpu("H100", (9, 0)))
    kept = define_plugins(tensorrt, network, Source("", str(wide_bert_dir)), options, table, lambda p: [], able)
    with np.errstate(invalid="ignore"):
        found = compute(freeze(network), {n: a.astype(np.int32) for n, a in pack(feed).items()})["logits"]
    assert kept.kept and found.shape == exact.shape
    assert np.abs(found - exact).max() < (0.15 if int8 else 0.01) * np.abs(exact).max()


def test_formats_of_four_dimensions(host: Host) -> None:
    """INT8 in vectors of 32 channels alone; the product that LayerNorm reads in either way, the rest row by row."""
    linear, vectors = 0, 5
    for width, either in ((64, 1), (40, 0)):
        ones = np.ones(width, np.float32)
        numbers = {"type": 1, "residual_type": 1, "out_type": 1, "quantize": 1}
        values = {"gamma": ones, "beta": ones, "epsilon": np.full(1, 1e-5, np.float32), "out_scale": ones[:1].copy()}
        values |= {name: np.array([number], np.int32) for name, number in numbers.items()}
        plugin = ctypes.c_void_p(host.make("QuantkitNorm", values))
        dims = np.zeros((4, 8), np.int32)
        dims[:, :4] = (5, width, 1, 1)
        ranks, types = (ctypes.c_int * 4)(4, 4, 4, 4), (ctypes.c_int * 4)(1, 1, 1, 2)
        given = (plugin, 2, 2, ctypes.c_void_p(dims.ctypes.data), ranks, types)
        found = [[host.raw.host_takes(*given, i, form) for form in (linear, vectors)] for i in range(4)]
        assert found == [[1, either], [1, 0], [1, 0], [0, 1]]
        host.raw.host_destroy(plugin)
