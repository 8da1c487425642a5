"""Real clusters on this machine, started once for all tests; skipped where Dask is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

from quantkit.distributed.cluster import Cluster
from quantkit.pipeline import run as job
from quantkit.pipeline import unfinished
from quantkit.pipeline.settings import Settings


@pytest.fixture(scope="session")
def dask() -> None:
    """Skips where Dask is not installed."""
    for package in ("distributed", "cryptography"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra distributed)")
    import distributed  # noqa: F401  # before anything is set in Dask's configuration, to which it adds its own


@pytest.fixture(scope="session")
def cluster(dask, tmp_path_factory):
    """Two workers on a LocalCluster."""
    with Cluster(workers=2) as made:
        yield made


@pytest.fixture
def settings(tiny_bert_dir, tiny_glue_dir, tmp_path, monkeypatch):
    """Settings of a small job on the backend that computes nothing; a checkpoint after every batch."""
    monkeypatch.setattr(unfinished, "SECONDS", 0)
    monkeypatch.setattr(unfinished, "SHARE", 0)
    monkeypatch.setattr(job, "LATENCY_ROUNDS", 2)

    def made(**changes):
        files = {"model": str(tiny_bert_dir), "data": str(tiny_glue_dir), "task": "sst2"}
        small = {"calib_samples": 32, "batch": 2, "seq_len": 24, "precisions": ("fp32", "int8")}
        plain = {"backend": "fake", "threads": 1, "order_free": True, "refine": "none"}
        return Settings(**files | small | plain | changes)

    return made


@pytest.fixture
def processes(dask, tmp_path):
    """Starts a Dask scheduler or a worker as a process of its own; all are ended with the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        paths = [*sys.path, os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(command, env=environment, cwd=tmp_path, **quiet))
        return running[-1]

    start.running = running
    yield start
    for process in reversed(running):
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(processes, tmp_path) -> str:
    """The address of a scheduler on loopback."""
    file = tmp_path / "scheduler.json"
    processes("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if file.is_file() and (text := file.read_text()).strip():
            return str(json.loads(text)["address"])
        time.sleep(0.05)
    raise AssertionError("the scheduler did not start")


@pytest.fixture
def start_worker(processes, scheduler):
    """Starts a worker process of that scheduler, without a nanny that would start another one in its place."""

    def start() -> subprocess.Popen[bytes]:
        return processes("worker", scheduler, "--nthreads", "1", "--no-nanny", "--no-dashboard")

    return start
