"""Shards on real worker processes: every one is answered once, whatever happens to the workers."""

from __future__ import annotations

import hashlib
import os
import signal
from importlib import import_module

import numpy as np
import pytest
import shard_functions

from quantkit.distributed import cluster as clusters
from quantkit.distributed import worker
from quantkit.distributed.cluster import Cluster, in_order, value_of
from quantkit.errors import BackendError, CalibrationError, InputError, MissingDependencyError, QuantkitError
from quantkit.report.record import cpu_name


def test_workers_of_our_own_listen_on_loopback_only(cluster):
    psutil = pytest.importorskip("psutil")
    _ = cluster.client
    own = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 5  # the scheduler, and two of each worker
    assert set(listening) == {"127.0.0.1"}


def test_workers_of_our_own_take_no_orders_from_strangers(cluster):
    import distributed

    address = cluster.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    stranger = distributed.Security.temporary()
    for where, security in ((address.replace("tls", "tcp"), None), (address, stranger)):
        with pytest.raises(OSError):
            distributed.Client(where, security=security, timeout=0.5, set_as_default=False)


def test_every_shard_is_answered_with_its_number(cluster):
    shards = [(np.arange(3) + i,) for i in range(20)]
    found = dict(cluster.map(shard_functions.doubled, shards, {}))
    assert sorted(found) == list(range(20))
    assert all(np.array_equal(found[i], 2 * (np.arange(3) + i)) for i in range(20))
    assert [part[0] for part in in_order(cluster.map(shard_functions.doubled, shards, {}))] == [
        2 * i for i in range(20)
    ]
    assert list(cluster.map(shard_functions.doubled, [], {})) == []


def test_shards_are_read_as_workers_need_them(cluster):
    read = []

    def shards():
        for i in range(1000):
            read.append(i)
            yield (np.zeros(1), 0.01)

    answers = cluster.map(shard_functions.doubled, shards(), {})
    next(answers)
    answers.close()
    assert len(read) <= 2 * clusters.AHEAD + 1


def test_all_workers_work(cluster):
    found = {pid for _, pid in cluster.map(shard_functions.process, [(0.05,)] * 12, {})}
    assert len(found) == 2
    assert os.getpid() not in found
    assert cluster.as_json() == {"workers": 2, "threads": 1, "cpus": [cpu_name()]}


def test_contents_are_sent_and_sent_again_where_they_are_missing(cluster):
    keys = {"data": cluster.upload(b"12345")}
    assert list(in_order(cluster.map(shard_functions.doubled, [(1,), (2,)], keys))) == [7, 9]
    assert list(in_order(cluster.map(shard_functions.forgets, [(i,) for i in range(6)], keys))) == [5, 6, 7, 8, 9, 10]


def test_what_is_made_of_contents_is_made_once_a_worker(cluster):
    made = {(pid, thing) for _, (pid, thing, _) in cluster.map(shard_functions.made_once, [(i,) for i in range(8)], {})}
    assert len(made) == len({pid for pid, _ in made})


def test_errors_of_quantkit_come_back_as_they_are(cluster):
    found = dict(cluster.map(shard_functions.refuses, [(i,) for i in range(4)], {}))
    assert (found[0], found[3]) == (0, 3)
    assert isinstance(found[1], CalibrationError)
    assert (found[1].message, found[1].hint) == ("NaN in a tensor.", "Look for it.")
    assert isinstance(found[2], InputError)
    assert "Did you mean openvino" in str(found[2])
    with pytest.raises(CalibrationError):
        value_of(found[1])


def test_other_errors_end_the_job_with_one_sentence(cluster):
    with pytest.raises(BackendError, match=r"A worker failed: shard \d"):
        list(cluster.map(shard_functions.defect, [(i,) for i in range(3)], {}))


def test_a_worker_of_other_versions_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(clusters, "versions", lambda: {"quantkit": "99", "numpy": np.__version__})
    with pytest.raises(InputError, match=r"quantkit \S+ \(here 99\)"):
        value_of(next(cluster.map(shard_functions.doubled, [(1,)], {}))[1])


def test_killed_workers_cost_nothing_but_time(dask):
    killed = []
    few = import_module("dask").config.set({"distributed.scheduler.allowed-failures": 2})
    with few, Cluster(workers=2) as own:
        keys = {"data": own.upload(b"x" * 1000)}
        shards = [(np.full(5, i), 0.03) for i in range(40)]
        found = {}
        for number, value in own.map(shard_functions.doubled, shards, keys):
            assert number not in found
            found[number] = value
            if len(found) in (5, 15):
                pid = next(iter(own.client.run(os.getpid).values()))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        assert len(set(killed)) == 2
        assert [found[i][0] for i in range(40)] == [2 * i + 1000 for i in range(40)]
        with pytest.raises(BackendError, match="Several workers died"):
            list(own.map(shard_functions.dies, [(0,)], {}))


def test_nothing_at_the_address(dask, monkeypatch):
    monkeypatch.setattr(clusters, "CONNECT_S", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense://x", "127.0.0.1:notaport"):
        with pytest.raises(BackendError, match=f"No Dask scheduler answers at {address}"):
            Cluster(scheduler=address).check()


def test_certificates_that_are_not_there(dask):
    config = import_module("dask").config
    with pytest.raises(InputError, match=r"needs certificates: Dask's configuration names none"):
        Cluster(scheduler="tls://127.0.0.1:1").check()
    files = {"distributed.comm.tls.ca-file": "/none.pem", "distributed.comm.tls.client.cert": "/none.pem"}
    with config.set(files), pytest.raises(InputError, match=r"needs certificates: .*No such file") as caught:
        Cluster(scheduler="tls://127.0.0.1:1").check()
    assert "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT" in caught.value.hint


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"quantkit\[distributed\]"):
        Cluster(workers=2).check()
    with pytest.raises(QuantkitError):
        _ = Cluster(workers=2).client


def test_a_content_that_is_not_what_its_key_says_is_not_kept():
    try:
        assert not worker.store("0" * 64, b"data")
        keys = [f"{i}" for i in range(worker.MOST_CONTENTS + 3)]
        for key in keys:
            worker._contents[key] = b""
        key = hashlib.sha256(b"data").hexdigest()
        assert worker.store(key, b"data")
        assert len(worker._contents) == worker.MOST_CONTENTS
        assert worker.Held({"it": key})["it"] == b"data"
    finally:
        worker.forget()
    assert not worker._contents


def test_what_has_to_make_room_is_closed():
    closed = []

    class Engine:
        def __init__(self, name):
            self.name = name

        def close(self):
            closed.append(self.name)

    try:
        for name in "abcd":
            worker.made(name, lambda name=name: Engine(name))
        assert closed == ["a"]
        worker.made("b", lambda: Engine("again"))
        worker.made("e", lambda: Engine("e"))
        assert closed == ["a", "c"]
    finally:
        worker.forget()
    assert sorted(closed) == ["a", "b", "c", "d", "e"]
