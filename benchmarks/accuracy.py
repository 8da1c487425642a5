"""What each step of INT8 costs in accuracy, on every adapter, beside NNCF: the tables of docs/accuracy.md.

    python benchmarks/accuracy.py --shared ../shared --out accuracy.json
    python benchmarks/accuracy.py --shared ../shared --out accuracy.json --only "final;nncf" --tasks cola

Every variant is measured in two ways. Its noise is that of the logits on train sentences that calibrated nothing: the
squared distance from FP32's logits as a share of their variance, in thousandths; decisions rest on this figure. Its
metric is that of the task on all evaluation rows; nothing is decided by it. What was measured is written after each
variant and not measured again. NNCF needs an environment with the package; without it its row is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.backends.base import CheckedRunner, Engine
from quantkit.collect.moments import Moments
from quantkit.data.batches import TokenBatches
from quantkit.data.sampling import calibration_sample
from quantkit.data.tokenize import encode
from quantkit.evaluate.accuracy import EvalResult, evaluate_engine
from quantkit.evaluate.significance import compare
from quantkit.files import write_json
from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import insert_qdq
from quantkit.network.refine import STEPS, observed_tensors
from quantkit.pipeline.calibration import calibrated_table, collect
from quantkit.pipeline.collection import batches_of
from quantkit.pipeline.refinement import collect_moments, refine_with
from quantkit.pipeline.run import evaluation_batches, labels_of
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import context
from quantkit.report.terminal import SilentWatcher

TASKS = {"sst2": 64, "cola": 64, "mrpc": 128, "stsb": 128, "rte": 128, "qnli": 128, "rotten_tomatoes": 64}
HELD_OUT, HELD_OUT_SEED = 1024, 99
NNCF_SENTENCES = 304

# Steps in the order in which the table adds them: copies of channels pay with smoothing only.
ADDED = ("shift", "smooth", "split", "range", "round", "bias")
# Variant -> (method, symmetric, steps); in the order in which they are measured. Placement gemm, if none is named.
VARIANTS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "final": ("mse", True, STEPS),
    "plain minmax": ("minmax", False, ()),
    "final, gemm+mha": ("mse", True, STEPS),
    "final, gemm+residual+mha": ("mse", True, STEPS),
    "final, asymmetric": ("mse", False, STEPS),
    "plain minmax, symmetric": ("minmax", True, ()),
    "plain mse": ("mse", False, ()),
    "plain auto": ("auto", False, ()),
    **{f"minmax + {', '.join(ADDED[:n])}": ("minmax", True, ADDED[:n]) for n in range(1, len(ADDED))},
    **{f"final without {step}": ("minmax", True, tuple(s for s in STEPS if s != step)) for step in STEPS},
}
CORE = ("final", "final, gemm+mha", "plain minmax", "final, asymmetric")
Json = dict[str, Any]


class Bench:
    """One task: its model, its rows, FP32's answers.

    Args:
        task: name of the task.
        shared: folder with `glue` and `adapters`.
        threads: threads to compute with.
    """

    def __init__(self, task: str, shared: Path, threads: int) -> None:
        own = task == "rotten_tomatoes"
        where: Json = {} if own else {"data": str(shared / "glue"), "adapter": str(shared / "adapters" / task)}
        settings = Settings(task=task, seq_len=TASKS[task], threads=threads, **where)
        self.workspace = Workspace(settings, SilentWatcher())
        self.threads = threads
        self.graph = self.workspace.network.fixed(settings.batch, settings.seq_len)
        self.rows, self.labels = evaluation_batches(self.workspace), labels_of(self.workspace)
        self.held_out = self._held_out()
        self.noise_labels = np.zeros(self.held_out.examples, np.int64)
        self.reference = self._run(self.workspace.backend.compile(self.graph, "fp32", threads=threads), True)
        self._moments: dict[str, Moments] | None = None

    def _held_out(self) -> TokenBatches:
        """Train sentences that neither calibrate nor are evaluated."""
        workspace, settings = self.workspace, self.workspace.settings
        train, evaluation = (workspace._load(split, settings.data) for split in ("train", "eval"))
        sample = calibration_sample(
            train, HELD_OUT, seed=HELD_OUT_SEED, exclude=[evaluation, workspace.sample.examples]
        )
        encoded = encode(workspace.tokenizer, sample.examples.texts, settings.seq_len)
        return TokenBatches(encoded, settings.batch, settings.seq_len, fill="pad")

    @property
    def moments(self) -> dict[str, Moments]:
        """Moments over the calibration sample, collected once."""
        if self._moments is None:
            names = observed_tensors(self.workspace.network.index)
            self._moments = collect_moments(self.workspace, batches_of(self.workspace), names)
        return self._moments

    def engine(self, variant: str) -> Engine:
        """The INT8 engine of a variant."""
        method, symmetric, steps = VARIANTS[variant]
        settings = Settings(**{**vars(self.workspace.settings), "method": method})
        workspace = Workspace(settings, SilentWatcher())
        workspace.__dict__.update({k: v for k, v in vars(self.workspace).items() if k != "settings"})
        from quantkit.calibrate import make_calibrator

        table = calibrated_table(collect(workspace), make_calibrator(method))
        placement = variant.rpartition(", ")[2] if "gemm" in variant else "gemm"
        plan = PrecisionPlan(placement, symmetric=symmetric)
        refinement = refine_with(workspace, plan, steps, self.moments) if steps else None
        proto = insert_qdq(self.graph, table, plan, refinement).proto
        return workspace.backend.compile(proto, "int8", threads=self.threads)

    def measure(self, engine: CheckedRunner, metric: bool) -> Json:
        """Noise and, if wanted, metric of an engine, against FP32; the engine is closed."""
        held, evaluated = self._run(engine, metric)
        clean, noisy = self.reference[0].astype(np.float64), held.astype(np.float64)
        noise = 1000 * np.sum((clean - noisy) ** 2) / np.sum((clean - clean.mean(axis=0)) ** 2)
        found: Json = {"noise_per_mille": round(float(noise), 4)}
        if evaluated is not None and self.reference[1] is not None:
            name = self.workspace.task.metrics[0]
            value, base = evaluated.scores[name].value, self.reference[1].scores[name].value
            comparison = compare(self.reference[1], evaluated, self.labels, self.workspace.task)
            found |= {"metric": value, "drop_points": round(100 * (base - value), 4), "test": asdict(comparison)}
        return found

    def fp32(self) -> Json:
        """FP32's own row."""
        assert self.reference[1] is not None
        name = self.workspace.task.metrics[0]
        score = self.reference[1].scores[name]
        return {"metric_name": name, "metric": score.value, "stderr": score.stderr, "rows": len(self.labels)}

    def _run(self, engine: CheckedRunner, metric: bool) -> tuple[np.ndarray, EvalResult | None]:
        """Logits on the held-out sentences, and the result on the evaluation rows if wanted."""
        with engine:
            held = np.concatenate([np.array(engine.infer(self._inputs(engine, f))["logits"]) for f in self.held_out])
            result = evaluate_engine(engine, self.rows, self.labels, self.workspace.task) if metric else None
        return held[: self.held_out.examples], result

    @staticmethod
    def _inputs(engine: CheckedRunner, feed: Any) -> Json:
        return {spec.name: feed[spec.name] for spec in engine.inputs}


