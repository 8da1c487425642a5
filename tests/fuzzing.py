"""Every reader of quantkit, good files for it, and ways to damage them.

tests/test_fuzz.py and benchmarks/fuzz.py use it.

A reader takes bytes and a folder of its own, and either returns or raises a QuantkitError. Anything else is a defect.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

Read = Callable[[bytes, Path], Any]
Mutate = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Reader:
    """A reader, what it reads, and how that is damaged (bytes are always damaged as well)."""

    name: str
    read: Read
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate | None = None
    slow: bool = False


# ---------------------------------------------------------------------------------------------------------- damage

NUMBERS = (0, 1, -1, 7, 127, 128, 255, 256, 2047, 2048, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**40)
ODD: tuple[Any, ...] = (
    *NUMBERS,
    *(
        0.5,
        -0.0,
        1e308,
        1e-320,
        float("nan"),
        float("inf"),
        None,
        True,
        False,
        "",
        "x",
        "..",
        "/etc/passwd",
        "\0",
        "\ud800",
    ),
    *("a" * 3000, "(a+)+$", [], {}, [[]], {"": {}}, ["x"], "1e999", "99999999999999999999", "-1", "é", "\n"),
)


def damaged_bytes(draw: random.Random, data: bytes) -> bytes:
    """The bytes with one to six places changed, cut, repeated or moved."""
    value = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at, size = draw.randint(0, len(value)), draw.choice((1, 1, 2, 4, 8, 16, 100))
        match draw.randint(0, 6):
            case 0 if value:
                value[at % len(value)] ^= 1 << draw.randint(0, 7)
            case 1:
                value[at : at + 1] = bytes([draw.randint(0, 255)])
            case 2:
                del value[at : at + size]
            case 3:
                value[at:at] = value[draw.randint(0, len(value)) :][:size]
            case 4:
                number = draw.choice(NUMBERS) & (2**64 - 1)
                packed = number.to_bytes(8, draw.choice(("little", "big")))[: draw.choice((1, 2, 4, 8))]
                value[at : at + len(packed)] = packed
            case 5:
                value[at:at] = draw.choice((b"\n", b"\t", b'"', b"\0", b"\xff", b"{", b"[", b",", b":", b"9" * 20))
            case _:
                del value[at : len(value) if draw.random() < 0.3 else at + 1]
    return bytes(value)


def damaged_json(draw: random.Random, data: bytes) -> bytes:
    """A JSON document with one to three values replaced, taken out, doubled, or nested deeply."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return damaged_bytes(draw, data)
    for _ in range(draw.randint(1, 3)):
        value = changed(draw, value)
    if draw.random() < 0.01:
        return b"[" * 100_000
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def changed(draw: random.Random, value: Any) -> Any:
    """A JSON value with one place in it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        rest = dict(value)
        match draw.randint(0, 9):
            case 0:
                del rest[key]
            case 1:
                rest[str(draw.choice(ODD))] = rest[key]
            case _:
                rest[key] = changed(draw, value[key])
        return rest
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        match draw.randint(0, 9):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], changed(draw, value[at]), *value[at + 1 :]]
    return draw.choice(ODD)


def damaged_safetensors(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header is damaged as JSON, its length told right or wrong."""
    size = int.from_bytes(data[:8], "little")
    header = damaged_json(draw, data[8 : 8 + size])
    told = len(header) if draw.random() < 0.8 else draw.choice(NUMBERS) & (2**64 - 1)
    return struct.pack("<Q", told & (2**64 - 1)) + header + data[8 + size :]


def damaged_onnx(draw: random.Random, data: bytes) -> bytes:
    """An ONNX model with one to four fields set to odd values, taken out or doubled."""
    import onnx

    model = onnx.load_model_from_string(data)
    for _ in range(draw.randint(1, 4)):
        change_message(draw, model)
    return bytes(model.SerializeToString())


