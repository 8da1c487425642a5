"""Physical cores, quotas and flags, on machines that are only files."""

from __future__ import annotations

import os

import pytest

from quantkit.backends import cpu


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that lays out CPUs, a quota and /proc/cpuinfo."""
    monkeypatch.setattr(cpu, "_SYSFS", tmp_path)
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu, "_CGROUP_QUOTA", tmp_path / "cpu.max")

    def build(siblings: dict[int, str], allowed: set[int], quota: str | None = None, info: str | None = None) -> None:
        for number, text in siblings.items():
            folder = tmp_path / f"cpu{number}" / "topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(text + "\n")
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota)
        if info is not None:
            (tmp_path / "cpuinfo").write_text(info)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)

    return build


PAIRS = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}


@pytest.mark.parametrize(
    ("siblings", "allowed", "quota", "cores"),
    [
        (PAIRS, {0, 1, 2, 3}, None, 2),
        (PAIRS, {0, 2}, None, 1),
        (PAIRS, {0, 1}, None, 2),
        ({}, {0, 1, 5}, None, 3),
        ({}, {0, 1, 2, 3}, "max 100000\n", 4),
        ({}, {0, 1, 2, 3}, "150000 100000\n", 2),
        ({}, {0, 1, 2, 3}, "20000 100000\n", 1),
        ({}, {0, 1, 2, 3}, "nonsense", 4),
    ],
)
def test_physical_cores(machine, siblings, allowed, quota, cores):
    machine(siblings, allowed, quota)
    assert cpu.physical_cores() == cores


def test_without_affinity_every_cpu_counts(machine, monkeypatch):
    machine({}, set())
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpu.physical_cores() == (os.cpu_count() or 1)


INFO = "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: avx2 {extra}\n\nprocessor\t: 1\nmodel name\t: Other\n"


@pytest.mark.parametrize(("extra", "lacking"), [("", True), ("avx512_vnni", False), ("avx_vnni", False)])
def test_name_and_flags(machine, extra, lacking):
    machine({}, {0}, info=INFO.format(extra=extra))
    assert cpu.cpu_name() == "Some CPU @ 2GHz"
    assert cpu.cpu_flags() == {"avx2", *extra.split()}
    assert cpu.without_vnni() is lacking


def test_another_system(machine):
    machine({}, {0})
    assert cpu.cpu_name()
    assert cpu.cpu_flags() == frozenset()
    assert not cpu.without_vnni()
