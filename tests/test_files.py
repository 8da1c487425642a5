"""Files are written whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest

from quantkit.errors import StorageError
from quantkit.files import (
    atomic_file,
    cache_dir,
    check_writable,
    read_bytes,
    read_sealed,
    sha256_file,
    write_json,
    write_sealed,
    write_text,
)


def names(folder):
    """Names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "old\n")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_text() == "old\n"
    assert names(path.parent) == ["file.txt"]


def test_ordinary_permissions(tmp_path):
    umask = os.umask(0o027)
    try:
        mode = write_text(tmp_path / "f", "x").stat().st_mode & 0o777
    finally:
        os.umask(umask)
    assert mode == 0o640


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / "file" / "x", "y")
    with pytest.raises(StorageError):
        check_writable(tmp_path / "file")


def test_check_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new")
    assert names(tmp_path / "new") == []


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert not names(tmp_path)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(StorageError, match="no file"):
        read_bytes(tmp_path / "nothing")
    with pytest.raises(StorageError):
        sha256_file(tmp_path / "nothing")


def test_where_the_cache_lives(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("QUANTKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / "b" / "quantkit"
    (tmp_path / "caches").mkdir()
    (tmp_path / "quantkit").mkdir()
    assert cache_dir().resolve() == tmp_path / "caches"


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(np.arange(3, dtype=np.uint8).tobytes())
    assert sha256_file(tmp_path / "x") == "ae4b3280e56e2faf83f414a6e3dabe9d5fbe18976544c05fed121accb85b53fc"


def test_a_sealed_object_comes_back_unless_it_was_touched(tmp_path):
    value = {"x": [1, 0.1], "y": "é"}
    path = write_sealed(tmp_path / "a.json", value)
    assert read_sealed(path) == value
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert read_sealed(path) is None
    path.write_text("[" * 100_000)
    assert read_sealed(path) is None
    assert read_sealed(tmp_path / "nothing") is None