def change_message(draw: random.Random, message: Any) -> None:
    """Walks down a protobuf message at random and changes the field where it ends."""
    fields = message.ListFields()
    field, value = draw.choice(fields) if fields else (draw.choice(message.DESCRIPTOR.fields), None)
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    if field.message_type is not None:
        inner = draw.choice(value) if repeated and value else value
        if (inner is not None and not repeated) or (value and draw.random() < 0.85):
            change_message(draw, inner)
        elif value and repeated and draw.random() < 0.5:
            del value[draw.randrange(len(value))]
        elif value and repeated:
            value.add().CopyFrom(inner)
        else:
            getattr(message, field.name).SetInParent() if not repeated else getattr(message, field.name).add()
        return
    odd = odd_scalar(draw, field)
    try:
        if not repeated:
            setattr(message, field.name, odd)
        elif value and draw.random() < 0.3:
            del getattr(message, field.name)[draw.randrange(len(value))]
        elif value:
            getattr(message, field.name)[draw.randrange(len(value))] = odd
        else:
            getattr(message, field.name).append(odd)
    except (ValueError, TypeError):
        message.ClearField(field.name)


def odd_scalar(draw: random.Random, field: Any) -> Any:
    """A value of a protobuf field's type that a file should not have."""
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return draw.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return draw.choice((b"", b"\0", b"x" * 100, b"\xff" * 7))
        return draw.choice(
            ("", "x", "a\0b", "input_ids", "logits", "../x", "/etc/passwd", "Shape", "Expand", "Range", "a" * 999)
        )
    limit = 2**31 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM) else 2**63
    return draw.choice([n for n in NUMBERS if -limit <= n < limit] + [draw.randint(0, 30)])


