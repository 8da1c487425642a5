"""Networks of plugins, packed sentences, and the building of the library, over the stand-in."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from trt_helpers import headers, no_plugins_loaded, nvcc, stub_library

from quantkit.backends.trt.options import BuildOptions, ShapeRange, Source
from quantkit.backends.trt.plugins import compiler
from quantkit.backends.trt.plugins.compiler import Headers, find_headers, header_version
from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError, InputError, TableError

PROFILE = ShapeRange((1, 2), (4, 16), (8, 32))


@pytest.fixture
def library(fake_trt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A library that registers nothing and computes nothing: the stand-in of TensorRT knows the plugins by itself."""
    from quantkit.backends.trt.plugins import library

    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv(compiler.LIBRARY_VARIABLE, str(stub_library(tmp_path)))
    with no_plugins_loaded():
        yield library


def backend(**options):
    from quantkit.backends.trt.backend import TensorRTBackend

    return TensorRTBackend(audit=False, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_fp16_and_int8_engines_give_the_logits_of_the_cpu(library, wide_bert_dir, make_feed, cpu, packed) -> None:
    feed = make_feed(5, 24)
    exact, table = cpu(feed), cpu.table(feed)
    source = Source("", str(wide_bert_dir))
    for precision, tolerance in (("fp16", 0.02), ("int8", 0.12)):
        ranges = "dynamic_range" if precision == "int8" else ""
        options = BuildOptions(precision, "plugins", ranges, (PROFILE,), packed=packed)
        with backend().build(source, options, table if ranges else None) as engine:
            assert [spec.name for spec in engine.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
            found = engine.infer(feed)["logits"]
            assert np.abs(found - exact).max() < tolerance * np.abs(exact).max()
            assert (precision == "fp16") == (np.abs(found - exact).max() < 2e-2 * np.abs(exact).max())
            with engine.runner() as other:
                np.testing.assert_array_equal(other.infer(feed)["logits"], found)
            assert engine.measure(feed).compute > 0


def test_packed_logits_equal_the_padded_ones(library, wide_bert_dir, make_feed, cpu) -> None:
    feed = make_feed(6, 20, 3)
    table, source = cpu.table(feed), Source("", str(wide_bert_dir))
    found = []
    for packed in (False, True):
        options = BuildOptions("int8", "plugins", "dynamic_range", (PROFILE,), packed=packed)
        with backend().build(source, options, table) as engine:
            found.append(engine.infer(feed)["logits"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_the_table_s_scales_are_given_to_every_int8_tensor(fake_trt, wide_bert_dir, make_feed, cpu) -> None:
    import tensorrt

    from quantkit.backends.trt.network import define_plugins

    table = cpu.table(make_feed(4, 16))
    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    options = BuildOptions("int8", "plugins", "dynamic_range")
    source = Source("", str(wide_bert_dir), batch=4, seq_len=16)
    made = define_plugins(tensorrt, network, source, options, table, lambda p: ())
    ranges = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        assert layer.type == tensorrt.LayerType.PLUGIN_V2
        for j in range(layer.num_outputs):
            tensor = layer.get_output(j)
            if tensor.dtype == tensorrt.int8:
                ranges[tensor.name] = tensor._range[1]
    widest = max(table[f"layer0.attention.{part}"].amax for part in ("query", "key", "value"))
    assert ranges["layer0.attention.qkv"] == widest
    for name, entry in (
        ("embeddings.norm@int8", "embeddings.norm"),
        ("layer0.attention.context", "layer0.attention.context"),
        ("layer0.attention.norm@int8", "layer0.attention.norm"),
        ("layer1.ffn.gelu", "layer1.ffn.gelu"),
    ):
        assert ranges[name] == table[entry].amax
    assert len(ranges) == 2 * 4 + 2  # four a layer, the embeddings' and the first layer's norm
    assert set(made.used) <= set(table.names)


def test_query_key_and_value_keep_scales_of_their_own(fake_trt, wide_bert_dir, make_feed, cpu) -> None:
    import tensorrt

    from quantkit.backends.trt.network import define_plugins

    table = cpu.table(make_feed(4, 16))
    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    options = BuildOptions("int8", "plugins", "dynamic_range")
    define_plugins(tensorrt, network, Source("", str(wide_bert_dir)), options, table, lambda product: [(64, 1)])
    values = {network.get_layer(i).name: network.get_layer(i)._extra for i in range(network.num_layers)}
    weights = load_file(wide_bert_dir / "model.safetensors")
    matrix = weights["bert.encoder.layer.0.attention.self.key.weight"]
    scale = np.abs(matrix).max(axis=1) / np.float32(127)
    own = values["layer0.attention.qkv"]["alpha"][32:64]
    entry = table["embeddings.norm"]
    step = (entry.maximum - entry.minimum) / 254
    np.testing.assert_allclose(own, step * scale / table["layer0.attention.key"].scale, rtol=1e-5)
    gelu = values["layer0.ffn.gelu"]
    entry = table["layer0.ffn.gelu"]
    assert entry.minimum < 0 and gelu["out_scale"][0] == pytest.approx((entry.maximum - entry.minimum) / 254)
    assert gelu["out_shift"][0] == round(-entry.minimum / gelu["out_scale"][0]) - 127
    np.testing.assert_array_equal(values["layer0.attention.qkv"]["tiles"], [64, 1])


def test_a_table_without_a_tensor_is_refused_by_its_name(fake_trt, wide_bert_dir, make_feed, cpu) -> None:
    import tensorrt

    from quantkit.backends.trt.network import define_plugins
    from quantkit.tables.table import CalibrationTable

    table = cpu.table(make_feed(4, 16))
    entries = {name: table[name] for name in table.names if name != "layer1.attention.value"}
    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    options = BuildOptions("int8", "plugins", "dynamic_range")
    with pytest.raises(TableError, match=r"no scale for 'layer1\.attention\.value'"):
        define_plugins(
            tensorrt, network, Source("", str(wide_bert_dir)), options, CalibrationTable(entries), lambda p: ()
        )


def test_what_the_plugins_cannot_make_is_said(fake_trt, tiny_bert_dir, wide_bert_dir) -> None:
    import tensorrt

    from quantkit.backends.trt.network import define_plugins

    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    options = BuildOptions("fp16", "plugins")
    for source, says in (
        (Source("", str(tiny_bert_dir)), "heads of 32 or 64, not 16"),
        (Source("", str(wide_bert_dir), head="masked-lm"), "the classifier's head only"),
    ):
        with pytest.raises(BackendError, match=says):
            define_plugins(tensorrt, network, source, options, None, lambda p: ())
    for precision, ranges in (("fp32", ""), ("int8", "qdq"), ("int8", "cache")):
        with pytest.raises(InputError, match="Plugins compute FP16, or INT8"):
            BuildOptions(precision, "plugins", ranges)
    with pytest.raises(InputError, match="Packed sentences need"):
        BuildOptions("fp16", "plugins", packed=True)


def test_packing(make_feed) -> None:
    from quantkit.backends.trt.plugins.packing import pack

    feed = {
        "input_ids": np.array([[5, 6, 0], [7, 0, 0], [8, 9, 4]]),
        "attention_mask": np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
        "token_type_ids": np.array([[0, 1, 0], [0, 0, 0], [0, 1, 1]]),
    }
    packed = pack(feed)
    assert packed["starts"].tolist() == [0, 2, 3, 6]
    assert packed["input_ids"][:6].tolist() == [5, 6, 7, 8, 9, 4]
    assert packed["token_type_ids"][:6].tolist() == [0, 1, 0, 0, 1, 1]
    assert len(packed["input_ids"]) == 64 and not packed["input_ids"][6:].any()
    assert len(pack(feed, most=6)["input_ids"]) == 6
    with pytest.raises(BackendError, match="In row 1 padding stands before a token"):
        pack(feed | {"attention_mask": np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1]])})
    with pytest.raises(BackendError, match="Row 2 has no tokens"):
        pack(feed | {"attention_mask": np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])})


