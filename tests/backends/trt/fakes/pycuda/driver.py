"""pycuda.driver over host memory: addresses are made up, copies are real, leaks are counted."""

from __future__ import annotations

import os
import threading
import time

import numpy as np


class Error(Exception):
    """pycuda.driver.Error."""


class LogicError(Error):
    """pycuda.driver.LogicError."""


class MemoryError(Error):
    """pycuda.driver.MemoryError."""


blocks: dict[int, np.ndarray] = {}
"""Address -> bytes of everything that is allocated."""
pinned: list[int] = []
"""Sizes of the pinned allocations that are alive."""
TOTAL = 1 << 34
_next = [1 << 20]
_stacks = threading.local()


def _stack():
    if not hasattr(_stacks, "contexts"):
        _stacks.contexts = []
    return _stacks.contexts


def _need_context():
    if not _stack():
        raise LogicError("no currently active context?")


def init():
    if os.environ.get("FAKE_NO_GPU"):
        raise Error("cuInit failed: no CUDA-capable device is detected")


def get_driver_version():
    return 12040


def mem_get_info():
    _need_context()
    return TOTAL - sum(block.nbytes for block in blocks.values()), TOTAL


class Context:
    def __init__(self, device):
        self.device = device

    def push(self):
        _stack().append(self)

    @staticmethod
    def pop():
        if not _stack():
            raise LogicError("cannot pop context from empty stack")
        _stack().pop()


class Device:
    def __init__(self, ordinal):
        self.ordinal = ordinal

    @staticmethod
    def count():
        return 1

    def name(self):
        return os.environ.get("FAKE_GPU", "NVIDIA H100 80GB HBM3")

    def compute_capability(self):
        major, minor = os.environ.get("FAKE_CC", "9.0").split(".")
        return int(major), int(minor)

    def total_memory(self):
        return TOTAL

    def retain_primary_context(self):
        return Context(self)


class DeviceAllocation:
    def __init__(self, nbytes):
        _need_context()
        if nbytes > TOTAL:
            raise MemoryError("cuMemAlloc failed: out of memory")
        self.address = _next[0]
        _next[0] += -(-nbytes // 512) * 512 + 512
        blocks[self.address] = np.zeros(nbytes, np.uint8)

    def __int__(self):
        return self.address

    def free(self):
        _need_context()
        if self.address not in blocks:
            raise LogicError("device_allocation::free: invalid handle")
        del blocks[self.address]


mem_alloc = DeviceAllocation


class PagelockedHostAllocation:
    def __init__(self, nbytes):
        self.nbytes = nbytes
        pinned.append(nbytes)

    def free(self):
        _need_context()
        pinned.remove(self.nbytes)


class _Pinned(np.ndarray):
    """An array whose `base` is its allocation, as PyCUDA's are."""

    @property
    def base(self):
        return self.__dict__["allocation"]


def pagelocked_empty(shape, dtype):
    _need_context()
    array = np.zeros(shape, dtype).view(_Pinned)
    array.__dict__["allocation"] = PagelockedHostAllocation(array.nbytes)
    return array


def locate(address):
    """The bytes from `address` to the end of its block."""
    for start, block in blocks.items():
        if start <= address < start + block.nbytes:
            return block[address - start :]
    raise LogicError(f"invalid device address {address}")


def memcpy_htod(dest, src):
    _need_context()
    data = np.frombuffer(np.ascontiguousarray(src), np.uint8)
    locate(int(dest))[: data.nbytes] = data


def memcpy_htod_async(dest, src, stream=None):
    memcpy_htod(dest, src)


def memcpy_dtoh_async(dest, src, stream=None):
    _need_context()
    dest.reshape(-1).view(np.uint8)[...] = locate(int(src))[: dest.nbytes]


class Stream:
    def __init__(self):
        _need_context()
        self.handle = id(self)

    def synchronize(self):
        _need_context()


class Event:
    def __init__(self):
        _need_context()
        self.at = None

    def record(self, stream=None):
        self.at = time.perf_counter()

    def synchronize(self):
        return self

    def time_since(self, other):
        return (self.at - other.at) * 1e3