def damaged_members(draw: random.Random, data: bytes) -> bytes:
    """A zip archive with its members damaged and all checksums right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(members))
    if name == "header.npy" and draw.random() < 0.8:
        start = 10 + int.from_bytes(members[name][8:10], "little")
        header = damaged_json(draw, members[name][start:])
        member = io.BytesIO()
        np.lib.format.write_array(member, np.frombuffer(header, np.uint8), version=(1, 0))
        members[name] = member.getvalue()
    else:
        members[name] = damaged_bytes(draw, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for member_name, content in members.items():
            archive.writestr(member_name, content)
    return buffer.getvalue()


def damaged(draw: random.Random, reader: Reader, seeds: Sequence[bytes]) -> bytes:
    """One input for a reader."""
    data = draw.choice(seeds)
    if reader.mutate is not None and draw.random() < 0.7:
        data = reader.mutate(draw, data)
        if draw.random() < 0.8:
            return data
    return damaged_bytes(draw, data)


# ------------------------------------------------------------------------------------------------------ good files


def table_seeds(kind: str) -> list[bytes]:
    """A table in one format."""
    from quantkit.tables import CalibrationTable, Entry, Provenance
    from quantkit.tables.formats import write_bytes_of

    provenance = Provenance("a" * 64, "b" * 64, 8, 0, 4, 16, "minmax", {}, "tensorrt", False, "openvino")
    scales = {"a": 0.5, "/b/c_0": 1e-9, "d: e": 3.0, "input_ids": 0.0}
    entries = {name: Entry(np.float32(scale), -1.0, 2.0) for name, scale in scales.items()}
    return [write_bytes_of(CalibrationTable(entries, "minmax", {}, provenance), kind)[0]]


def histograms() -> dict[str, Any]:
    """Three histograms of both modes."""
    from quantkit.collect.histogram import Histogram

    values = np.linspace(-3, 8, 999, dtype=np.float32)
    apart = Histogram.empty("pow2", -5000.0).updated(np.append(values, np.float32(-1e4)))
    return {"x": Histogram.empty("tensorrt").updated(values), "y": Histogram.empty("pow2"), "z": apart}


def histogram_seeds() -> list[bytes]:
    """A histogram file."""
    import tempfile

    from quantkit.collect.store import save_histograms

    meta = {"seconds": 1.5, "provenance": None, "kinds": {"x": "softmax"}, "unmasked": {}}
    with tempfile.TemporaryDirectory() as folder:
        return [save_histograms(Path(folder) / "h.npz", histograms(), meta).read_bytes()]


def trt_histogram_seeds() -> list[bytes]:
    """A TensorRT histogram cache."""
    from quantkit.collect.store import dump_trt_histogram_cache

    return [dump_trt_histogram_cache({"x": histograms()["x"]})]


def record_seeds() -> list[bytes]:
    """A record of a run and one of a comparison, as small as they can be."""
    context = {
        "time": "2026-11-22T10:00:00+00:00",
        "command": "quantkit run demo",
        "machine": {"cpu": "x", "cores": 2, "system": "Linux"},
        "versions": {"quantkit": "0.1.0"},
        "settings": {"model": "demo", "batch": 16},
    }
    metrics = {"accuracy": {"value": 0.85, "stderr": 0.01, "higher_is_better": True}}
    engine = {
        **{"precision": "fp32", "backend": "openvino", "compute": "f32", "status": "ok", "metrics": metrics},
        **{"latency_ms": {"median": 1.0, "p90": 1.5, "p99": 2.0}, "throughput_per_s": 100.0, "size_bytes": 1000},
    }
    int8 = engine | {"precision": "int8", "speedup": 2.0, "int8_ops": 12, "notes": ["x"]}
    run = {
        "schema": 1,
        "context": context,
        "model": {"name": "demo", "adapter": None, "sha256": "a" * 64},
        "task": {
            "name": "sst2",
            "split": "dev",
            "source": "x",
            "examples": 5,
            "truncated": 0,
            "seq_len": 8,
            "batch": 4,
        },
        "calibration": {"method": "mse", "parameters": {}, "samples": 8, "seconds": 1.0, "tensors": 3, "table": "t"},
        "engines": [engine, int8],
        "verdict": ["INT8 against FP32: accuracy +0.00 points."],
        "files": {"tensors": {"path": "tensors.json", "sha256": "b" * 64}},
    }
    change = {"metric": "accuracy", "value": -0.01, "stderr": 0.01, "p_value": 0.5, "test": "McNemar exact"}
    cell = {"task": "sst2", "backend": "openvino", "method": "", "fp32_ms": 1.0} | engine
    compare = {
        "schema": 1,
        "kind": "compare",
        "context": context,
        "tasks": ["sst2"],
        "backends": ["openvino"],
        "methods": ["minmax"],
        "sources": {"sst2": {"model": {"name": "demo", "sha256": "a"}, "adapter": None, "metric": "accuracy"}},
        "cells": [cell, cell | {"method": "minmax", "precision": "int8", "change": change, "speedup": 2.0}],
        "kept": 0,
        "verdict": [],
    }
    return [json.dumps(run).encode(), json.dumps(compare).encode()]


def tensors_seeds() -> list[bytes]:
    """A tensors.json."""
    row = {
        **{"name": "x", "kind": "", "method": "mse", "reason": "", "amax": 1.0, "minimum": -1.0, "maximum": 1.0},
        **{"quantized": True, "values": 10, "zeros": 1, "masked": 0, "sqnr_db": 30.0, "ranges": {"mse": 1.0}},
        **{"sqnr_by_method": {"mse": 30.0}, "curves": {"mse": {"at": [0.5, 1.0], "loss": [1.0, None]}}},
    }
    value = {"_type": "quantkit.tensors", "_version": 1, "method": "mse", "tensors": [row, row | {"name": "y"}]}
    return [json.dumps(value).encode()]


def safetensors_seeds() -> list[bytes]:
    """A safetensors file."""
    from safetensors.numpy import save

    return [save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.ones(4, np.float16)})]


ADAPTER_CONFIG = {
    **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"q": 2}, "alpha_pattern": {"k": 8}},
    **{"use_rslora": False, "use_dora": False, "target_modules": ["q"], "bias": "none"},
}


def adapter_seeds() -> list[bytes]:
    """The weights of a LoRA adapter of one matrix."""
    from safetensors.numpy import save

    a, b = np.ones((2, 6), np.float32), np.ones((4, 2), np.float32)
    names = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")
    return [save({names[0]: a, names[1]: b, "base_model.model.classifier.weight": np.ones((2, 4), np.float32)})]


BERT_CONFIG = {
    **{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9},
    **{"intermediate_size": 16, "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    **{"hidden_act": "gelu", "pad_token_id": 0, "id2label": {"0": "no", "1": "yes"}},
}


def bert_weights() -> dict[str, np.ndarray]:
    """Weights of the BERT of BERT_CONFIG."""
    draw, weights = np.random.default_rng(1), {}

    def put(name: str, *shape: int) -> None:
        weights[name] = draw.standard_normal(shape).astype(np.float32)

    def dense(name: str, outputs: int, inputs: int) -> None:
        put(f"{name}.weight", outputs, inputs)
        put(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        put(f"{name}.weight", 8)
        put(f"{name}.bias", 8)

    for name, rows in (("word", 9), ("position", 16), ("token_type", 2)):
        put(f"bert.embeddings.{name}_embeddings.weight", rows, 8)
    norm("bert.embeddings.LayerNorm")
    layer = "bert.encoder.layer.0"
    for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        dense(f"{layer}.{part}", 8, 8)
    norm(f"{layer}.attention.output.LayerNorm")
    dense(f"{layer}.intermediate.dense", 16, 8)
    dense(f"{layer}.output.dense", 8, 16)
    norm(f"{layer}.output.LayerNorm")
    dense("bert.pooler.dense", 8, 8)
    dense("classifier", 2, 8)
    return weights


def model_seeds() -> list[bytes]:
    """The weights of a BERT of one layer."""
    from safetensors.numpy import save

    return [save(bert_weights())]


def onnx_seeds() -> list[bytes]:
    """A BERT of one layer as ONNX; the same with external data named; a small graph that computes constants."""
    import tempfile

    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    from quantkit.network.model import load_model

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(BERT_CONFIG))
        save_file(bert_weights(), Path(folder) / "model.safetensors")
        bert = load_model(Path(folder)).proto
    beside = type(bert)()
    beside.CopyFrom(bert)
    tensor = beside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(4 * 9 * 8))):
        tensor.external_data.add(key=key, value=value)
    constants = {"shape": np.int64([2, 3]), "w": np.ones((3, 3), np.float32), "axes": np.int64([0])}
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Expand", ["zeros", "shape"], ["wide"]),
        helper.make_node("MatMul", ["wide", "w"], ["product"]),
        helper.make_node("Add", ["input_ids", "product"], ["sum"]),
        helper.make_node("ReduceSum", ["sum", "axes"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("input_ids", "logits")]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    folded = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], held), opset_imports=bert.opset_import)
    folded.ir_version = 8
    return [m.SerializeToString() for m in (bert, beside, folded)]


def qdq_seeds() -> list[bytes]:
    """A model with Q/DQ nodes."""
    from onnx import TensorProto, helper, numpy_helper

    held = {"s": np.float32(0.5), "z": np.uint8(3), "ws": np.ones(3, np.float32), "wz": np.zeros(3, np.int8)}
    held["w"] = np.ones((4, 3), np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, n) for n, v in held.items()])
    return [helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()]


def rows_seeds(ending: str) -> list[bytes]:
    """A small data set in one format."""
    if ending == "parquet":
        import pyarrow
        from pyarrow import parquet

        sink = io.BytesIO()
        table = pyarrow.table({"sentence": ["good film", "bad film"], "label": [1, 0]})
        parquet.write_table(table, sink, compression=None)
        return [sink.getvalue()]
    texts = {
        "tsv": 'sentence\tlabel\na "good film\t1\nbad film\t0\n',
        "csv": 'sentence,label\n"a ""good"", film",1\nbad film,0\n',
        "jsonl": '{"sentence": "good film", "label": 1}\n{"sentence": "bad\\nfilm", "label": 0}\n',
        "txt": "good film\nbad film\n",
    }
    return [texts[ending].encode()]


def plan_seeds() -> list[bytes]:
    """The sidecar of a TensorRT plan."""
    from quantkit.backends.trt.plans import PlanInfo

    info = PlanInfo("a" * 64, 10, "H100 (9.0)", "8.6.0", {"graph": "x"}, {}, {"input_ids": ["batch", None]}, {"x": 9})
    return [json.dumps({**info.to_json(), "hmac": "0" * 64}).encode()]


def answers_seeds() -> list[bytes]:
    """Kept logits of an evaluation, hash and all."""
    from quantkit.files import sha256_json

    value = {"shapes": [[2, 2], [1, 2]], "logits": np.arange(6, dtype="<f4").tobytes().hex()}
    return [json.dumps({**value, "sha256": sha256_json(value)}).encode()]


def shard_index_seeds() -> list[bytes]:
    """An index of safetensors shards."""
    return [
        json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b.c": "model-1.safetensors"}}).encode()
    ]


# --------------------------------------------------------------------------------------------------------- readers


def put(folder: Path, name: str, data: bytes) -> Path:
    """Writes a file for a reader; not atomically, because nothing is kept."""
    path = folder / name
    path.write_bytes(data)
    return path


def read_table(data: bytes, _folder: Path, kind: str) -> None:
    """A table, read by its own reader, by the one that guesses, and by the one that reads on after errors."""
    from quantkit.errors import QuantkitError
    from quantkit.tables.formats import parse
    from quantkit.tables.scan import scan
    from quantkit.tables.validate import validate

    with suppress(QuantkitError):
        parse(data, "x", kind)
    validate(scan(data, "x", None))
    parse(data, "x")


def read_histograms(data: bytes, folder: Path) -> None:
    """A histogram file as it is, and with its own hash made right, so that what lies behind that check is met too."""
    from quantkit.collect import store

    path = put(folder, "h.npz", data)
    with_hash_made_right(store, "_digest", lambda: store.load_histograms(path))


def with_hash_made_right(module: Any, digest: str, load: Callable[[], Any]) -> None:
    """Loads a file; where it is refused, once more with its own hash taken for right."""
    from quantkit.errors import QuantkitError

    try:
        load()
        return
    except QuantkitError:
        pass
    real = getattr(module, digest)
    try:
        setattr(module, digest, lambda header, _: header.get("sha256"))
        load()
    finally:
        setattr(module, digest, real)


def read_trt_histograms(data: bytes, _folder: Path) -> None:
    """A TensorRT histogram cache."""
    from quantkit.collect.store import load_trt_histogram_cache

    load_trt_histogram_cache(data)


def read_record(data: bytes, folder: Path) -> None:
    """A record, and the page that is made of it, without plotly.js in it: that is 4.8 MB."""
    from quantkit.report import html
    from quantkit.report.record import load_record

    html.plotly_js = str
    path = put(folder, "record.json", data)
    html.render(load_record(path), source="record.json")


def read_tensors(data: bytes, folder: Path) -> None:
    """A tensors.json beside a record, and the page that is made of both."""
    from quantkit.report import files, html
    from quantkit.report.record import load_record

    html.plotly_js = str
    record = load_record(put(folder, "record.json", record_seeds()[0]))
    rows = files._read_tensors(put(folder, "tensors.json", data))
    html.render(record, files.Beside(rows), source="record.json")


def read_safetensors(data: bytes, folder: Path) -> None:
    """A safetensors file."""
    from quantkit.network.checkpoint import as_float32, read_safetensors

    for name, array in read_safetensors(put(folder, "model.safetensors", data)).items():
        as_float32(name, array)


def read_shard_index(data: bytes, folder: Path) -> None:
    """An index of shards, one of which is there."""
    from quantkit.network.checkpoint import read_checkpoint

    put(folder, "model-1.safetensors", safetensors_seeds()[0])
    put(folder, "model.safetensors.index.json", data)
    read_checkpoint(folder)


def merge(folder: Path) -> None:
    """Reads the adapter in a folder and merges what it can."""
    from quantkit.network.lora import Adapter

    adapter = Adapter.from_dir(folder)
    for name in adapter.pairs:
        adapter.merged(name, np.ones((4, 6), np.float32))


def read_adapter_config(data: bytes, folder: Path) -> None:
    """The settings of an adapter."""
    put(folder, "adapter_model.safetensors", adapter_seeds()[0])
    put(folder, "adapter_config.json", data)
    merge(folder)


def read_adapter(data: bytes, folder: Path) -> None:
    """The weights of an adapter."""
    put(folder, "adapter_config.json", json.dumps(ADAPTER_CONFIG).encode())
    put(folder, "adapter_model.safetensors", data)
    merge(folder)


def read_model_config(data: bytes, folder: Path) -> None:
    """The settings of a model, whose weights are there."""
    from quantkit.network.model import load_model

    put(folder, "model.safetensors", model_seeds()[0])
    put(folder, "config.json", data)
    load_model(folder)


def read_model(data: bytes, folder: Path) -> None:
    """The weights of a model, whose settings are there."""
    from quantkit.network.model import load_model

    put(folder, "config.json", json.dumps(BERT_CONFIG).encode())
    put(folder, "model.safetensors", data)
    load_model(folder)


def read_onnx(data: bytes, folder: Path) -> None:
    """A model as ONNX: as a network, as any graph, and its activations and aliases."""
    from quantkit.errors import QuantkitError
    from quantkit.network.onnx_import import load_onnx, read_plain

    put(folder, "weights.bin", bytes(4 * 9 * 8))
    path = put(folder, "model.onnx", data)
    try:
        network = load_onnx(path)
        network.activations()
    except QuantkitError:
        pass
    read_plain(path)


def read_qdq(data: bytes, folder: Path) -> None:
    """A model with Q/DQ nodes."""
    from quantkit.network.qdq_reader import read_qdq

    read_qdq(put(folder, "model.onnx", data)).table()


def read_rows(data: bytes, folder: Path, ending: str) -> None:
    """A file of rows; as text for calibration where it is text."""
    from quantkit.data.glue import get_task, load_examples
    from quantkit.data.text import open_table, read_sentences

    path = put(folder, f"rows.{ending}", data)
    if ending == "txt":
        read_sentences(path)
        return
    table = open_table(path)
    for _ in table.select(table.columns):
        pass
    load_examples(get_task("sst2"), "eval", str(path))


def read_sidecar(data: bytes, folder: Path) -> None:
    """The sidecar of a plan."""
    from quantkit.backends.trt import plans
    from quantkit.backends.trt.capabilities import Gpu  # noqa: F401 - what check() is given

    put(folder, "a.json", data)
    info = plans.info_of(folder / "a.plan")
    if info is not None:
        _ = info.rules


def read_answers(data: bytes, folder: Path) -> None:
    """Kept logits, as they are and with their hash made right."""
    from quantkit.files import sha256_json
    from quantkit.pipeline.unfinished import _read_answers, kept_latencies

    path = put(folder, "a.json", data)
    _read_answers(path)
    kept_latencies(path)
    try:
        value = json.loads(data)
        value.pop("sha256", None)
        put(folder, "a.json", json.dumps({**value, "sha256": sha256_json(value)}).encode())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return
    _read_answers(path)
    kept_latencies(path)


def read_cell(data: bytes, folder: Path) -> None:
    """A finished cell of a comparison."""
    from quantkit.pipeline.cells import finished

    finished(put(folder, "cell.json", data))


def cell_seeds() -> list[bytes]:
    """A finished cell."""
    cell = json.loads(record_seeds()[1])["cells"][0]
    return [json.dumps({**cell, "predictions": [0, 1, 1]}).encode()]


def read_tokenizer(data: bytes, folder: Path) -> None:
    """A tokenizer.json, and what it makes of a sentence."""
    from quantkit.data.tokenize import encode, load_tokenizer

    put(folder, "tokenizer.json", data)
    encode(load_tokenizer(folder), [("good film",)], 16)


def tokenizer_seeds() -> list[bytes]:
    """A WordPiece tokenizer of nine words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return [tokenizer.to_str().encode()]


