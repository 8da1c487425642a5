"""Kernel records of CUPTI, without CUPTI: a small library plays its part where there is a compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from quantkit.backends.trt import tracing
from quantkit.errors import BackendError

STAND_IN = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef void (*requested_t)(uint8_t **, size_t *, size_t *);
typedef void (*completed_t)(void *, uint32_t, uint8_t *, size_t, size_t);
static requested_t requested; static completed_t completed; static int on;
#define RECORD 160
static void put(uint8_t *at, uint32_t kind, uint64_t start, uint64_t end, const char *name) {
    memset(at, 0, RECORD);
    memcpy(at, &kind, 4); memcpy(at + 16, &start, 8); memcpy(at + 24, &end, 8); memcpy(at + 104, &name, 8);
}
int cuptiActivityRegisterCallbacks(requested_t r, completed_t c) { requested = r; completed = c; return REGISTER; }
int cuptiActivityEnable(int kind) { on = kind == 10; return 0; }
int cuptiActivityDisable(int kind) { on = 0; return 0; }
int cuptiActivityFlushAll(uint32_t flag) {
    uint8_t *buffer; size_t size, most;
    requested(&buffer, &size, &most);
    put(buffer, 10, 5000, 9000, "second_gemm");
    put(buffer + RECORD, 1, 0, 0, "memcpy");
    put(buffer + 2 * RECORD, 10, 1000, 2500, "first_mha");
    completed(0, 0, buffer, size, on ? 3 * RECORD : 0);
    return 0;
}
int cuptiActivityGetNextRecord(uint8_t *buffer, size_t valid, uint8_t **record) {
    uint8_t *next = *record ? *record + RECORD : buffer;
    if (next >= buffer + valid) return 12;
    *record = next;
    return 0;
}
"""


@pytest.fixture
def cupti(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the stand-in and names it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in")

    def make(register: int = 0) -> None:
        source, library = tmp_path / "cupti.c", tmp_path / f"libcupti{register}.so"
        source.write_text(STAND_IN)
        arguments = [compiler, "-shared", "-fPIC", f"-DREGISTER={register}", "-o", str(library), str(source)]
        subprocess.run(arguments, check=True)
        monkeypatch.setenv("QUANTKIT_CUPTI", str(library))
        tracing._library.cache_clear()

    yield make
    tracing._library.cache_clear()


def test_kernels_come_in_the_order_of_their_start(cupti) -> None:
    cupti()
    done: list[int] = []
    kernels = tracing.trace(lambda: done.append(1))
    assert done == [1]
    assert kernels == [tracing.Kernel("first_mha", 0.0015), tracing.Kernel("second_gemm", 0.004)]


def test_an_error_of_the_work_comes_through(cupti) -> None:
    cupti()

    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        tracing.trace(work)


def test_a_refusal_is_a_sentence(cupti) -> None:
    cupti(register=17)
    with pytest.raises(BackendError, match=r"CUPTI refuses to register callbacks \(error 17\)"):
        tracing.trace(lambda: None)


def test_without_cupti_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CUPTI", "/nowhere/libcupti.so")
    tracing._library.cache_clear()
    with pytest.raises(BackendError, match="CUPTI is not installed"):
        tracing.trace(lambda: None)
    tracing._library.cache_clear()


def test_records_of_other_kinds_are_left_out() -> None:
    record = ctypes.create_string_buffer(160)
    ctypes.c_uint32.from_buffer(record).value = 2
    assert tracing._read(ctypes.addressof(record)) is None