def test_tile_shapes_are_measured_for_every_number_of_rows() -> None:
    from quantkit.backends.trt.plugins.tuning import row_counts

    assert row_counts((), 8, 128) == (1024,)
    assert row_counts([ShapeRange((1, 128), (32, 128), (128, 128))], 0, 0) == (
        *(128, 256, 512, 1024, 2048, 4096, 8192),
        16384,
    )
    assert row_counts([ShapeRange((1, 1), (3, 50), (4, 50))], 0, 0) == (64, 128, 150, 200)


def test_headers_are_found_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_PLACES", ())
    monkeypatch.delenv(compiler.INCLUDE_VARIABLE, raising=False)
    with pytest.raises(BackendError, match=r"headers \(NvInfer\.h\) are not here.*") as caught:
        find_headers(None, Version(8, 6, 0))
    assert "github.com/NVIDIA/TensorRT" in caught.value.hint and "release/8.6" in caught.value.hint
    with pytest.raises(BackendError, match=r"holds no NvInfer\.h"):
        find_headers(tmp_path)
    eight = headers(tmp_path / "8", 8, 6)
    assert find_headers(eight, Version(8, 6, 0)) == Headers(eight, Version(8, 6, 1))
    monkeypatch.setenv(compiler.INCLUDE_VARIABLE, str(eight))
    assert find_headers(None, Version(8, 6, 0)).folder == eight
    with pytest.raises(BackendError, match=r"headers of TensorRT 10\.3\.1; 8\.6\.0 is installed"):
        find_headers(headers(tmp_path / "10", 10, 3, "TRT_{}_ENTERPRISE {}"), Version(8, 6, 0))
    with pytest.raises(BackendError, match="no IPluginV2DynamicExt"):
        find_headers(headers(tmp_path / "11", 11, 0))
    (eight / "NvInferVersion.h").write_text("nothing")
    with pytest.raises(BackendError, match="defines no version"):
        header_version(eight)