def refinement_seeds() -> list[bytes]:
    """A refinement with something of every part."""
    import tempfile

    from quantkit.network.precision import QuantizedWeight
    from quantkit.network.refinement import Refinement
    from quantkit.network.refinement_file import save_refinement
    from quantkit.tables.table import Entry

    vector = np.ones(3, np.float32)
    made = Refinement(
        constants={"gamma": vector},
        weights={"w": QuantizedWeight(np.ones((3, 2), np.int8), np.ones(2, np.float32))},
        biases={"b": vector},
        factors={"x": vector},
        summands={"x": vector},
        channels={"x": np.array([0, 1, 2, 1], np.int32)},
        entries={"x": Entry(np.float32(0.5), -1.0, 2.0, "refined", "least error")},
        steps=("shift", "smooth"),
        edges=({"tensor": "x", "shifted": True, "strength": 0.5, "low": -1.0, "high": 2.0},),
    )
    with tempfile.TemporaryDirectory() as folder:
        return [save_refinement(Path(folder) / "r.npz", made, 1.5).read_bytes()]


def read_refinement(data: bytes, folder: Path) -> None:
    """A refinement as it is, and with its own hash made right."""
    from quantkit.network import refinement_file

    path = put(folder, "r.npz", data)
    with_hash_made_right(refinement_file, "digest_of", lambda: refinement_file.load_refinement(path))


