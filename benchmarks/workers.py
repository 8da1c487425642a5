"""What workers gain: a collecting pass alone, by one worker and by two, in turn; and what a sentence costs the client.

    python benchmarks/workers.py                 # about five minutes on two quiet cores
    python benchmarks/workers.py --quick         # everything once, with few sentences; no figures

Every process computes with one thread, so that one worker and the process alone do the same work. Rounds are
interleaved, in changing order; figures are medians of the rounds' ratios. On a busy machine two workers take turns with
other processes: rounds during which those used more than a tenth of a core are left out where three are quiet, and the
CPU seconds of a sentence are told too, which others hardly change. All tables of a run must have the same bits, with
one thread and with two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from calibration_setup import busy_seconds, resident_mib, wait_for_quiet

from quantkit.calibrate import calibrate_histograms, make_calibrator
from quantkit.collect.store import unpack
from quantkit.data.batches import TokenBatches
from quantkit.data.tokenize import encode
from quantkit.distributed.cluster import Cluster, value_of
from quantkit.pipeline.collection import batches_of, collect_batches, kinds_of
from quantkit.pipeline.settings import Settings
from quantkit.pipeline.shards import collect_shard, cut
from quantkit.pipeline.sharing import collect_shared, network_keys
from quantkit.pipeline.tables import table_from
from quantkit.pipeline.unfinished import ShardCheckpoint
from quantkit.pipeline.workspace import Workspace
from quantkit.report.record import context
from quantkit.report.terminal import SilentWatcher

Json = dict[str, Any]
CORPUS, SHARD = 10_000_000, 64
QUIET, LEAST_QUIET = 0.1, 3
"""Cores that other processes may use in a quiet round, and how many such rounds are enough."""


def main() -> None:
    """Measures, writes the result, prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait for a quiet machine each time")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--show", type=Path, default=None, help="print the figures of a stored result, measure nothing")
    given = parser.parse_args()
    if given.show is not None:
        print("\n".join(summary(json.loads(given.show.read_text()))))
        return
    samples, rounds, texts = (48, 1, 2000) if given.quick else (given.samples, given.rounds, 100_000)
    with tempfile.TemporaryDirectory(prefix="quantkit-benchmark-") as folder:
        os.environ["QUANTKIT_CACHE"] = folder
        result = measure(samples, rounds, texts, 0 if given.quick else given.patience)
    name = f"workers-{datetime.now(timezone.utc):%Y-%m-%d}.json"
    out = given.out or (Path(tempfile.gettempdir()) if given.quick else Path(__file__).parent / "results") / name
    out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(summary(result)))


def measure(samples: int, rounds: int, texts: int, patience: float) -> Json:
    """The whole run."""
    settings = Settings(calib_samples=samples, order_free=True, threads=1, workers=1)
    workspace = Workspace(settings, SilentWatcher())
    batches = batches_of(workspace)
    result: Json = {"context": context(settings.as_json()), "sentences": batches.examples, "batches": len(batches)}
    with Cluster(workers=1) as one, Cluster(workers=2) as two:
        result["start_s"] = [timed(lambda c=c: c.client)[0] for c in (one, two)]

        def by(cluster: Cluster) -> Callable[[], Any]:
            return lambda: collect_shared(workspace, cluster, batches, fresh_checkpoint())

        ways = {"alone": lambda: collect_batches(workspace, batches), "1 worker": by(one), "2 workers": by(two)}
        first = {name: timed(way) for name, way in ways.items()}
        result["first_s"] = {name: seconds for name, (seconds, _) in first.items()}
        wide = Workspace(Settings(calib_samples=samples, order_free=True, threads=2), SilentWatcher())
        tables = [table_of(workspace, histograms) for _, histograms in first.values()]
        result["tables"] = [*tables, table_of(workspace, collect_batches(wide, batches))]
        result["rounds"] = [
            one_round(dict(list(ways.items())[:: 1 if number % 2 else -1]), patience) for number in range(rounds)
        ]
        result["shard"] = shard_costs(workspace, one, batches)
    result["client"] = client_costs(workspace, texts)
    return result


def fresh_checkpoint() -> ShardCheckpoint:
    """One that holds nothing of the pass before."""
    checkpoint = ShardCheckpoint("benchmark", 1)
    checkpoint.discard()
    return checkpoint


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    started = time.perf_counter()
    found = action()
    return time.perf_counter() - started, found


def one_round(ways: dict[str, Callable[[], Any]], patience: float) -> Json:
    """Seconds, own CPU seconds, and cores that others used, of each way, one after the other."""
    row: Json = {}
    for name, way in ways.items():
        wait_for_quiet(patience)
        busy, own = busy_seconds(), own_seconds()
        seconds, _ = timed(way)
        used = own_seconds() - own
        row[name] = {"s": seconds, "cpu_s": used, "others": (busy_seconds() - busy - used) / seconds}
    return row


def own_seconds() -> float:
    """CPU seconds of this process and all workers."""
    me = psutil.Process()
    return sum(t.user + t.system for t in (p.cpu_times() for p in (me, *me.children(recursive=True))))


