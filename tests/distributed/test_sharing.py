"""Jobs whose work is shared: the bits are those of the same job alone, for any number of workers, killed ones too."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from watching import Watching, kill_a_worker

from quantkit.collect.histogram import Histogram
from quantkit.distributed import cluster as clusters
from quantkit.distributed import worker
from quantkit.distributed.cluster import Cluster
from quantkit.errors import BackendError
from quantkit.network.precision import PrecisionPlan
from quantkit.pipeline import run as job
from quantkit.pipeline import shards, unfinished
from quantkit.pipeline.calibration import calibrate, calibrated_table, collect, write_tables
from quantkit.pipeline.candidates import build_candidate
from quantkit.pipeline.run import run_settings
from quantkit.pipeline.search import prepare
from quantkit.pipeline.settings import Settings, answering_threads, threads_of
from quantkit.pipeline.shared_engines import SharedEngines
from quantkit.pipeline.sharing import cluster_for
from quantkit.pipeline.workspace import Workspace
from quantkit.report.terminal import SilentWatcher


@pytest.fixture
def fresh(monkeypatch, tmp_path_factory):
    """Gives the job that follows an empty cache, so that it finds nothing of the one before."""
    return lambda: monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path_factory.mktemp("fresh")))


def table_of(collected) -> str:
    """The text of the entropy table."""
    from quantkit.calibrate import make_calibrator

    return calibrated_table(collected, make_calibrator("entropy")).dumps()


def left() -> list[str]:
    """Names of what lies in the folder of unfinished work."""
    return sorted(path.name for path in unfinished.folder().glob("*")) if unfinished.folder().is_dir() else []


def test_tables_have_the_same_bits_for_7_2_and_1_workers_and_none(dask, settings, fresh):
    alone = collect(Workspace(settings(ignore_padding=True), SilentWatcher()))
    with Cluster(workers=7) as seven:
        for workers in (7, 2, 1):
            fresh()
            seven.client.cluster.scale(workers)
            while len(seven.client.nthreads()) != workers:
                time.sleep(0.02)
            watcher = Watching("collect")
            found = collect(Workspace(settings(ignore_padding=True, workers=workers), watcher, seven))
            assert not found.reused
            assert watcher.seen[-1] == 16
            assert found.histograms == alone.histograms
            assert table_of(found) == table_of(alone)
            assert left() == []


def test_a_killed_worker_changes_no_bit_of_a_calibration(cluster, settings, fresh):
    alone = collect(Workspace(settings(), SilentWatcher()))
    fresh()
    watcher = Watching("collect", lambda done: kill_a_worker(cluster) if done in (3, 9) else None)
    found = collect(Workspace(settings(workers=2), watcher, cluster))
    assert watcher.seen == list(range(1, 17))
    assert found.histograms == alone.histograms


def stop(done: int, at: int = 6) -> None:
    """Ctrl-C after some shards."""
    if done == at:
        raise KeyboardInterrupt


def test_an_interrupted_shared_pass_goes_on(cluster, settings, fresh):
    alone = collect(Workspace(settings(), SilentWatcher()))
    fresh()
    with pytest.raises(KeyboardInterrupt):
        collect(Workspace(settings(workers=2), Watching("collect", stop), cluster))
    (name,) = left()
    assert name.endswith("-shards.npz")
    watcher = Watching("collect")
    found = collect(Workspace(settings(workers=1), watcher, cluster))
    assert watcher.seen == list(range(6, 17))  # the sixth was told, and not yet kept
    assert found.histograms == alone.histograms
    assert found.seconds > 0
    assert left() == []


@pytest.mark.parametrize(
    "damage",
    [
        {"done": [0, 99]},
        {"done": [0, 0]},
        {"done": "0"},
        {"done": [True]},
        {"done": []},
        {"setup": {}},
        {"seconds": ""},
    ],
)
def test_a_checkpoint_of_shards_that_does_not_fit_is_left_alone(settings, damage):
    _ = settings  # a checkpoint after every shard
    merged = {"x": Histogram.empty("pow2").updated(np.ones(3, np.float32))}
    kept = unfinished.ShardCheckpoint("key", 1)
    kept.offer(merged, {0, 2}, 4, 16)
    assert unfinished.ShardCheckpoint("key", 1).resume(4, 16) == (merged, {0, 2})
    assert unfinished.ShardCheckpoint("key", 2).resume(4, 16) == ({}, set())
    assert unfinished.ShardCheckpoint("key", 1).resume(2, 16) == ({}, set())
    stored = unfinished.load_histograms(kept.path)
    unfinished.save_histograms(kept.path, stored.histograms, stored.meta | damage)
    assert unfinished.ShardCheckpoint("key", 1).resume(4, 16) == ({}, set())


def test_tensorrt_ranges_are_collected_here_and_it_is_said(cluster, settings, fresh):
    alone = collect(Workspace(settings(order_free=False), SilentWatcher()))
    fresh()
    watcher = Watching()
    found = collect(Workspace(settings(order_free=False, workers=2), watcher, cluster))
    assert found.histograms == alone.histograms
    assert any("--order-free" in line for line in watcher.said)


@pytest.fixture
def logits(monkeypatch):
    """Keeps the logits of every evaluation."""
    kept, real = [], job.evaluate_engine

    def evaluate(*args, **kwargs):
        result = real(*args, **kwargs)
        kept.append(result.logits.tobytes())
        return result

    monkeypatch.setattr(job, "evaluate_engine", evaluate)
    return kept


def test_a_run_has_the_same_answers_and_says_who_worked(cluster, settings, fresh, logits):
    alone = run_settings(settings(), SilentWatcher())
    fresh()

    def kill(done):
        if done == 7:
            kill_a_worker(cluster)

    shared = run_settings(settings(workers=2), Watching("evaluate int8", kill), cluster=cluster)
    assert logits[:2] == logits[2:]
    for one, other in zip(alone.engines, shared.engines, strict=True):
        assert (one["metrics"], one.get("against_fp32")) == (other["metrics"], other.get("against_fp32"))
        assert other["latency_ms"]  # timed, here
    assert shared.data["context"]["workers"]["workers"] == 2
    assert shared.data["context"]["workers"]["threads"] == 1
    assert "workers" not in alone.data["context"]
    assert left() == []


def test_an_interrupted_shared_evaluation_goes_on(cluster, settings, logits):
    given = settings(workers=2)
    with pytest.raises(KeyboardInterrupt):
        run_settings(given, Watching("evaluate int8", stop), latency=False, cluster=cluster)
    assert len(left()) == 2
    asked = []
    real = SharedEngines.answers

    def answers(self, plan, precision, batches, first=0):
        asked.append((precision, first))
        return real(self, plan, precision, batches, first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedEngines, "answers", answers)
        run_settings(given, SilentWatcher(), latency=False, cluster=cluster)
    assert asked == [("int8", 6)]
    logits.clear()
    run_settings(settings(), SilentWatcher(), latency=False)
    run_settings(given, SilentWatcher(), latency=False, cluster=cluster)
    assert logits[:2] == logits[2:]


def test_candidates_of_a_search_are_judged_the_same(cluster, settings, fresh):
    changes = {"tune_rows": 30, "precisions": ("int8",)}
    alone = prepare(settings(**changes), SilentWatcher())
    found = alone.sensitivity(PrecisionPlan())
    fresh()
    bench = prepare(settings(workers=2, **changes), SilentWatcher(), cluster)
    shared = bench.sensitivity(PrecisionPlan())
    assert [cost.alone for cost in shared.costs] == [cost.alone for cost in found.costs]
    assert shared.whole == found.whole
    assert not shared.whole.failed
    mixed = PrecisionPlan(skip=frozenset({"0"}))
    assert bench.judge.judge(mixed) == alone.judge.judge(mixed)


def test_real_engines_refined_and_not(cluster, settings, fresh, logits):
    pytest.importorskip("openvino")
    changes = {"backend": "openvino", "refine": "all", "precisions": ("fp32", "int8"), "limit": 12}
    alone = run_settings(settings(**changes), SilentWatcher(), latency=False)
    fresh()
    shared = run_settings(settings(workers=2, **changes), SilentWatcher(), latency=False, cluster=cluster)
    assert logits[:2] == logits[2:]
    assert logits[0] != logits[1]
    assert shared.engine("int8")["int8_ops"] == alone.engine("int8")["int8_ops"] > 0


def test_cells_of_a_comparison_are_the_same(cluster, settings, fresh, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from quantkit.pipeline import compare

    monkeypatch.setattr(job, "LATENCY_WARMUP", 0)
    given = settings(backend="onnxruntime", methods=("minmax", "percentile"), limit=12, out=tmp_path / "a")
    alone = compare.compare_all(given, ["sst2"], ["onnxruntime"], SilentWatcher())
    fresh()
    made = compare.Job(
        settings(backend="onnxruntime", workers=2, limit=12, out=tmp_path / "b"),
        ("sst2",), ("onnxruntime",), compare.calibrators_for(given), SilentWatcher(), cluster=cluster,
    )  # fmt: skip
    shared = compare.compare_here(made)
    for one, other in zip(alone.data["cells"], shared.data["cells"], strict=True):
        assert (one["status"], one["metrics"], one.get("change")) == ("ok", other["metrics"], other.get("change"))


def test_a_worker_builds_the_graph_that_the_client_builds(settings):
    workspace = Workspace(settings(refine="all"), SilentWatcher())
    table = calibrate(workspace).table
    local = Cluster(workers=1)  # not started: it only holds contents
    for plan in (PrecisionPlan(), PrecisionPlan(mode="gemm+residual", symmetric=True, skip=frozenset({"layer0"}))):
        _, keys = SharedEngines(workspace, local, table, None)._recipe(plan, "int8")
        assert set(keys) == {"network", "table", "refinement"}
        try:
            for key, data in local._data.items():
                assert worker.store(key, data)
            held = worker.Held(keys)
            network = shards.network_of(held)
            assert network.sha256 == workspace.network.sha256
            made = shards.quantized(held, network.proto, job.plan_to_json(plan))
        finally:
            worker.forget()
        here = build_candidate(workspace, workspace.network.proto, table, plan).proto
        assert made.SerializeToString(deterministic=True) == here.SerializeToString(deterministic=True)


def test_an_engine_that_cannot_be_built_there_is_a_failed_row(cluster, settings, monkeypatch):
    monkeypatch.setattr(cluster, "threads", 0)
    record = run_settings(settings(workers=2, precisions=("fp32",)), SilentWatcher(), latency=False, cluster=cluster)
    (row,) = record.engines
    assert row["status"] == "failed"
    assert "asked to use 0 threads" in row["reason"]


def test_processes_of_their_own_on_loopback(scheduler, start_worker, settings, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "FIRST_S", 60)
    write_tables(settings(out=tmp_path / "alone", methods=("minmax", "entropy")), SilentWatcher())
    fresh()
    workers = [start_worker(), start_worker()]

    def kill(done):
        if done == 4:
            workers[0].kill()

    watcher = Watching("collect", kill)
    given = settings(out=tmp_path / "shared", methods=("minmax", "entropy"), scheduler=scheduler)
    with cluster_for(given) as seen:
        seen.client.wait_for_workers(2, timeout=60)
    write_tables(given, watcher)
    assert watcher.seen[-1] == 16
    assert workers[0].wait(timeout=10) != 0
    assert workers[1].poll() is None
    for name in ("minmax.json", "entropy.json", "entropy.cache"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_scheduler_without_workers(scheduler, cli, tiny_bert_dir, monkeypatch):
    monkeypatch.setattr(clusters, "FIRST_S", 0.5)
    code, _, err = cli("calibrate", tiny_bert_dir, "--task", "sst2", "--order-free", "--scheduler", scheduler)
    assert code == 2
    assert "has no worker" in err
    assert f"dask worker {scheduler}" in err


def test_workers_that_go_away_end_the_job_with_one_sentence(scheduler, start_worker, settings, monkeypatch):
    monkeypatch.setattr(clusters, "FIRST_S", 60)
    monkeypatch.setattr(clusters, "PATIENCE_S", 1)
    monkeypatch.setattr(clusters, "TICK_S", 0.2)
    monkeypatch.setattr(clusters, "RESULT_S", 0.2)
    last = start_worker()

    def kill(done):
        if done == 4:
            last.kill()

    with pytest.raises(BackendError, match="There has been no worker") as caught:
        write_tables(settings(scheduler=scheduler), Watching("collect", kill))
    assert "goes on" in caught.value.hint
    assert left()  # what was done is kept


CONTROL_C = """
import os, signal, sys
from pathlib import Path
from quantkit.cli.app import main
from quantkit.distributed import cluster

