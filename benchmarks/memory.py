"""Memory of collecting over many sentences: quantkit's, onnxruntime's, and that of the model alone.

    python benchmarks/memory.py                    # 10,000 sentences, about five minutes on two cores
    python benchmarks/memory.py --samples 500      # a try
    python benchmarks/memory.py --plot docs/img/calibration-memory.png      # needs matplotlib

One process a line of the plot: resident memory is read every 50 ms, and what it was at its highest is noted when 250,
500, 1,000, 2,500, 5,000 and 10,000 sentences are done. No sentence comes twice: the demo's 7,463 training sentences
come first, then the openings of the 25,000 IMDB reviews that the same package holds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from calibration_setup import (
    Json,
    context,
    own_peak_mib,
    read_feeds,
    reply_to,
    resident_mib,
    run_child,
    table,
    workspace_of,
    write_inputs,
)

HERE = Path(__file__).resolve().parent
MARKS = (250, 500, 1000, 2500, 5000, 10000)
LINES = ("quantkit", "model alone", "onnxruntime percentile")
TRAIN_ROWS = 7463


def main() -> None:
    """Runs every line in a child process, or is that child; prints the table, writes the JSON and the plot."""
    if sys.argv[1:2] == ["--job"]:
        child(json.loads(sys.argv[2]))
        return
    options = parse()
    settings = {"samples": min(options.samples, TRAIN_ROWS), "batch": 16, "seq_len": 64, "seed": 0, "adapter": ""}
    settings["threads"] = options.threads
    result = context() | {"settings": settings | {"samples": options.samples}, "lines": {}}
    result["memory_limit_gib"] = options.memory_limit
    with tempfile.TemporaryDirectory(prefix="quantkit-benchmark-") as name:
        more = review_openings(options.samples - TRAIN_ROWS) if options.samples > TRAIN_ROWS else []
        result["inputs"] = write_inputs(Path(name), settings, more)
        for line in LINES:
            print(f"{line} ...", file=sys.stderr, flush=True)
            job = {"line": line, "samples": options.samples, "settings": settings}
            result["lines"][line] = run_traced(job, Path(name), options)
    path = options.out / f"calibration-memory-{options.name or result['date'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n")
    text = "\n".join(summary(result))
    path.with_suffix(".md").write_text(text + "\n")
    print(text)
    if options.plot is not None:
        plot(result, options.plot)


def run_traced(job: Json, folder: Path, options: argparse.Namespace) -> Json:
    """A line's answer with its trace, which outlives a child that was ended for its memory."""
    trace = folder / "trace.txt"
    trace.unlink(missing_ok=True)
    answer = run_child(HERE / "memory.py", job | {"trace": str(trace)}, folder, options.memory_limit, options.timeout)
    rows = [line.split() for line in trace.read_text().splitlines()] if trace.is_file() else []
    answer["trace"] = thinned([(int(samples), float(mib)) for samples, mib in (row for row in rows if len(row) == 2)])
    return answer


