"""The table itself: what goes in, what comes out, and how files are told apart."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from quantkit.errors import StorageError, TableError, UnknownNameError
from quantkit.tables import CalibrationTable, Entry, formats, load_table


def small_table() -> CalibrationTable:
    return CalibrationTable({"layer0.ffn.gelu": Entry(np.float32(0.5)), "logits": Entry(np.float32(0.25))}, "entropy")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, -0.0, 1e39, 1e-60])
def test_scales_no_build_can_use_are_refused(scale):
    with pytest.raises(TableError, match="scale"):
        Entry(scale)


@pytest.mark.parametrize("extremes", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_extremes_must_be_finite_and_in_order(extremes):
    with pytest.raises(TableError):
        Entry(np.float32(1), *extremes)


def test_entry_turns_scales_into_float32_and_knows_its_threshold():
    entry = Entry(0.1)
    assert isinstance(entry.scale, np.float32)
    assert entry.amax == float(np.float32(127) * np.float32(0.1))
    assert Entry(np.finfo(np.float32).max).amax == float("inf")


def test_table_is_ordered_and_read_only():
    source = {"b": Entry(np.float32(1)), "a": Entry(np.float32(2))}
    table = CalibrationTable(source)
    source["c"] = Entry(np.float32(3))
    assert table.names == tuple(table) == ("b", "a")
    assert table.scales == {"b": 1.0, "a": 2.0}
    assert len(table) == 2
    assert "a" in table
    assert "c" not in table
    with pytest.raises(TypeError):
        table.entries["a"] = Entry(np.float32(9))


def test_unknown_tensor_is_told_with_close_names():
    table = small_table()
    assert table["logits"].scale == np.float32(0.25)
    with pytest.raises(TableError, match=r"no tensor 'layer0\.ffn\.relu'.* Close names: layer0\.ffn\.gelu"):
        table["layer0.ffn.relu"]
    with pytest.raises(TableError, match="another model"):
        table["zzz"]


@pytest.mark.parametrize("name", ["", "\udcff"])
def test_names_that_cannot_be_written_are_refused(name):
    with pytest.raises(TableError, match="cannot be a tensor's name"):
        CalibrationTable({name: Entry(np.float32(1))})


def test_format_follows_from_the_suffix_and_is_sniffed_without_it(tmp_path):
    table = small_table()
    cache = table.save(tmp_path / "new" / "t.cache")
    assert cache.read_bytes().startswith(b"TRT-8600-EntropyCalibration2\n")
    assert table.save(str(tmp_path / "t.json")).read_bytes().startswith(b"{\n")
    as_text = table.save(tmp_path / "one", "tensorrt", algorithm="EntropyCalibration", version=8500)
    assert as_text.read_bytes().startswith(b"TRT-8500-EntropyCalibration\n")
    assert load_table(as_text).scales == load_table(cache).scales == table.scales
    assert load_table(table.save(tmp_path / "t.txt")) == table
    windows = tmp_path / "bom"
    windows.write_bytes(b"\xef\xbb\xbf  " + table.dumps().replace("\n", "\r\n").encode())
    assert load_table(windows) == table


def test_unknown_format_says_which_there_are():
    with pytest.raises(UnknownNameError, match="Did you mean tensorrt"):
        small_table().dumps("tensorr")


def test_files_that_cannot_be_tables(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="no file"):
        load_table(tmp_path / "none.cache")
    with pytest.raises(TableError, match="is not a file"):
        load_table(tmp_path)
    path = tmp_path / "big.cache"
    path.write_bytes(b"TRT-8600-EntropyCalibration2\n")
    monkeypatch.setattr(formats, "MAX_BYTES", 10)
    with pytest.raises(TableError, match=r"big\.cache has 29 bytes; a table of more than 10 is not read"):
        load_table(path)


def test_import_is_light():
    code = "import sys, quantkit.tables; print([m for m in sys.modules if m in {'onnx', 'scipy', 'openvino', 'numba'}])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