# A shell starts what it runs in the background with SIGINT ignored, and what that starts inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
real, seen = cluster.Cluster.map, 0

def interrupted(self, *arguments):
    for number, answer in enumerate(real(self, *arguments)):
        if number == 4:
            os.killpg(os.getpid(), signal.SIGINT)
        yield answer

cluster.Cluster.map = interrupted
if __name__ == "__main__":
    main()
"""


def test_control_c_ends_the_workers_without_a_word_of_theirs(dask, tiny_bert_dir, tiny_glue_dir, tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(CONTROL_C)
    options = ("--task", "sst2", "--data", tiny_glue_dir, "--backend", "fake", "--batch", "2", "--seq-len", "24")
    command = (sys.executable, script, "calibrate", tiny_bert_dir, *options, "--order-free", "--workers", "2", "-q")
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,  # Ctrl-C reaches the whole group of a terminal's processes
    )
    assert done.returncode == 130
    assert done.stderr == "quantkit: Interrupted.\n  The same command goes on with what is already finished.\n"


def test_a_scheduler_that_goes_away_is_told(processes, scheduler, start_worker, settings, monkeypatch):
    monkeypatch.setattr(clusters, "FIRST_S", 60)
    monkeypatch.setattr(clusters, "TICK_S", 0.2)
    monkeypatch.setattr(clusters, "CONNECT_S", 3)  # as long the client tries to find it again
    start_worker()
    own = processes.running[0]

    def kill(done):
        if done == 4:
            own.kill()

    with pytest.raises(BackendError, match="The Dask scheduler is gone") as caught:
        write_tables(settings(scheduler=scheduler), Watching("collect", kill))
    assert "goes on" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calibrate", "--workers", 2), "Add --order-free"),
        (("calibrate", "--workers", 2, "--scheduler", "tcp://127.0.0.1:1", "--order-free"), "Give one of the two"),
        (("calibrate", "--workers", -1), "at least 0"),
        (("calibrate", "--study", "--workers", 2, "--order-free"), "A study is made by this process alone"),
        (("calibrate", "--from", "x.npz", "--workers", 2), "--from needs no --workers"),
        (("run", "--backend", "tensorrt", "--workers", 2), "shares no work"),
        (("tune", "--backend", "tensorrt", "--scheduler", "tcp://127.0.0.1:1"), "shares no work"),
    ],
)
def test_what_cannot_be_shared_is_refused(cli, tiny_bert_dir, tmp_path, arguments, says):
    command, *rest = arguments
    model = () if "--from" in arguments else (tiny_bert_dir, "--task", "sst2")
    code, out, err = cli(command, *model, *rest, "--out", tmp_path / "out", "--json")
    assert code == 2
    assert says in err
    assert set(json.loads(out)) == {"error", "hint"}


def test_the_scheduler_is_asked_before_anything_is_computed(dask, cli, tiny_bert_dir, tiny_glue_dir, monkeypatch):
    monkeypatch.setattr(clusters, "CONNECT_S", 0.3)
    common = (tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--scheduler", "tcp://127.0.0.1:1")
    for command in ("eval", "compare"):
        code, _, err = cli(command, *common)
        assert code == 2
        assert "No Dask scheduler answers at tcp://127.0.0.1:1" in err
        assert "collect" not in err


def test_threads_do_not_depend_on_the_number_of_workers():
    assert {answering_threads(Settings(workers=n)) for n in (1, 2, 7)} == {1}
    assert answering_threads(Settings(scheduler="tcp://10.0.0.1:8786")) == 1
    assert answering_threads(Settings(workers=2, threads=3)) == 3
    assert answering_threads(Settings()) == threads_of(Settings())


def test_shards_do_not_depend_on_the_number_of_workers():
    assert [shards.shard_size(n) for n in (1, 32, 64, 127, 128, 640, 625_000)] == [1, 1, 1, 1, 2, 10, 64]
    batches = [{"x": np.array([i])} for i in range(10)]
    assert [[int(feed["x"][0]) for feed in shard] for shard in shards.cut(batches, 4, 3)] == [[3, 4, 5, 6], [7, 8, 9]]
