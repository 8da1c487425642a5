"""Networks of our plugins against TensorRT's own FP16: plugins.py STEP DATA OUT.json [options].

DATA holds base/ (bert_base.py --table), minilm/ (all-MiniLM-L6-v2), adapters/sst2/, mse.json (a table of the two) and
sst2.npz (`prepare`: the dev sentences as tokens). Every step writes its own key of OUT.json as soon as it has it.

    tiles     every tile shape of every linear layer of BERT-base: milliseconds, TFLOP/s
    kernels   attention and LayerNorm alone, every form in turn: microseconds, GB/s
    accuracy  SST-2 with the plugins' FP16 and INT8 engines, padded and packed
    speed     BERT-base, 128 tokens: engines in turn, CUDA events, medians, with CUDA graphs and without
    packed    BERT-base on SST-2's own lengths: packed against padded to 128
    prepare   DATA/sst2.npz, from the reference material
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kernels import kernels

from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.options import BuildOptions, ShapeRange, Source
from quantkit.backends.trt.timing import TimingOptions, ratio, time_phases
from quantkit.network.model import load_model
from quantkit.tables.table import load_table

SEQ_LEN, EVAL_LEN, EVAL_BATCH = 128, 64, 32
GRAPHS = 6
"""Batches timed when each has a CUDA graph of its own."""
TIMING = TimingOptions(warmup_ms=60, iterations=40, duration_s=0.4)


class Results:
    """OUT.json, written after every figure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def put(self, key: str, value: Any) -> None:
        """Keeps a figure and prints it."""
        self.data[key] = value
        self.path.write_text(json.dumps(self.data, indent=1))
        print(key, json.dumps(value)[:1500], flush=True)

    def attempt(self, key: str, work: Callable[[], Any]) -> Any:
        """A step that may fail without ending the others."""
        try:
            self.put(key, work())
        except Exception as error:
            traceback.print_exc()
            self.put(key, {"error": f"{type(error).__name__}: {error}"[:600]})


def random_tokens(batch: int, seq_len: int) -> dict[str, np.ndarray]:
    """A batch without padding."""
    ids = np.random.default_rng(1).integers(1000, 30522, (batch, seq_len))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def tiles(results: Results, rows: tuple[int, ...]) -> None:
    """Step `tiles`."""
    from quantkit.backends.trt.cuda import device, driver
    from quantkit.backends.trt.plugins import library
    from quantkit.backends.trt.plugins.definition import Product
    from quantkit.backends.trt.plugins.library import HALF, INT8
    from quantkit.backends.trt.plugins.tuning import Tuner

    found: dict[str, Any] = {"tiles": library.kernels().tiles}
    with device().current():
        tuner = Tuner(library.kernels(), driver(), rows)
        for kind in (INT8, HALF):
            for name, outputs, inputs, out, gelu in (
                ("qkv", 2304, 768, kind, False),
                ("out", 768, 768, HALF, False),
                ("ffn1", 3072, 768, kind, True),
                ("ffn2", 768, 3072, HALF, False),
            ):
                product = Product(kind, out, outputs, inputs, gelu)
                tuner(product)
                for m, times in tuner.found[product].items():
                    best = int(np.argmin(times))
                    rate = 2e-9 * m * outputs * inputs / times[best]
                    found[f"{'int8' if kind == INT8 else 'fp16'} {name} {m}"] = {
                        "best": best,
                        "tflops": round(rate, 1),
                        "us": [round(1e3 * t, 2) for t in times],
                    }
    results.put("tiles", found)


LARGEST = 128
PROFILE = ShapeRange((1, SEQ_LEN), (32, SEQ_LEN), (LARGEST, SEQ_LEN))
PROFILE_PACKED = ShapeRange((1, 1), (32, 32), (LARGEST, SEQ_LEN))
WAYS = {
    "plugins int8": BuildOptions("int8", "plugins", "dynamic_range", (PROFILE,)),
    "plugins fp16": BuildOptions("fp16", "plugins", profiles=(PROFILE,)),
    "onnx fp16": BuildOptions("fp16"),
    "api fp16": BuildOptions("fp16", "api"),
    "api fp16 fused qkv": BuildOptions("fp16", "api", fuse_qkv=True),
}


