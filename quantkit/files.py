"""Files: written whole or not at all, known by their SHA-256, and where caches live."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantkit.errors import StorageError

CHUNK_BYTES = 1 << 20
UNFINISHED = ".part"
OWNER = re.compile(r"\.([0-9a-f]{8})-(\d{1,9})\.[^.]*\.part$")
DEAD_S, FOREIGN_S = 600, 86_400
"""Seconds after which what a dead process of this machine, or a process of another one, left is deleted."""
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def unfinished_name(name: str) -> tuple[str, str]:
    """Prefix and ending of a temporary file or folder of this process that will become `name`, or vanish."""
    return f".{name}.{_host()}-{os.getpid()}.", UNFINISHED


@cache
def _host() -> str:
    """Eight digits for the machine and its present run: a process number means nothing anywhere else."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(f"{platform.node()} {boot}".encode()).hexdigest()[:8]


def sweep(folder: Path, now: float | None = None) -> list[Path]:
    """Deletes what processes that were killed have left half-written in a folder; returns it.

    It goes when the process that wrote it, on this machine, is gone and ten minutes have passed; of other machines, and
    of names from before, when a day has passed.
    """
    gone, moment = [], time.time() if now is None else now
    with suppress(OSError):
        for path in folder.glob(f".*{UNFINISHED}"):
            with suppress(OSError):
                mine = OWNER.search(path.name)
                here = mine is not None and mine[1] == _host()
                dead = here and not _alive(int(mine[2])) if mine else False
                age = moment - path.stat().st_mtime
                if (dead and age > DEAD_S) or (not here and age > FOREIGN_S):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    gone.append(path)
    return gone


def _alive(process: int) -> bool:
    """Whether a process of this number exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


@cache
def _sweep_once(folder: Path) -> None:
    """Sweeps a folder when this process first writes there."""
    sweep(folder)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """An open binary file that becomes `path` when the block ends well and vanishes when it does not.

    Raises:
        StorageError: the folder cannot be made, written to, or has no space left.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent.absolute())
        prefix, ending = unfinished_name(path.name)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=ending)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files only their owner can read; a result is an ordinary file.
        os.chmod(temporary, 0o666 & ~umask())  # noqa: PTH101
        os.replace(temporary, path)  # noqa: PTH105
        temporary = None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Free some space, or choose another place with --out.",
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108


def umask() -> int:
    """The process's umask; reading it means setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def check_writable(folder: Path) -> Path:
    """Makes the folder and writes a byte into it and away again; StorageError when that cannot be done."""
    probe = Path(folder) / f".{os.getpid()}.probe"
    with atomic_file(probe) as file:
        file.write(b"0")
    with suppress(OSError):
        probe.unlink()
    return Path(folder)


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes `data` to `path` atomically and returns the path."""
    with atomic_file(path) as file:
        file.write(data)
    return Path(path)


def npz_bytes(arrays: Mapping[str, Any], *, compressed: bool) -> bytes:
    """An .npz of arrays, each in NumPy's format 1.0; the same arrays make the same bytes.

    An interruption stays what it is: `zipfile`'s own `with` block would end in an error about an open handle instead.
    """
    buffer = io.BytesIO()
    archive = zipfile.ZipFile(buffer, "w")
    try:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            archive.writestr(info, member.getbuffer(), compresslevel=6)
        archive.close()
    except BaseException:
        archive.fp = None  # so that nothing tries to finish it when it is collected
        raise
    return buffer.getvalue()


def write_text(path: Path, text: str) -> Path:
    """Writes `text` as UTF-8 with LF line ends, atomically, and returns the path."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """Writes `value` as indented JSON, atomically, and returns the path; NaN and Inf are refused."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_bytes(path: Path, reader: Callable[[bytes], Any] = bytes) -> Any:
    """What `reader` makes of the bytes of `path`.

    Raises:
        StorageError: there is no such file, or it cannot be read.
    """
    try:
        return reader(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise StorageError(f"There is no file {path}.", "Check the path.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.") from error


def write_sealed(path: Path, value: dict[str, Any]) -> Path:
    """Writes a JSON object with a SHA-256 of itself under "sha256", atomically, and returns the path."""
    return write_json(path, {**value, "sha256": sha256_json(value)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The object that `write_sealed` wrote; None when there is none, or it is not what was written."""
    try:
        value = read_bytes(path, json.loads) if Path(path).is_file() else None
        if not isinstance(value, dict) or value.pop("sha256", None) != sha256_json(value):
            return None
    except (ValueError, RecursionError, StorageError):
        return None
    return value


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_array(digest: Any, array: np.ndarray[Any, Any]) -> None:
    """Feeds dtype, shape and little-endian bytes of an array into a hashlib digest."""
    contiguous = np.ascontiguousarray(array)
    digest.update(f"{contiguous.dtype.str}{contiguous.shape}".encode())
    digest.update(contiguous.data if contiguous.size else b"")


def cache_dir() -> Path:
    """Where tables, histograms and engines are kept: $QUANTKIT_CACHE, else ./caches in a checkout, else the user's.

    The folder is not made here.
    """
    if named := os.environ.get("QUANTKIT_CACHE"):
        return Path(named)
    local = Path("caches")
    if local.is_dir() and Path("quantkit").is_dir():
        return local
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantkit"