COMPILES = """
while [ "$1" != -o ]; do case "$1" in -gencode*) arch=$1;; esac; shift; done
echo "$arch" > "$2"; echo x >> calls
"""


def test_a_library_is_built_once_for_sources_gpu_and_version(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc(tmp_path, COMPILES)
    there = Headers(headers(tmp_path / "include", 8, 6), Version(8, 6, 1))
    built = compiler.build((9, 0), there)
    assert built.fresh and built.path.read_text().strip() == "-gencode=arch=compute_90a,code=sm_90a"
    assert compiler.find_library((9, 0), Version(8, 6, 0)) == built.path
    assert not compiler.build((9, 0), there).fresh
    assert compiler.build((8, 9), there).path != built.path
    assert compiler.build((9, 0), there, force=True).fresh
    assert (tmp_path / "calls").read_text().count("x") == 3
    with pytest.raises(BackendError, match=r"not built for compute capability 9\.0 and TensorRT 10\.3"):
        compiler.find_library((9, 0), Version(10, 3, 0))
    with pytest.raises(BackendError, match=r"need compute capability 8\.0; this GPU has 7\.5"):
        compiler.build((7, 5), there)
    monkeypatch.setattr(compiler, "SOURCES", tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.cu").write_text("x")
    assert compiler.library_path((9, 0), Version(8, 6, 0)) != built.path


def test_what_nvcc_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Headers(headers(tmp_path / "include", 8, 6), Version(8, 6, 1))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc(tmp_path, "echo 'a.cu(3): error: no such thing' >&2; exit 1")
    with pytest.raises(BackendError, match="error: no such thing"):
        compiler.build((9, 0), there)
    nvcc(tmp_path, "").write_text("#!/bin/sh\necho 'release 11.8, V11.8.0'\n")
    with pytest.raises(BackendError, match=r"is of CUDA 11\.8; the plugins need 12\.0"):
        compiler.build((9, 0), there)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(compiler, "_NVCC", ())
    with pytest.raises(BackendError, match="there is no nvcc to build them"):
        compiler.build((9, 0), there)


def test_the_command_says_what_is_missing(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler, "_PLACES", ())
    code, out, err = cli("plugins", "build", "--capability", "9.0")
    assert code == 2 and "TensorRT's headers" in err and not out
    code, _, err = cli("plugins", "build", "--capability", "nine")
    assert code == 2 and "'nine' is no compute capability" in err
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc(tmp_path, COMPILES)
    monkeypatch.chdir(tmp_path)
    include = headers(tmp_path / "include", 8, 6)
    code, out, _ = cli("plugins", "build", "--capability", "9.0", "--include", include, "--json")
    assert code == 0 and json.loads(out)["fresh"] is True


def test_a_wrong_library_is_a_sentence(library, tmp_path: Path) -> None:
    (tmp_path / "empty.so").write_bytes(b"no library")
    with pytest.raises(BackendError, match="The plugins do not load"):
        library.Kernels(tmp_path / "empty.so")
    (tmp_path / "other.c").write_text("int quantkit_size(int which) { return 1; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    with pytest.raises(BackendError, match="of another version of quantkit"):
        library.Kernels(tmp_path / "other.so")


def test_weights_that_do_not_fit_are_refused_by_the_plugin(fake_trt, tiny_bert_dir, tmp_path: Path) -> None:
    import tensorrt

    from quantkit.backends.trt.plugins.definition import PluginNetwork
    from quantkit.network.config import BertConfig

    network = tensorrt.Builder(tensorrt.ILogger()).create_network(1)
    config = BertConfig.from_dir(tiny_bert_dir)
    made = PluginNetwork(tensorrt, network, _one_head(config), {}, None)
    x = network.add_input("x", tensorrt.int32, (2, 3))
    with pytest.raises(BackendError, match="QuantkitLinear refuses what 'odd' is to be"):
        made.linear(x, "odd", np.ones((33, 32), np.float32), np.ones(33, np.float32), "")
    with pytest.raises(BackendError, match="does not know the plugin QuantkitNothing"):
        made.plugin("QuantkitNothing", "x", [x], {})


def _one_head(config):
    from dataclasses import replace

    return replace(config, num_heads=1)