def build(backend: TensorRTBackend, data: Path, way: str, batch: int) -> Any:
    """An engine of BERT-base: of plugins for all batches, of TensorRT's own layers for this one."""
    model, options, started = data / "base", WAYS[way], time.perf_counter()
    table = load_table(model / "table.json") if options.int8 else None
    if options.network == "onnx":
        engine = backend.build(load_model(model).fixed(batch, SEQ_LEN), options)
    elif options.profiles:
        engine = backend.build(Source("", str(model)), options, table)
    else:
        engine = backend.build(Source("", str(model), batch=batch, seq_len=SEQ_LEN), options)
    print("built", way, batch, round(time.perf_counter() - started, 1), flush=True)
    return engine


def speed(data: Path, results: Results, batches: list[int], ways: list[str], build_only: bool) -> None:
    """Step `speed`: with `build_only` engines are built and kept, for a later call to load."""
    for batch in batches:
        engines: dict[str, Any] = {}
        row: dict[str, Any] = {}
        for way in ways:
            try:
                engines[way] = build(TensorRTBackend(graphs=True, audit="plugins" in way), data, way, batch)
                if "plugins" in way:
                    engines[f"{way}, no graph"] = build(TensorRTBackend(audit=True), data, way, batch)
            except Exception as error:
                traceback.print_exc()
                row[way] = {"error": str(error)[:400]}
        feed = random_tokens(batch, SEQ_LEN)
        names = [] if build_only else list(engines)
        logits = {name: engines[name].infer(feed)["logits"] for name in names}
        timings = time_phases([engines[name] for name in names], [feed], TIMING) if names else []
        for name, timing in zip(names, timings, strict=True):
            phases = timing.as_json()
            row[name] = {
                "compute_ms": phases["compute_ms"]["median"],
                "host_ms": phases["host_ms"]["median"],
                "logits": [round(float(x), 4) for x in logits[name].ravel()[:4]],
                "refusal": engines[name].graph_refusal,
            }
            audit = engines[name].audit
            if audit and "graph" not in name and batch == batches[0]:
                totals: dict[str, float] = {}
                for kernel in audit.kernels:
                    totals[kernel.name[:70]] = round(totals.get(kernel.name[:70], 0.0) + (kernel.ms or 0.0), 4)
                row[name] |= {"gemms": audit.gemms, "verdict": list(audit.verdict), "layers": len(audit.layers)}
                row[name]["kernels"] = dict(sorted(totals.items(), key=lambda pair: -pair[1])[:9])
        if "plugins int8" in names:
            own = timings[names.index("plugins int8")]
            row["ratios"] = {name: round(ratio(own, timing), 3) for name, timing in zip(names, timings, strict=True)}
        for engine in engines.values():
            engine.close()
        if not build_only:
            results.put(f"speed {batch}", row)


def sst2(data: Path) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """The dev sentences in batches, and their labels."""
    with np.load(data / "sst2.npz") as file:
        ids, mask, labels = (file[name] for name in ("ids", "mask", "labels"))
    feeds = []
    for start in range(0, len(ids), EVAL_BATCH):
        part = slice(start, start + EVAL_BATCH)
        feeds.append({"input_ids": ids[part], "attention_mask": mask[part], "token_type_ids": np.zeros_like(ids[part])})
    return feeds, labels


def accuracy(data: Path, results: Results) -> None:
    """Step `accuracy`."""
    table, adapter = load_table(data / "mse.json"), str(data / "adapters" / "sst2")
    feeds, labels = sst2(data)
    profile = ShapeRange((1, 1), (EVAL_BATCH, EVAL_LEN), (EVAL_BATCH, EVAL_LEN))
    answers: dict[str, np.ndarray] = {}
    for packed in (False, True):
        for precision in ("fp16", "int8"):
            name = f"{precision} {'packed' if packed else 'padded'}"
            ranges = "dynamic_range" if precision == "int8" else ""
            options = BuildOptions(precision, "plugins", ranges, (profile,), packed=packed)
            given = table if precision == "int8" else None

            def work(name: str = name, options: BuildOptions = options, given: Any = given) -> Any:
                source = Source("", str(data / "minilm"), adapter)
                with TensorRTBackend().build(source, options, given) as engine:
                    logits = np.concatenate([engine.infer(feed)["logits"] for feed in feeds])
                    answers[name] = logits
                    return {
                        "accuracy": float((logits.argmax(1) == labels).mean()),
                        "rows": len(labels),
                        "int8_ops": engine.int8_ops,
                        "float_ops": engine.float_ops,
                        "compute": engine.compute,
                        "verdict": list(engine.notes),
                    }

            results.attempt(f"accuracy {name}", work)
    for precision in ("fp16", "int8"):
        pair = [answers.get(f"{precision} {how}") for how in ("padded", "packed")]
        if pair[0] is not None and pair[1] is not None:
            worst = float(np.abs(pair[0] - pair[1]).max())
            results.put(f"packed against padded, {precision}", {"largest difference of logits": worst})
    np.savez(results.path.with_suffix(".npz"), **{name.replace(" ", "_"): value for name, value in answers.items()})


