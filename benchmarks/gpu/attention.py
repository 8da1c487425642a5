"""Networks with TensorRT's attention plugin and linear layers, on a GPU: attention.py DATA OUT.json [options].

DATA as for plugins.py: base/ (bert_base.py), minilm/, adapters/sst2/, mse.json, sst2.npz. Every variant is built in a
process of its own, several at a time, in the order below, for 1 to 32 sentences of up to 128 tokens; what is not
started when the time is up is left out and said to be. Then every engine that was built: logits against the CPU's
FP32 ones (full and varying lengths), the kernels that ran, SST-2 with MiniLM, and times in turn with the networks of
our own plugins. OUT.json is written after every figure; OUT.json's folder gets TensorRT's messages of every build.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from plugins import Results, random_tokens, sst2

import quantkit
from quantkit.backends import get_backend
from quantkit.backends.trt.backend import TensorRTBackend
from quantkit.backends.trt.build import LOG
from quantkit.backends.trt.child import OUTPUT
from quantkit.backends.trt.options import BuildOptions, Job, Mix, Outcome, ShapeRange, Source
from quantkit.backends.trt.timing import TimingOptions, ratio, time_phases
from quantkit.network.model import load_model
from quantkit.tables.table import load_table

BATCH, SEQ_LEN = 32, 128
PROFILE = ShapeRange((1, 1), (BATCH, SEQ_LEN), (BATCH, SEQ_LEN))
TIMING = TimingOptions(warmup_ms=40, iterations=30, duration_s=0.3)
QUIET = ("VERBOSE",)

CONV = Mix(linear="convolution", attention="tensorrt", sums="float")
FULL = Mix(linear="fully_connected", attention="tensorrt")
VARIANTS: dict[str, tuple[str, Mix]] = {
    "conv": ("int8", CONV),
    "fc fp16": ("fp16", FULL),
    "conv, half sums": ("int8", replace(CONV, sums="half")),
    "own linear": ("int8", Mix(linear="own", attention="tensorrt")),
    "conv, free": ("int8", replace(CONV, constrained="no")),
    "conv, own gelu": ("int8", replace(CONV, gelu="own")),
    "interleaved": ("int8", replace(CONV, attention="interleaved")),
    "conv, their norms": ("int8", replace(CONV, norms="tensorrt", sums="int8")),
    "matmul fp16": ("fp16", replace(FULL, linear="matmul")),
    "conv, int8 sums": ("int8", replace(CONV, sums="int8")),
    "own linear fp16": ("fp16", Mix(linear="own", attention="tensorrt")),
    "conv fp16": ("fp16", replace(FULL, linear="convolution")),
    "fc": ("int8", replace(FULL, sums="float")),
    "own attention": ("int8", replace(CONV, attention="own")),
    "matmul": ("int8", replace(CONV, linear="matmul")),
    "fc, their norms fp16": ("fp16", replace(FULL, norms="tensorrt")),
    "own attention fp16": ("fp16", replace(FULL, attention="own")),
    "interleaved, free": ("int8", replace(CONV, attention="interleaved", constrained="no")),
}
PLUGINS = {"plugins": ("int8", Mix()), "plugins fp16": ("fp16", Mix())}


@dataclass(frozen=True)
class Watched(TensorRTBackend):
    """The backend, keeping what TensorRT said of every build.

    Args:
        logs: where to.
        label: of the build.
    """

    logs: str = ""
    label: str = ""

    def _run(self, job: Job, folder: Path) -> Outcome:
        try:
            return super()._run(replace(job, verbose=True), folder)
        finally:
            name = self.label.replace(" ", "_").replace(",", "")
            told = [p.read_text(errors="replace") for p in (folder / LOG, folder / OUTPUT) if p.is_file()]
            lines = "\n".join(told).splitlines()
            kept = [line for line in lines if not line.startswith(QUIET)]
            if (folder / LOG).is_file():
                end = [line for line in lines if line.startswith(QUIET)][-150:]
                kept += ["", "the last things it said:", *end]
            (Path(self.logs) / f"{name}.log").write_text("\n".join(kept)[-400_000:])


@dataclass(frozen=True)
class Model:
    """A model that variants are built of."""

    name: str
    folder: Path
    adapter: Path | None
    table: Path

    @property
    def source(self) -> Source:
        """What builds start from."""
        return Source("", str(self.folder), str(self.adapter or ""))


def build(model: Model, variant: str, logs: Path, until: float, level: int) -> Any:
    """An engine; from the plan cache when it was built before."""
    precision, mix = {**VARIANTS, **PLUGINS}[variant]
    ranges = "dynamic_range" if precision == "int8" else ""
    packed = mix != Mix()
    options = BuildOptions(precision, "plugins", ranges, (PROFILE,), level=level, packed=packed, mix=mix)
    label, left = f"{model.name} {variant}", max(until - time.time(), 1)
    backend = Watched(graphs=True, logs=str(logs), label=label, timeout_s=left)
    return backend.build(model.source, options, load_table(model.table) if ranges else None)


def lengths_feed(seed: int) -> dict[str, np.ndarray]:
    """A batch of sentences of 2 to 128 tokens."""
    feed = random_tokens(BATCH, SEQ_LEN)
    lengths = np.random.default_rng(seed).integers(2, SEQ_LEN + 1, BATCH)
    mask = (np.arange(SEQ_LEN) < lengths[:, None]).astype(np.int64)
    return feed | {"attention_mask": mask, "input_ids": feed["input_ids"] * mask}


def compared(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How far logits are from the CPU's."""
    return {
        "largest_difference": round(float(np.abs(found - exact).max()), 4),
        "largest_logit": round(float(np.abs(exact).max()), 4),
        "relative": round(float(np.abs(found - exact).max() / np.abs(exact).max()), 4),
    }