def table_of(workspace: Workspace, histograms: Any) -> str:
    """SHA-256 of the entropy table."""
    calibrator = make_calibrator("entropy")
    kinds = kinds_of(workspace)
    thresholds = calibrate_histograms(histograms, calibrator, kinds=kinds.kinds, unmasked=kinds.unmasked)
    return hashlib.sha256(table_from(histograms, calibrator, thresholds).dumps().encode()).hexdigest()


def shard_costs(workspace: Workspace, cluster: Cluster, batches: TokenBatches) -> Json:
    """What a shard's result costs the client: bytes, and seconds to merge it."""
    spec = {"backend": workspace.backend.name, "threads": 1, "masked": sorted(kinds_of(workspace).masked)}
    shards = [(spec | {"ignore_padding": False}, next(cut(batches, 1)))] * 2
    packed = [value_of(part) for _, part in cluster.map(collect_shard, shards, network_keys(workspace, cluster))]
    one, other = (unpack(part) for part in packed)
    sizes = sum(packed[0][name].nbytes for name in ("counts", "numbers", "kinds"))
    repeats = [
        timed(lambda: {name: one[name].merge(part) for name, part in unpack(packed[1]).items()})[0] for _ in range(20)
    ]
    return {"bytes": sizes, "tensors": len(other), "merge_s": statistics.median(repeats)}


def client_costs(workspace: Workspace, texts: int) -> Json:
    """Seconds and memory a sentence that the client needs before anything is sent: tokens, batches, their hash."""
    settings = workspace.settings
    given = workspace.sample.examples.texts
    corpus = [given[i % len(given)] for i in range(texts)]
    before = resident_mib()
    encode_s, encoded = timed(lambda: encode(workspace.tokenizer, corpus, settings.seq_len))
    memory = resident_mib() - before
    batches = TokenBatches(encoded, settings.batch, settings.seq_len, fill="short")
    hash_s, _ = timed(lambda: batches.sha256)
    cut_s, sent = timed(lambda: sum(a.nbytes for shard in cut(batches, SHARD) for feed in shard for a in feed.values()))
    return {"texts": texts, "encode_s": encode_s, "hash_s": hash_s, "cut_s": cut_s, "mib": memory, "sent_bytes": sent}


def quiet_rounds(result: Json) -> list[Json]:
    """Rounds that other processes left alone; all of them where those are fewer than three."""
    rounds: list[Json] = result["rounds"]
    quiet = [row for row in rounds if max(way["others"] for way in row.values()) <= QUIET]
    return quiet if len(quiet) >= LEAST_QUIET else rounds


def ratios(result: Json, over: str, under: str) -> list[float]:
    """One way's time over another's, round by round."""
    return [row[over]["s"] / row[under]["s"] for row in quiet_rounds(result)]


def summary(result: Json) -> list[str]:
    """The figures in words, and the estimate."""
    median = statistics.median
    sentences, client, shard = result["sentences"], result["client"], result["shard"]
    rounds = quiet_rounds(result)
    others = [way["others"] for row in rounds for way in row.values()]
    cpu = {
        name: median(row[name]["cpu_s"] / sentences for row in rounds) for name in ("alone", "1 worker", "2 workers")
    }
    gain = ratios(result, "1 worker", "2 workers")
    alone = median(ratios(result, "1 worker", "alone"))
    lines = [
        f"{len(rounds)} of {len(result['rounds'])} rounds, in which others used {max(0, min(others)):.2f} to "
        f"{max(others):.2f} cores",
        "CPU milliseconds a sentence: " + ", ".join(f"{name} {1000 * value:.1f}" for name, value in cpu.items()),
        f"tables: {len(set(result['tables']))} different of {len(result['tables'])}",
        f"1 worker takes {alone:.2f} of the time of the process alone",
        f"2 workers are {median(gain):.2f} times as fast as 1 ({min(gain):.2f} to {max(gain):.2f})",
        f"{1 / cpu['1 worker']:.1f} sentences/s for a worker with a core of its own",
        f"start {result['start_s'][1]:.1f} s, first pass {result['first_s']['2 workers']:.1f} s with 2 workers",
        f"a shard's histograms: {shard['bytes'] / 1e6:.2f} MB for {shard['tensors']} tensors, "
        f"{1000 * shard['merge_s']:.1f} ms to merge",
    ]
    part = CORPUS / client["texts"]
    before = part * (client["encode_s"] + client["hash_s"])
    during = part * client["cut_s"] + CORPUS / settings_batch(result) / SHARD * shard["merge_s"]
    lines.append(
        f"client, {CORPUS:,} sentences: {before / 60:.0f} min before the pass, {during / 60:.0f} min during it, "
        f"{part * client['mib'] / 1024:.0f} GiB of tokens, {part * client['sent_bytes'] / 1e9:.1f} GB sent"
    )
    for workers in (1, 2, 16, 64, 256):
        hours = CORPUS * cpu["1 worker"] / workers / 3600
        lines.append(f"{workers:>4} workers: {max(hours, during / 3600) + before / 3600:.1f} h")
    return lines


def settings_batch(result: Json) -> int:
    """Sentences a batch."""
    return int(result["context"]["settings"]["batch"])


if __name__ == "__main__":
    main()