def packed_speed(data: Path, results: Results) -> None:
    """Step `packed`: sentences of SST-2's lengths, in the order of the file, batches of 32 and 128."""
    table = load_table(data / "base" / "table.json")
    with np.load(data / "sst2.npz") as file:
        lengths = file["mask"].sum(axis=1)
    backend = TensorRTBackend(graphs=True, audit=False)
    options = BuildOptions("int8", "plugins", "dynamic_range", (PROFILE_PACKED,), packed=True)
    with backend.build(Source("", str(data / "base")), options, table) as packed:
        for batch in (32, 128):
            feeds = []
            for start in range(0, len(lengths) - batch + 1, batch)[:GRAPHS]:
                feed = random_tokens(batch, SEQ_LEN)
                mask = (np.arange(SEQ_LEN) < lengths[start : start + batch, None]).astype(np.int64)
                feeds.append(feed | {"attention_mask": mask, "input_ids": feed["input_ids"] * mask})

            def work(feeds: list[dict[str, np.ndarray]] = feeds, batch: int = batch) -> Any:
                with build(TensorRTBackend(graphs=True, audit=True), data, "plugins int8", batch) as padded:
                    engines = [padded, packed]
                    logits = [np.concatenate([e.infer(feed)["logits"] for feed in feeds]) for e in engines]
                    timings = time_phases(engines, feeds, TIMING)
                values = [t.as_json() for t in timings]
                return {
                    "padded_compute_ms": values[0]["compute_ms"]["median"],
                    "packed_compute_ms": values[1]["compute_ms"]["median"],
                    "sentences_per_s": [v["throughput_per_s"] for v in values],
                    "ratio_compute": round(ratio(timings[1], timings[0]), 3),
                    "ratio_host": round(ratio(timings[1], timings[0], "host"), 3),
                    "mean_length": float(np.mean([f["attention_mask"].sum(1).mean() for f in feeds])),
                    "difference": float(np.abs(logits[0] - logits[1]).max()),
                }

            results.attempt(f"packed {batch}", work)


def prepare(data: Path, shared: Path) -> None:
    """Step `prepare`: needs no GPU."""
    from quantkit.data.tokenize import encode
    from quantkit.pipeline.settings import Settings
    from quantkit.pipeline.workspace import Workspace
    from quantkit.report.terminal import SilentWatcher

    settings = Settings(model=str(data / "minilm"), task="sst2", data=str(shared / "glue"), seq_len=EVAL_LEN)
    workspace = Workspace(settings, SilentWatcher())
    encoded = encode(workspace.tokenizer, workspace.evaluation.texts, EVAL_LEN)
    ids = np.zeros((len(encoded), EVAL_LEN), np.int64)
    for row, own in zip(ids, encoded.input_ids, strict=True):
        row[: len(own)] = own
    mask = (np.arange(EVAL_LEN) < encoded.lengths[:, None]).astype(np.int64)
    np.savez_compressed(data / "sst2.npz", ids=ids, mask=mask, labels=np.array(workspace.evaluation.labels))


def main() -> None:
    """Does the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("tiles", "kernels", "accuracy", "speed", "packed", "prepare"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--build-only", action="store_true")
    given = parser.parse_args()
    results = Results(given.out)
    batches = [int(n) for n in given.batches.split(",")]
    if given.step == "tiles":
        tiles(results, tuple(n * SEQ_LEN for n in batches))
    elif given.step == "kernels":
        kernels(results)
    elif given.step == "accuracy":
        accuracy(given.data, results)
    elif given.step == "speed":
        speed(given.data, results, batches, given.ways.split(","), given.build_only)
    elif given.step == "packed":
        packed_speed(given.data, results)
    else:
        prepare(given.data, given.out)


if __name__ == "__main__":
    main()