def checkpoint_seeds() -> list[bytes]:
    """The histograms of a pass that is under way."""
    import tempfile

    from quantkit.collect.store import save_histograms
    from quantkit.report.record import versions

    meta = {"batches": 2, "seconds": 1.5, "setup": {"threads": 1, "versions": versions()}}
    kept = {name: histogram for name, histogram in histograms().items() if name == "x"}
    with tempfile.TemporaryDirectory() as folder:
        return [save_histograms(Path(folder) / "h.npz", kept, meta).read_bytes()]


@cache
def pass_checkpoint() -> Any:
    """A checkpoint whose path is changed for every input: looking up all versions takes longer than reading it."""
    from quantkit.pipeline.unfinished import PassCheckpoint

    return PassCheckpoint("key", 1)


def read_checkpoint(data: bytes, folder: Path) -> None:
    """The checkpoint of a pass, as it is and with its hash made right."""
    from quantkit.collect import store
    from quantkit.collect.collector import Collector

    checkpoint = pass_checkpoint()
    checkpoint.path = put(folder, "h.npz", data)
    checkpoint.resume([Collector(["x"], threads=1)], 5)
    real = store._digest
    try:
        store._digest = lambda header, _: header.get("sha256")
        checkpoint.resume([Collector(["x"], threads=1)], 5)
    finally:
        store._digest = real


