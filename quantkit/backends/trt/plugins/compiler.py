"""Builds the plugins with nvcc, and keeps what was built.

A built library stands in the cache folder under a key of everything that decides it: the sources, the GPU's compute
capability, and the TensorRT version of the headers. TensorRT's headers are not part of its Python package and not of
quantkit: they come from NVIDIA's public repository.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError
from quantkit.files import cache_dir, read_bytes, sha256_json, write_bytes

SOURCES = Path(__file__).parent / "cuda"
LIBRARY = "libquantkit_plugins.so"
HEADER, VERSION_HEADER = "NvInfer.h", "NvInferVersion.h"
INCLUDE_VARIABLE, LIBRARY_VARIABLE = "QUANTKIT_TENSORRT_INCLUDE", "QUANTKIT_PLUGINS"
LEAST_CAPABILITY, LEAST_TOOLKIT = (8, 0), (12, 0)
NEWEST_INTERFACE = 10
"""Last major version with IPluginV2DynamicExt; later ones have IPluginV3 alone."""
TIMEOUT_S = 900

_PLACES = (
    *("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/include", "/usr/local/include"),
    *("/usr/local/tensorrt/include", "/usr/local/TensorRT/include", "/opt/tensorrt/include"),
)
_NVCC = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
Capability = tuple[int, int]


@dataclass(frozen=True)
class Headers:
    """TensorRT's headers.

    Attributes:
        folder: holds NvInfer.h.
        version: that they say they are of.
    """

    folder: Path
    version: Version


@dataclass(frozen=True)
class Built:
    """A built library.

    Attributes:
        path: the shared object.
        fresh: whether it was built now.
        seconds: that building took; 0.0 when it was there.
        headers: version of TensorRT's headers.
        capability: compute capability that it runs on.
    """

    path: Path
    fresh: bool
    seconds: float
    headers: Version
    capability: Capability


def find_nvcc() -> Path:
    """The compiler.

    Raises:
        BackendError: there is none.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{named}/bin/nvcc"] if named else []
    candidates += [found] if (found := shutil.which("nvcc")) else []
    for candidate in (*candidates, *_NVCC):
        if Path(candidate).is_file():
            return Path(candidate)
    raise BackendError(
        "The plugins are CUDA C++, and there is no nvcc to build them.",
        "Install the CUDA toolkit (12.0 or later), or name its folder in CUDA_HOME.",
    )


def toolkit_version(nvcc: Path) -> tuple[int, int]:
    """Version of the CUDA toolkit, as nvcc says it.

    Raises:
        BackendError: nvcc does not run, or is older than 12.0.
    """
    try:
        text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(f"{nvcc} does not run: {error}.", "Check the CUDA toolkit.") from error
    match = re.search(r"release (\d+)\.(\d+)", text)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < LEAST_TOOLKIT:
        raise BackendError(
            f"{nvcc} is of CUDA {version[0]}.{version[1]}; the plugins need {LEAST_TOOLKIT[0]}.{LEAST_TOOLKIT[1]}.",
            "Install a newer CUDA toolkit, or name its folder in CUDA_HOME.",
        )
    return version


def find_headers(include: Path | None = None, library: Version | None = None) -> Headers:
    """TensorRT's headers.

    Args:
        include: the folder with NvInfer.h; looked for in the usual places when None.
        library: the TensorRT that is installed; headers of another release do not fit it.

    Raises:
        BackendError: there are none, or they are of another release.
    """
    wanted = f"release/{library.major}.{library.minor}" if library else "release/8.6"
    where = (
        f"They are in NVIDIA's public repository github.com/NVIDIA/TensorRT, folder include/ of the branch {wanted}; "
        f"name that folder with --include or {INCLUDE_VARIABLE}."
    )
    for folder in [include] if include else _header_places():
        if (folder / HEADER).is_file() and (folder / VERSION_HEADER).is_file():
            headers = Headers(folder, header_version(folder))
            break
    else:
        missing = f"{include} holds no {HEADER}" if include else f"TensorRT's headers ({HEADER}) are not here"
        raise BackendError(f"{missing}; its Python package does not bring them.", where)
    if headers.version.major > NEWEST_INTERFACE:
        raise BackendError(f"TensorRT {headers.version} has no IPluginV2DynamicExt, which the plugins are written for.")
    if library and headers.version[:2] != library[:2]:
        found = f"{headers.folder} holds headers of TensorRT {headers.version}"
        raise BackendError(f"{found}; {library} is installed.", where)
    return headers