class NncfRunner(CheckedRunner):
    """NNCF's model, compiled as quantkit compiles its own."""

    def __init__(self, bench: Bench) -> None:
        import nncf

        from quantkit.backends.feeds import graph_inputs, rows_of, specs_of, symbols_of
        from quantkit.backends.openvino.engine import Feeder, compile_model, read_model

        logging.getLogger("nncf").setLevel(logging.ERROR)
        settings, graph = bench.workspace.settings, bench.graph
        train, evaluation = (bench.workspace._load(split, settings.data) for split in ("train", "eval"))
        sample = calibration_sample(train, NNCF_SENTENCES, seed=settings.seed, exclude=evaluation)
        encoded = encode(bench.workspace.tokenizer, sample.examples.texts, settings.seq_len)
        names = [info.name for info in graph_inputs(graph)]
        feeds = [
            {name: feed[name] for name in names}
            for feed in TokenBatches(encoded, settings.batch, settings.seq_len, fill="drop")
        ]
        model = nncf.quantize(
            read_model(graph.SerializeToString()),
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
        )
        inputs = graph_inputs(graph)
        super().__init__("nncf", specs_of(inputs), specs_of(graph.graph.output), symbols_of(inputs), rows_of(graph))
        self._feeder = Feeder(compile_model(model, "int8", bench.threads), self.inputs)

    def _run(self, feed: dict[str, Any]) -> dict[str, Any]:
        return {"logits": np.array(self._feeder.run(feed).get_output_tensor(0).data, np.float32)}

    def _release(self) -> None:
        self._feeder.close()