def thinned(trace: list[tuple[int, float]], points: int = 400) -> list[tuple[int, float]]:
    """At most `points` rows: the highest memory within each stretch of sentences."""
    step = max(1, (trace[-1][0] if trace else 0) // points)
    highest: dict[int, float] = {}
    for samples, mib in trace:
        key = samples // step * step
        highest[key] = max(highest.get(key, 0.0), mib)
    return sorted(highest.items())


def child(job: Json) -> None:
    """One line: does the work over all batches while a thread watches the memory."""
    progress = Progress(Path(job["trace"]))
    with progress:
        {"quantkit": collecting, "model alone": model_alone, "onnxruntime percentile": onnxruntime}[job["line"]](
            job, progress
        )
    reply_to(job, {"seconds": progress.seconds, "marks": progress.marks, "done": progress.samples})


class Progress:
    """Counts sentences, writes memory against them to a file, and notes the peak at every mark."""

    def __init__(self, trace: Path) -> None:
        self.samples, self.seconds = 0, 0.0
        self.marks: dict[str, dict[str, float]] = {}
        self._trace, self._end = trace, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def batches(self, feeds: Iterable[Any], size: int) -> Iterator[Any]:
        """The batches; a batch counts as done when the next one is asked for."""
        started = time.perf_counter()
        for feed in feeds:
            yield feed
            self.samples += size
            for mark in MARKS:
                if self.samples >= mark and str(mark) not in self.marks:
                    self.marks[str(mark)] = {"now_mib": round(resident_mib(), 1), "peak_mib": round(own_peak_mib(), 1)}
        self.seconds = round(time.perf_counter() - started, 2)

    def _watch(self) -> None:
        with self._trace.open("w", buffering=1) as file:
            while not self._end.wait(0.05):
                file.write(f"{self.samples} {resident_mib():.1f}\n")

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def collecting(job: Json, progress: Progress) -> None:
    """quantkit: every activation of every batch into its histogram, then all five methods."""
    from quantkit.calibrate import calibrate_histograms, make_calibrator
    from quantkit.collect.collector import Collector

    settings = job["settings"]
    workspace = workspace_of(settings)
    network, threads = workspace.network, settings["threads"]
    feeds = read_feeds(Path(job["folder"]), job["samples"], settings["batch"])
    proto = network.fixed(settings["batch"], settings["seq_len"])
    with (
        Collector(network.activations(), aliases=network.aliases(), threads=threads) as collector,
        workspace.backend.tap(proto, collector.collected, threads=threads) as tap,
    ):
        for feed in progress.batches(feeds, settings["batch"]):
            collector.update(tap.infer(feed), feed["attention_mask"])
    for name in ("minmax", "entropy", "legacy", "percentile", "mse"):
        calibrate_histograms(collector.histograms(), make_calibrator(name))


def model_alone(job: Json, progress: Progress) -> None:
    """The same model in the same process, only run."""
    settings = job["settings"]
    workspace = workspace_of(settings)
    feeds = read_feeds(Path(job["folder"]), job["samples"], settings["batch"])
    proto = workspace.network.fixed(settings["batch"], settings["seq_len"])
    with workspace.backend.compile(proto, "fp32", threads=settings["threads"]) as engine:
        for feed in progress.batches(feeds, settings["batch"]):
            engine.infer(feed)


def onnxruntime(job: Json, progress: Progress) -> None:
    """The percentile calibrator of onnxruntime over every tensor, until the memory limit ends it."""
    from onnxruntime.quantization import CalibrationMethod, calibrate

    size = job["settings"]["batch"]
    batches = progress.batches(read_feeds(Path(job["folder"]), job["samples"], size), size)

    class Reader:
        """The batches, one at a time."""

        def get_next(self) -> Any:
            return next(batches, None)

    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = calibrate.create_calibrator(
            Path(job["folder"]) / "model.onnx",
            augmented_model_path=str(Path(job["folder"]) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def review_openings(count: int) -> list[str]:
    """The first `count` IMDB reviews of the package; the tokenizer keeps their first 64 tokens.

    demo_examples reads the other part of the same file and has compared the file with its hash.
    """
    import importlib.util

    from quantkit.data.demo import calib_data_dir, demo_examples

    demo_examples("train")
    entry = json.loads((calib_data_dir() / "manifest.json").read_text())["sentences"]
    spec = importlib.util.find_spec(entry["module"])
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    head = (folder / entry["file"]).read_bytes()[: entry["first_byte"]].decode()
    rows = csv.DictReader(io.StringIO(head, newline=""))
    texts = dict.fromkeys(row["text"] for row in rows if row["source"] == "imdb")  # some reviews stand there twice
    return list(texts)[:count]


def summary(result: Json) -> list[str]:
    """The result as Markdown: peak memory at every mark, and how flat it is."""
    rows = []
    for name, line in result["lines"].items():
        marks = line.get("marks", {})
        row: Json = {"line": name} | {mark: round(value["peak_mib"]) for mark, value in marks.items()}
        if line["status"] == "ok" and len(marks) > 1:
            peaks = [value["peak_mib"] for value in marks.values()]
            row["growth"] = f"{peaks[-1] - peaks[0]:+.1f} MiB ({100 * (peaks[-1] / peaks[0] - 1):+.1f} %)"
            row["seconds"] = line["seconds"]
        elif line["status"] != "ok":
            row["note"] = f"{line['reason']}, after {max((s for s, _ in line['trace']), default=0)} sentences"
        rows.append(row)
    titles = {str(mark): f"{mark:,}" for mark in MARKS if mark <= result["inputs"]["sentences"]}
    columns = {"line": "peak MiB after sentences"} | titles | {"growth": "growth", "seconds": "s", "note": "note"}
    machine, inputs = result["machine"], result["inputs"]
    return [
        f"{result['date'][:10]}, {machine['cpu']}, {result['settings']['threads']} threads, "
        f"{machine['memory_gib']} GiB; quantkit at {result['commit']}; {inputs['sentences']} sentences, "
        f"16 x 64 tokens a batch, {inputs['tensors']} tensors.",
        "",
        *table(rows, columns),
    ]


def plot(result: Json, path: Path) -> None:
    """Memory against sentences, both on logarithmic axes, as a small PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    colours = {"quantkit": "#0a6e5c", "model alone": "#8a8a8a", "onnxruntime percentile": "#c0392b"}
    places = {"quantkit": (4, 5), "model alone": (4, 5), "onnxruntime percentile": (8, -4)}
    for name, line in result["lines"].items():
        points = [(samples, mib) for samples, mib in line["trace"] if samples >= 16]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), color=colours[name], linewidth=1.8)
        ended = line["status"] == "memory"
        if ended:
            axes.plot(*points[-1], "x", color=colours[name])
        text = f"{name}, ended at {result['memory_limit_gib']:g} GiB" if ended else name
        where = points[-1] if ended else points[0]
        axes.annotate(text, where, places[name], textcoords="offset points", color=colours[name], fontsize=9)
    axes.set(xscale="log", yscale="log", xlabel="sentences (16 x 64 tokens a batch)", ylabel="resident memory, MiB")
    axes.set_ylim(200, 12000)
    axes.set_yticks([200, 500, 1000, 2000, 5000, 10000])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    """The command line."""
    from quantkit.report.record import available_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--memory-limit", type=float, default=8.0, help="GiB that a line may take (default 8)")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that a line may take")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="", help="ending of the result's name (default the date)")
    parser.add_argument("--plot", type=Path, help="a PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
