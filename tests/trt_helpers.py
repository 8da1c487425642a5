"""A TensorRT, a PyCUDA, an nvcc and a library of plugins that only stand in for the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

FAKES = Path(__file__).resolve().parent / "backends" / "trt" / "fakes"
NAMES = ("tensorrt", "pycuda", "fakes_version")

STUB = """
int quantkit_size(int which) { int sizes[] = {80, 80, 96, 120, 56}; return sizes[which]; }
int quantkit_register(void) { return 0; }
int quantkit_linear_tiles(void) { return 2; }
void quantkit_linear_tile(int tile, int* shape) { shape[0] = 64 << tile, shape[1] = 128, shape[2] = 0, shape[3] = 1; }
int quantkit_linear_row(int column) { return column; }
int quantkit_run_linear(const void* args, void* stream) { return 0; }
"""
"""C source of a library that registers nothing and computes nothing: the stand-in of TensorRT knows the plugins."""


def _forget() -> None:
    from quantkit.backends.trt import cuda, runtime

    for cached in (runtime.load, runtime.logger, cuda.driver, cuda.device):
        cached.cache_clear()
    for name in list(sys.modules):
        if name.partition(".")[0] in NAMES:
            del sys.modules[name]


@contextmanager
def fake_tensorrt() -> Iterator[None]:
    """TensorRT 8.6.0 on an H100, as far as names and protocols go: in this process and in those that it starts."""
    _forget()
    inherited = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join([str(FAKES), inherited] if inherited else [str(FAKES)])
    with mock.patch.object(sys, "path", [str(FAKES), *sys.path]), mock.patch.dict(os.environ, {"PYTHONPATH": paths}):
        yield
    _forget()


@contextmanager
def no_plugins_loaded() -> Iterator[None]:
    """No library of plugins that was loaded before, and afterwards none that was loaded meanwhile."""
    from quantkit.backends.trt.plugins import library

    cached = (library.kernels, library.register)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def stub_library(folder: Path) -> Path:
    """The library of `STUB`, compiled with gcc."""
    (folder / "stub.c").write_text(STUB)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c"], check=True)
    return folder / "stub.so"


def headers(folder: Path, major: int, minor: int, style: str = "NV_TENSORRT_{} {}") -> Path:
    """A folder with as much of TensorRT's headers as is looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "NvInfer.h").write_text("")
    parts = zip(("MAJOR", "MINOR", "PATCH"), (major, minor, 1), strict=True)
    (folder / "NvInferVersion.h").write_text("".join(f"#define {style.format(n, v)} //!< x\n" for n, v in parts))
    return folder


def nvcc(folder: Path, script: str) -> Path:
    """A stand-in for nvcc, where a CUDA_HOME of `folder` has it; it does what the shell script says."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'release 12.4, V12.4.1'; exit; fi\n{script}\n")
    path.chmod(0o755)
    return path
