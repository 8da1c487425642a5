"""Histogram files: round trips, and damage that is always noticed."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.collect import store
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import (
    TRT_RECORD,
    dump_trt_histogram_cache,
    load_histograms,
    load_trt_histogram_cache,
    save_histograms,
)
from quantkit.errors import StorageError, TableError


def sample() -> dict[str, Histogram]:
    draw = np.random.default_rng(8)
    values = draw.standard_normal(500).astype(np.float32)
    odd = np.append(values, np.array([np.nan, np.inf, -1e4, 0.0, 4.0], np.float32))
    big = Histogram.empty("pow2").updated(np.ones(3, np.float32))
    for _ in range(40):
        big = big.merge(big)
    return {
        "layer0/attention: query [0]": Histogram.empty().updated(values).updated(3 * values),
        "übergroß": Histogram.empty("pow2", -5000.0).updated(odd),
        "nothing": Histogram.empty(),
        "zeros": Histogram.empty("pow2").updated(np.zeros(9, np.float32)),
        "huge": Histogram.empty().updated(np.array([3e38, 1e-45], np.float32)),
        "many": big,
    }


def rewritten(path: Path, **members: bytes) -> Path:
    """The file with some members replaced, written as a proper archive."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (content | {f"{key}.npy": value for key, value in members.items()}).items():
            archive.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_round_trip_and_same_bytes_for_the_same_content(tmp_path: Path):
    meta = {"batches": 7, "provenance": {"model": "ab", "list": [1, None, "ü"]}}
    one = save_histograms(tmp_path / "one.npz", sample(), meta)
    two = save_histograms(str(tmp_path / "two.npz"), sample(), meta)
    loaded = load_histograms(one)
    assert loaded.histograms == sample() and list(loaded.histograms) == list(sample()) and loaded.meta == meta
    assert one.read_bytes() == two.read_bytes()


def test_no_histograms_at_all(tmp_path: Path):
    loaded = load_histograms(save_histograms(tmp_path / "none.npz", {}, {}))
    assert loaded.histograms == {} and loaded.meta == {}


def test_numpy_opens_the_file_without_pickle(tmp_path: Path):
    path = save_histograms(tmp_path / "h.npz", {"a": Histogram.empty().updated(np.ones(300, np.float32))}, {})
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == ["counts", "header", "kinds", "numbers"]
        assert file["counts"].dtype == np.uint16 and file["counts"].sum() == 300


def test_meta_that_is_no_json_is_refused(tmp_path: Path):
    for meta in ({"a": np.zeros(2)}, {"a": float("nan")}):
        with pytest.raises(TableError, match="must be JSON"):
            save_histograms(tmp_path / "h.npz", {}, meta)
    assert not (tmp_path / "h.npz").exists()


def test_a_missing_file_is_a_storage_error(tmp_path: Path):
    with pytest.raises(StorageError, match="no file"):
        load_histograms(tmp_path / "absent.npz")


