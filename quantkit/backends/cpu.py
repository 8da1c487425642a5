"""What this process may use of the CPU: physical cores, name, instruction sets."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

_SYSFS = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores() -> int:
    """Physical cores among the CPUs that this process may run on, bounded by a container's CPU quota; at least 1.

    Two hardware threads of one core count once: matrix products gain nothing from the second. Where the system does
    not tell siblings, every CPU counts.
    """
    allowed = _allowed_cpus()
    cores = {_siblings(cpu) for cpu in allowed}
    count = len(cores) if cores else (os.cpu_count() or 1)
    quota = _quota()
    return max(1, min(count, quota) if quota else count)


def cpu_name() -> str:
    """The CPU's full name, else what the platform calls it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them ("avx512_vnni", "avx512_bf16", "amx_tile"); empty on other systems."""
    return frozenset(_cpuinfo().get("flags", "").split())


NO_VNNI = "This CPU has no VNNI instructions: INT8 gains less speed, and sums of two products may saturate at 16 bits."


def without_vnni() -> bool:
    """Whether this is an x86 CPU that lacks the instructions for INT8 dot products."""
    flags = cpu_flags()
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def _allowed_cpus() -> set[int]:
    """CPUs of this process's affinity mask; empty where the system has none."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set()


def _siblings(cpu: int) -> str:
    """A text that is the same for the hardware threads of one core; the CPU's own number when unknown."""
    try:
        return (_SYSFS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return f"cpu {cpu}"


def _quota() -> int | None:
    """CPUs that the control group's quota allows, rounded up; None without a quota."""
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()[:2]
    except (OSError, ValueError):
        return None
    if not (quota.isdigit() and period.isdigit() and int(period) > 0):
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def _cpuinfo() -> dict[str, str]:
    """Fields of the first CPU in /proc/cpuinfo; empty when there is no such file."""
    try:
        first = _CPUINFO.read_text().split("\n\n", maxsplit=1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", maxsplit=1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