def header_version(folder: Path) -> Version:
    """The version that NvInferVersion.h defines.

    Raises:
        BackendError: it defines none.
    """
    text = read_bytes(folder / VERSION_HEADER).decode(errors="replace")
    numbers = [
        re.search(rf"#define\s+(?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)?\s+(\d+)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    if not numbers[0] or not numbers[1]:
        raise BackendError(f"{folder / VERSION_HEADER} defines no version of TensorRT.", "Check the folder.")
    return Version(*(int(number[1]) if number else 0 for number in numbers))


def _header_places() -> Iterator[Path]:
    """Folders that TensorRT's headers may be in."""
    if named := os.environ.get(INCLUDE_VARIABLE):
        yield Path(named)
    spec = find_spec("tensorrt")
    if spec is not None and spec.origin:
        yield Path(spec.origin).parent / "include"
    yield from map(Path, _PLACES)


def architecture(capability: Capability) -> str:
    """The GPU in the compiler's words: Hopper's matrix instructions need its own target.

    Raises:
        BackendError: a GPU that the kernels do not run on.
    """
    if capability < LEAST_CAPABILITY:
        shown = ".".join(map(str, capability))
        raise BackendError(f"The plugins need compute capability 8.0; this GPU has {shown}.", "Use --network api.")
    return f"{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")


def sources() -> list[Path]:
    """The files that a library is made of."""
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".cu", ".cuh", ".cpp", ".h"))


def library_path(capability: Capability, version: Version) -> Path:
    """Where the library for a GPU and a TensorRT release is kept."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources()}
    key = sha256_json({"sources": files, "architecture": architecture(capability), "tensorrt": list(version[:2])})
    return cache_dir() / "plugins" / key[:32] / LIBRARY


def command(nvcc: Path, headers: Path, capability: Capability, out: Path) -> list[str]:
    """The call of nvcc: one shared object, CUDA's runtime inside, TensorRT's symbols looked up when it is loaded."""
    target = architecture(capability)
    units = [str(path) for path in sources() if path.suffix in (".cu", ".cpp")]
    return [
        *(str(nvcc), "-O3", "-std=c++17", "-shared", "-cudart", "static", "-Xcompiler"),
        *("-fPIC,-fvisibility=hidden,-Wno-deprecated-declarations", "-isystem", str(headers)),
        *(f"-gencode=arch=compute_{target},code=sm_{target}", "-o", str(out), *units, "-ldl"),
    ]


def build(capability: Capability, headers: Headers, *, force: bool = False) -> Built:
    """The library for a GPU, built unless it is there.

    Raises:
        BackendError: no nvcc, an unknown GPU, or the compiler's first error.
    """
    path = library_path(capability, headers.version)
    if path.is_file() and not force:
        return Built(path, False, 0.0, headers.version, capability)
    nvcc = find_nvcc()
    toolkit_version(nvcc)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
        out = Path(name) / LIBRARY
        try:
            done = subprocess.run(
                command(nvcc, headers.folder, capability, out), capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"nvcc did not finish: {error}.", "Check the CUDA toolkit.") from error
        if done.returncode or not out.is_file():
            lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
            first = lines[0].strip() if lines else f"exit code {done.returncode}"
            raise BackendError(f"nvcc cannot build the plugins: {first}", "Check toolkit and host compiler.")
        write_bytes(path, out.read_bytes())
    return Built(path, True, round(time.perf_counter() - started, 1), headers.version, capability)


def find_library(capability: Capability, version: Version) -> Path:
    """The built library for this GPU and TensorRT: what QUANTKIT_PLUGINS names, or the one in the cache folder.

    Raises:
        BackendError: it was not built yet.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        if not Path(named).is_file():
            raise BackendError(f"{LIBRARY_VARIABLE} names {named}, which is no file.", "Unset it, or check the path.")
        return Path(named)
    path = library_path(capability, version)
    if not path.is_file():
        shown = ".".join(map(str, capability))
        raise BackendError(
            f"The plugins are not built for compute capability {shown} and TensorRT {version.major}.{version.minor}.",
            "Run quantkit plugins build.",
        )
    return path