def looked_at(engine: Any) -> dict[str, Any]:
    """What an engine is made of."""
    audit, found = engine.audit, {"says": list(engine.notes), "build_s": engine.details.get("build_s")}
    if audit is None:
        return found
    totals: dict[str, list[float]] = {}
    for kernel in audit.kernels:
        entry = totals.setdefault(kernel.name[:110], [0, 0.0])
        entry[0] += 1
        entry[1] = round(entry[1] + (kernel.ms or 0.0), 4)
    largest = dict(sorted(totals.items(), key=lambda pair: -pair[1][1])[:14])
    slowest = sorted((layer for layer in audit.layers if layer.ms), key=lambda layer: -(layer.ms or 0))[:10]
    return found | {
        **{"gemms": audit.gemms, "reformats": audit.reformats, "fused_attention": audit.fused_attention},
        **{"layers": len(audit.layers), "regions": list(audit.regions)[:3], "kernels": largest},
        "slowest": [[layer.name[:90], layer.kind, layer.precision, layer.ms] for layer in slowest],
    }


def main() -> None:
    """Builds, compares, times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=105)
    parser.add_argument("--level", type=int, default=2)
    parser.add_argument("--variants", default="", help="names with ';'; all when empty")
    parser.add_argument("--models", default="base,minilm")
    given = parser.parse_args()
    started, results, logs = time.time(), Results(given.out), given.out.parent / "attention-logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    data = given.data
    models = {
        "base": Model("base", data / "base", None, given.out.parent / "attention-base-table.json"),
        "minilm": Model("minilm", data / "minilm", data / "adapters" / "sst2", data / "mse.json"),
    }
    wanted = given.variants.split(";") if given.variants else list(VARIANTS)
    small = [name for name in ("conv", "fc fp16", "own linear", "own attention") if name in wanted]
    jobs = [("base", name) for name in (*wanted[:4], *PLUGINS, *wanted[4:8])]
    jobs += [("minilm", name) for name in (*small[:2], *PLUGINS)]
    jobs += [("base", name) for name in wanted[8:]] + [("minilm", name) for name in small[2:]]
    jobs = [job for job in jobs if job[0] in given.models.split(",")]
    if "base" in given.models:
        write_table(models["base"].folder, models["base"].table)
        results.put("table_s", round(time.time() - started, 1))
    last_start, last_end = started + 0.45 * given.seconds, started + 0.68 * given.seconds
    built: dict[tuple[str, str], Any] = {}

    def one(job: tuple[str, str]) -> None:
        key = f"{job[0]}: {job[1]}"
        if time.time() > last_start:
            results.put(f"build {key}", {"left out": "the time was up"})
            return
        begun = time.time()
        try:
            engine = build(models[job[0]], job[1], logs, last_end, given.level)
            if broken := [note for note in engine.notes if "could not be inspected" in note]:
                raise RuntimeError(broken[0])  # one that crashes its own process would end this one's device too
            built[job] = engine
            results.put(f"build {key}", {"seconds": round(time.time() - begun, 1)})
        except Exception as error:
            traceback.print_exc()
            hint = getattr(error, "hint", "")
            told = {"error": f"{type(error).__name__}: {error}"[:3000], "hint": hint}
            results.put(f"build {key}", told | {"seconds": round(time.time() - begun, 1)})

    feeds = {"full": random_tokens(BATCH, SEQ_LEN), "varying": lengths_feed(3)}
    with ThreadPoolExecutor(int(os.environ.get("AT_ONCE", "4"))) as pool:
        waiting = [pool.submit(one, job) for job in jobs]
        exact = {name: cpu_logits(model, feeds) for name, model in models.items() if name in given.models.split(",")}
        for job in waiting:
            job.result()
    results.put("building_s", round(time.time() - started, 1))
    for name, model in models.items():
        engines = {
            variant: built[owner, variant] for owner, variant in jobs if owner == name and (owner, variant) in built
        }
        if engines:
            study(model, engines, feeds, exact[name], results, data)
    results.put("seconds", round(time.time() - started, 1))


def write_table(model: Path, out: Path) -> None:
    """Min-max ranges of every tensor, from random sentences of all lengths: short ones have large probabilities."""
    network = load_model(model)
    names = network.activations()
    feed = {name: array[:6] for name, array in lengths_feed(5).items()}
    feed["attention_mask"][:2] = np.arange(SEQ_LEN) < np.array([[SEQ_LEN], [3]])
    with get_backend("onnxruntime").tap(network.fixed(6, SEQ_LEN), names) as tap:
        batch = {name: array.copy() for name, array in tap.infer(feed).items()}
    quantkit.calibrate_arrays([batch], method="minmax").save(out)


def cpu_logits(model: Model, feeds: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """FP32 logits from onnxruntime."""
    network = load_model(model.folder, model.adapter)
    with get_backend("onnxruntime").compile(network.fixed(BATCH, SEQ_LEN), "fp32") as engine:
        return {name: engine.infer(feed)["logits"] for name, feed in feeds.items()}


def study(
    model: Model,
    engines: dict[str, Any],
    feeds: dict[str, dict[str, np.ndarray]],
    exact: dict[str, np.ndarray],
    results: Results,
    data: Path,
) -> None:
    """Logits, kernels and times of a model's engines."""
    sound: dict[str, Any] = {}
    for variant, engine in engines.items():

        def look(variant: str = variant, engine: Any = engine) -> Any:
            found = {name: compared(engine.infer(feed)["logits"], exact[name]) for name, feed in feeds.items()}
            sound[variant] = engine
            if model.adapter:
                batches, labels = sst2(data)
                logits = np.concatenate([engine.infer(batch)["logits"] for batch in batches])
                found["sst2_accuracy"] = round(float((logits.argmax(1) == labels).mean()), 4)
            return found | looked_at(engine)

        results.attempt(f"{model.name}: {variant}", look)
    for name, feed in feeds.items():

        def timed(feed: dict[str, np.ndarray] = feed) -> Any:
            names = list(sound)
            timings = time_phases([sound[variant] for variant in names], [feed], TIMING)
            row = {}
            for variant, timing in zip(names, timings, strict=True):
                reference = "plugins fp16" if variant.endswith("fp16") else "plugins"
                phases = timing.as_json()
                row[variant] = {"compute_ms": phases["compute_ms"]["median"], "host_ms": phases["host_ms"]["median"]}
                if reference in names:
                    row[variant]["to_plugins"] = round(ratio(timing, timings[names.index(reference)]), 3)
            return row

        if sound:
            results.attempt(f"times {model.name}, {name}", timed)
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    try:
        main()
    finally:
        print(json.dumps({"done": True}), flush=True)