def variants(only: Sequence[str]) -> Iterator[str]:
    """The variants to measure, in order."""
    for name in (*VARIANTS, "nncf"):
        if not only or name in only:
            yield name


def tables(results: Json) -> str:
    """The tables in Markdown: metric and drop, then noise."""
    tasks = [task for task in TASKS if task in results["tasks"]]
    lines = ["| | " + " | ".join(tasks) + " | mean drop | worst |", "| --- |" + " --- |" * (len(tasks) + 2)]
    fp32 = {task: results["tasks"][task]["fp32"] for task in tasks}
    lines.append("| FP32 | " + " | ".join(f"{100 * fp32[task]['metric']:.2f}" for task in tasks) + " | | |")
    noise = ["", "| | " + " | ".join(tasks) + " | mean |", "| --- |" + " --- |" * (len(tasks) + 1)]
    for name in variants(()):
        rows = [results["tasks"][task].get(name) for task in tasks]
        if all(row and "metric" in row for row in rows):
            drops = [row["drop_points"] for row in rows]
            cells = " | ".join(f"{100 * row['metric']:.2f}" for row in rows)
            lines.append(f"| {name} | {cells} | {np.mean(drops):+.2f} | {max(drops):+.2f} |")
        if all(rows):
            values = [row["noise_per_mille"] for row in rows]
            noise.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in values) + f" | {np.mean(values):.2f} |")
    return "\n".join([*lines, *noise]) + "\n"


def main() -> None:
    """Measures what is not measured yet and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with glue and adapters")
    parser.add_argument("--out", type=Path, required=True, help="results; measured variants are not measured again")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--only", default="", help="variants with semicolons between them; empty: all")
    parser.add_argument(
        "--metrics", choices=("all", "core", "none"), default="all", help="core: the steps by their noise only"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("NNCF_CI", "1")  # NNCF sends no usage data then
    os.environ.setdefault("QUANTKIT_CACHE", tempfile.mkdtemp())
    results: Json = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"tasks": {}}
    only = [name.strip() for name in arguments.only.split(";") if name.strip()]
    for task in arguments.tasks.split(","):
        rows: Json = results["tasks"].setdefault(task, {})
        metric = {
            name: arguments.metrics == "all" or (arguments.metrics == "core" and name in (*CORE, "nncf"))
            for name in variants(only)
        }
        todo = [name for name in variants(only) if name not in rows or (metric[name] and "metric" not in rows[name])]
        if not todo:
            continue
        bench = Bench(task, arguments.shared, arguments.threads)
        rows["fp32"] = bench.fp32()
        for name in todo:
            try:
                engine = NncfRunner(bench) if name == "nncf" else bench.engine(name)
            except ImportError:
                print("NNCF is not installed; its row is left out.")
                continue
            rows[name] = bench.measure(engine, metric[name])
            results |= {"context": context({}), "finished": datetime.now(timezone.utc).isoformat(timespec="seconds")}
            write_json(arguments.out, results)
            print(task, name, {k: v for k, v in rows[name].items() if k != "test"}, flush=True)
    print(tables(results))


if __name__ == "__main__":
    main()
