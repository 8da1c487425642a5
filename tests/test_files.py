"""Files are written whole or not at all."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from quantkit import files
from quantkit.errors import StorageError
from quantkit.files import (
    atomic_file,
    cache_dir,
    check_writable,
    npz_bytes,
    read_bytes,
    read_sealed,
    sha256_file,
    sweep,
    unfinished_name,
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


@pytest.fixture
def dead():
    """The number of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def left_by(folder, process, host, *, is_folder=False):
    """A temporary file, or folder, as a process on a machine would have left it."""
    path = folder / f".histograms.npz.{host}-{process}.abc_12.part"
    if is_folder:
        path.mkdir()
        (path / "0.npy").write_bytes(b"half")
    else:
        path.write_bytes(b"half")
    return path


def test_what_killed_processes_left_is_swept(tmp_path, dead):
    here, now = files._host(), time.time()
    mine = left_by(tmp_path, dead, here)
    moments = left_by(tmp_path, dead, here + "0", is_folder=True).rename(tmp_path / f".moments.{here}-{dead}.x.part")
    alive, other = left_by(tmp_path, os.getpid(), here), left_by(tmp_path, dead, "0123abcd")
    (old := tmp_path / ".table.json.abcdefgh.part").write_text("of a release that named no owner")
    (tmp_path / "kept.part").write_text("not ours: no dot in front")
    assert sweep(tmp_path, now + 500) == []
    assert sorted(sweep(tmp_path, now + 700)) == sorted([mine, moments])
    assert sorted(sweep(tmp_path, now + 90_000)) == sorted([other, old])
    assert names(tmp_path) == sorted(["kept.part", alive.name])


def test_writing_sweeps_its_folder_once(tmp_path, dead):
    path = left_by(tmp_path, dead, files._host())
    os.utime(path, (0, 0))
    write_text(tmp_path / "file", "x")
    assert names(tmp_path) == ["file"]


def test_temporary_files_name_their_owner(tmp_path):
    with atomic_file(tmp_path / "file.npz"):
        (name,) = names(tmp_path)
    prefix, ending = unfinished_name("file.npz")
    assert name.startswith(prefix) and name.endswith(ending)
    assert files.OWNER.search(name)[2] == str(os.getpid())


@pytest.mark.parametrize("at", range(1, 12))
def test_ctrl_c_while_an_archive_is_written_stays_ctrl_c(monkeypatch, at):
    real, calls = io.BytesIO, []

    class Interrupted(real):
        def write(self, data):
            calls.append(len(data))
            if len(calls) == at:
                raise KeyboardInterrupt
            return super().write(data)

    monkeypatch.setattr(files.io, "BytesIO", Interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        npz_bytes({name: np.arange(99) for name in "abc"}, compressed=True)
    del caught


def test_archives_are_numpys_and_the_same_every_time():
    arrays = {"a/0": np.arange(6, dtype="<f4").reshape(2, 3), "header": np.zeros(3, np.uint8)}
    for compressed in (True, False):
        data = npz_bytes(arrays, compressed=compressed)
        assert data == npz_bytes(arrays, compressed=compressed)
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
        kinds = {info.compress_type for info in zipfile.ZipFile(io.BytesIO(data)).infolist()}
        assert kinds == {zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED}