def latencies_seeds() -> list[bytes]:
    """Latencies that an interrupted run has kept."""
    import tempfile

    from quantkit.evaluate.latency import Latency
    from quantkit.pipeline.unfinished import keep_latencies

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.json"
        keep_latencies(path, [Latency(1.5, 2.0, 3.0, 100.0, (1.0, 1.5, 3.0))])
        return [path.read_bytes()]


QUESTION = {"judge": None, "rows": "00"}


def search_seeds() -> list[bytes]:
    """A kept result of a search."""
    from quantkit.files import sha256_json

    value = {"question": QUESTION, "answer": {"drop": 0.5, "rows": 10}}
    return [json.dumps({**value, "sha256": sha256_json(value)}).encode()]


def read_search(data: bytes, folder: Path) -> None:
    """A kept result of a search, as it is and with its hash made right."""
    from quantkit.files import sha256_json
    from quantkit.search.store import Store

    store = Store(folder, {})
    path = store.path(QUESTION)
    assert path is not None
    path.write_bytes(data)
    store.get(QUESTION)
    try:
        value = json.loads(data)
        value.pop("sha256", None)
        path.write_text(json.dumps({**value, "sha256": sha256_json(value)}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return
    store.get(QUESTION)


def plan_file_seeds() -> list[bytes]:
    """A plan file of `quantkit tune`."""
    from quantkit.network.plan_file import TYPE, VERSION, plan_to_json
    from quantkit.network.precision import PrecisionPlan

    plan = plan_to_json(PrecisionPlan(mode="gemm+mha", skip=frozenset({"layer0.ffn"})))
    value = {"_type": TYPE, "_version": VERSION, "plan": plan, "model_sha256": "a" * 64}
    return [json.dumps({**value, "reasons": {"layer0.ffn": "too dear"}, "found": {"goal": {}}}).encode()]


def read_plan_file(data: bytes, folder: Path) -> None:
    """A plan file, and what of it does nothing."""
    from quantkit.network.plan_file import load_plan

    load_plan(put(folder, "plan.json", data))


def json_seed(value: Any) -> Callable[[], list[bytes]]:
    """Seeds of one JSON value."""
    return lambda: [json.dumps(value).encode()]


def readers() -> dict[str, Reader]:
    """Name -> reader, all that there are."""
    from quantkit.tables.formats import FORMATS

    found = [
        Reader(f"table:{kind}", partial(read_table, kind=kind), partial(table_seeds, kind), damaged_json)
        for kind in FORMATS
    ]
    found += [
        Reader("histograms", read_histograms, histogram_seeds, damaged_members),
        Reader("tensorrt-histograms", read_trt_histograms, trt_histogram_seeds),
        Reader("record", read_record, record_seeds, damaged_json, slow=True),
        Reader("tensors", read_tensors, tensors_seeds, damaged_json, slow=True),
        Reader("safetensors", read_safetensors, safetensors_seeds, damaged_safetensors),
        Reader("shard-index", read_shard_index, shard_index_seeds, damaged_json),
        Reader("adapter-config", read_adapter_config, json_seed(ADAPTER_CONFIG), damaged_json),
        Reader("adapter", read_adapter, adapter_seeds, damaged_safetensors),
        Reader("model-config", read_model_config, json_seed(BERT_CONFIG), damaged_json),
        Reader("model", read_model, model_seeds, damaged_safetensors),
        Reader("onnx", read_onnx, onnx_seeds, damaged_onnx, slow=True),
        Reader("qdq", read_qdq, qdq_seeds, damaged_onnx),
        Reader("sidecar", read_sidecar, plan_seeds, damaged_json),
        Reader("answers", read_answers, answers_seeds, damaged_json),
        Reader("latencies", read_answers, latencies_seeds, damaged_json),
        Reader("checkpoint", read_checkpoint, checkpoint_seeds, damaged_members),
        Reader("refinement", read_refinement, refinement_seeds, damaged_members),
        Reader("search", read_search, search_seeds, damaged_json),
        Reader("plan-file", read_plan_file, plan_file_seeds, damaged_json),
        Reader("cell", read_cell, cell_seeds, damaged_json),
        Reader("tokenizer", read_tokenizer, tokenizer_seeds, damaged_json),
    ]
    for ending in ("tsv", "csv", "jsonl", "txt", "parquet"):
        if ending != "parquet" or importlib.util.find_spec("pyarrow"):
            mutate = damaged_json if ending == "jsonl" else None
            found.append(
                Reader(f"rows:{ending}", partial(read_rows, ending=ending), partial(rows_seeds, ending), mutate)
            )
    return {reader.name: reader for reader in found}