def test_every_cut_is_noticed(tmp_path: Path):
    whole = save_histograms(tmp_path / "h.npz", sample(), {"a": 1}).read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(TableError, match=r"cut\.npz"):
            load_histograms(tmp_path / "cut.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A path to write damaged files to, and the bytes of a good one."""
    path = tmp_path_factory.mktemp("flips") / "flip.npz"
    return path, save_histograms(path, sample(), {"a": 1}).read_bytes()


@given(place=st.integers(0, 1 << 30), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_never_changes_what_is_read(whole: tuple[Path, bytes], place: int, flip: int):
    path, data = whole[0], bytearray(whole[1])
    # The directory at the end is a sixth of the file and half of the examples.
    data[place % len(data) if place % 2 else -1 - place % 300] ^= flip
    path.write_bytes(data)
    try:
        loaded = load_histograms(path)
    except TableError:
        return
    # What zip archives do not protect (dates, attributes) may differ; the content may not.
    assert loaded.histograms == sample() and loaded.meta == {"a": 1}


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes):
    path = tmp_path_factory.getbasetemp() / "noise.npz"
    path.write_bytes(noise)
    with pytest.raises(TableError):
        load_histograms(path)


def test_a_changed_count_does_not_fit_the_digest(tmp_path: Path):
    path = save_histograms(tmp_path / "h.npz", {"a": Histogram.empty().updated(np.ones(3, np.float32))}, {})
    counts = np.zeros((1, 2048), np.uint8)
    counts[0, 5] = 3
    with pytest.raises(TableError, match="SHA-256"):
        load_histograms(rewritten(path, counts=npy(counts)))


@pytest.mark.parametrize(
    ("member", "array"),
    [
        ("counts", np.zeros((1, 2047), np.uint8)),
        ("counts", np.zeros((2, 2048), np.uint8)),
        ("counts", np.zeros((1, 2048), np.float32)),
        ("counts", np.asfortranarray(np.zeros((1, 2048), np.uint8).repeat(3, 0))),
        ("numbers", np.zeros((1, 5))),
        ("kinds", np.zeros((1, 5), np.int32)),
        ("header", np.zeros((2, 2), np.uint8)),
        ("header", np.frombuffer(b"[1, 2]", np.uint8)),
        ("header", np.frombuffer(b'{"_type": "something else"}', np.uint8)),
        ("header", np.frombuffer(b'{"_type": "quantkit.histograms", "_version": 99}', np.uint8)),
        ("header", np.frombuffer(b'{"_type": "quantkit.histograms", "_version": 1, "names": 3}', np.uint8)),
        ("header", np.frombuffer(b"[" * 100_000, np.uint8)),
    ],
)
def test_members_of_another_kind_are_refused(tmp_path: Path, member: str, array: np.ndarray):
    path = save_histograms(tmp_path / "h.npz", {"a": Histogram.empty()}, {})
    with pytest.raises(TableError):
        load_histograms(rewritten(path, **{member: npy(array)}))


def test_absurd_sizes_are_refused_before_anything_is_unpacked(tmp_path: Path):
    path = save_histograms(tmp_path / "h.npz", {"a": Histogram.empty()}, {})
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }"
    for size in (1 << 60, 1 << 33, 70 << 20):
        text = header % size
        text += b" " * (117 - len(text)) + b"\n"
        member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
        with pytest.raises(TableError, match="0 bytes of data"):
            load_histograms(rewritten(path, header=member))


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_histograms(tmp_path / "h.npz", {"a": Histogram.empty()}, {})
    monkeypatch.setattr(store, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(TableError, match="header says 1000128 bytes"):
        load_histograms(rewritten(path, header=npy(np.zeros(1_000_000, np.uint8))))


def test_members_too_many_or_too_few_are_refused(tmp_path: Path):
    path = save_histograms(tmp_path / "h.npz", {}, {})
    with pytest.raises(TableError, match="members"):
        load_histograms(rewritten(path, extra=b""))


def test_an_impossible_histogram_with_a_fitting_digest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    h = Histogram.empty("pow2").updated(np.array([3.0], np.float32))
    fields = {name: getattr(h, name) for name in ("counts", *Histogram.SCALARS)}
    with monkeypatch.context() as patch:
        patch.setattr(Histogram, "__post_init__", lambda self: None)
        path = save_histograms(tmp_path / "h.npz", {"a": Histogram(**(fields | {"upper": 8.0}))}, {})
    with pytest.raises(TableError, match="impossible histogram"):
        load_histograms(path)


@pytest.mark.parametrize(("field", "value"), [("mask_logits", "low"), ("mode", ["pow2"]), ("mode", None)])
def test_a_header_of_other_types_with_a_fitting_digest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: object
):
    fields = {name: getattr(Histogram.empty(), name) for name in ("counts", *Histogram.SCALARS)}
    with monkeypatch.context() as patch:
        patch.setattr(Histogram, "__post_init__", lambda self: None)
        path = save_histograms(tmp_path / "h.npz", {"a": Histogram(**(fields | {field: value}))}, {})
    with pytest.raises(TableError):
        load_histograms(path)


def test_tensorrts_cache_keeps_what_tensorrt_knows():
    known = {name: h for name, h in sample().items() if h.mode == "tensorrt"}
    data = dump_trt_histogram_cache(known)
    loaded = load_trt_histogram_cache(data)
    assert dump_trt_histogram_cache(loaded) == data and list(loaded) == list(known)
    for name, h in loaded.items():
        assert np.array_equal(h.counts, known[name].counts) and (h.minimum, h.maximum) == (-h.amax, h.amax)
        assert (h.upper, h.amax) == (known[name].upper, known[name].amax)
    assert load_trt_histogram_cache(b"") == {}


def test_a_cut_tensorrt_cache_is_refused():
    data = dump_trt_histogram_cache({"a": Histogram.empty().updated(np.ones(4, np.float32)), "b": Histogram.empty()})
    middle = len(data) // 2
    for length in [1, 2, 10, 37, 38, 39, 1000, middle - 1, middle + 1, middle + 20, len(data) - 1]:
        with pytest.raises(TableError, match="at byte"):
            load_trt_histogram_cache(data[:length])
    with pytest.raises(TableError, match="twice"):
        load_trt_histogram_cache(data[:middle] * 2)


@pytest.mark.parametrize(
    "head",
    [
        (1.0, 2048.0, 9.0, 2047, 2048),
        (1.0, 2048.0, 9.0, 2048, 1 << 60),
        (1.0, 2047.0, 9.0, 2048, 2048),
        (1.0, 2048.0, 4096.0, 2048, 2048),
        (float("nan"), float("nan"), 0.0, 2048, 2048),
        (-1.0, -2048.0, 0.0, 2048, 2048),
    ],
)
def test_impossible_records_are_refused(head: tuple[float, float, float, int, int]):
    with pytest.raises(TableError):
        load_trt_histogram_cache(b"a\n" + TRT_RECORD.pack(*head) + b"\0" * 8 * 2048)


def test_counts_beyond_63_bits_are_refused():
    with pytest.raises(TableError, match="63 bits"):
        load_trt_histogram_cache(b"a\n" + TRT_RECORD.pack(1.0, 2048.0, 9.0, 2048, 2048) + b"\xff" * 8 * 2048)


def test_a_line_feed_in_a_name_cannot_be_written():
    with pytest.raises(TableError, match="line feed"):
        dump_trt_histogram_cache({"a\nb": Histogram.empty()})


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_noise_is_no_tensorrt_cache(noise: bytes):
    if noise:
        with pytest.raises(TableError):
            load_trt_histogram_cache(noise)
