"""`quantkit calibrate --from`: tables from histograms that are there already; neither model nor data is needed.

Histograms over power-of-two ranges merge exactly: shards that were collected apart, in any order, give the tables of
all data together, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.collect.histogram import Histogram
from quantkit.collect.store import HistogramFile, load_histograms, load_trt_histogram_cache
from quantkit.errors import CalibrationError, InputError, TableError
from quantkit.files import read_bytes, sha256_json
from quantkit.pipeline.calibration import Collected, calibrators_for, write_methods
from quantkit.pipeline.settings import Settings
from quantkit.tables.provenance import Provenance

OWN_SETTINGS = ("methods", "parameters", "out")
"""What `calibrate --from` takes; everything else is decided by the histograms."""
ZIP_MAGIC = b"PK"
ONCE = "Give each file, and each shard, once."


def calibrate_from(paths: Sequence[Path], settings: Settings) -> dict[str, Any]:
    """A table and a cache file for every method asked for, from one histogram file or several that are merged.

    Args:
        paths: files of quantkit, or of TensorRT's write_histogram_cache.
        settings: the methods, their parameters and the folder.

    Returns:
        JSON value with the folder, the files and one row a method, as `write_tables`.

    Raises:
        TableError: a file cannot be read, or the files cannot be merged.
        InputError: a setting that has no meaning here.
        CalibrationError: NaN, Inf or nothing at all in a histogram.
    """
    check_settings(settings)
    calibrators = calibrators_for(settings)
    collected = merged([read_collected(path) for path in paths])
    folder = settings.out or Path("quantkit-out")
    kept = collected.path if len(paths) == 1 else collected.save(folder / "merged.npz")
    return {
        "out": str(folder),
        "histograms": str(kept),
        "from": [str(path) for path in paths],
        "samples": collected.provenance.samples if collected.provenance else None,
        "seconds": round(collected.seconds, 3),
        "reused": True,
        "tables": write_methods(collected, calibrators, folder),
    }


def check_settings(settings: Settings) -> None:
    """InputError when a setting is given that the histograms decide."""
    plain = Settings().as_json()
    for name, value in settings.as_json().items():
        if name not in OWN_SETTINGS and value != plain[name]:
            flag = "a model" if name == "model" else f"--{name.replace('_', '-')}"
            raise InputError(
                f"--from needs no {flag.removeprefix('a ')}: histograms hold what model and data have given.",
                f"Leave out {flag}, or leave out --from to collect anew.",
            )


def read_collected(path: Path) -> Collected:
    """Histograms of a file, with as much as it says about where they came from.

    Raises:
        TableError: the file is neither quantkit's nor TensorRT's, or is damaged.
        StorageError: it cannot be read.
    """
    stored = read_file(path)
    meta = stored.meta
    try:
        given = meta.get("provenance")
        provenance = None if given is None else Provenance.from_dict(given)
        seconds = float(meta.get("seconds", 0.0))
        kinds, unmasked = names_of(meta, "kinds"), names_of(meta, "unmasked")
        parts = tuple(map(str, meta.get("parts", ())))
    except TableError as error:
        raise TableError(f"{path}: {error.message}", error.hint) from error
    except (TypeError, ValueError) as error:
        raise TableError(f"{path} says something impossible of its origin: {error}.", "Collect again.") from error
    if not stored.histograms:
        raise TableError(f"{path} holds no histogram.", "Collect again.")
    return Collected(stored.histograms, provenance, seconds, True, path, kinds, unmasked, parts)


def read_file(path: Path) -> HistogramFile:
    """The file with its meta data, of which TensorRT's has none; the first bytes tell whose it is.

    Raises:
        TableError: it is neither.
    """
    data: bytes = read_bytes(path)
    if data.startswith(ZIP_MAGIC):
        return load_histograms(path)
    try:
        return HistogramFile(load_trt_histogram_cache(data), {})
    except TableError as error:
        raise TableError(f"{path} is no histogram file. {error.message}", error.hint) from error


def names_of(meta: Mapping[str, Any], key: str) -> dict[str, str]:
    """A mapping name -> text in the meta data; empty when there is none.

    Raises:
        TypeError: it is something else.
    """
    found = meta.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise TypeError(f"{key!r} is no mapping of names")
    return found


def merged(files: Sequence[Collected]) -> Collected:
    """The histograms of all files together; a single file is given back as it is.

    Raises:
        TableError: they are of different models or tensors, were collected differently, hold the same data, or are
            of TensorRT's mode, whose ranges depend on what each collection saw first.
    """
    base, *others = files
    for other in others:
        check_same_origin(base, other)
    parts = [part for collected in files for part in parts_of(collected)]
    if len(set(parts)) < len(parts):
        raise TableError("The histogram files hold some of the same data; merged, it would count twice.", ONCE)
    if not others:
        return base
    histograms = {name: merge_all(name, files) for name in base.histograms}
    return Collected(
        histograms=histograms,
        provenance=merged_provenance(files, parts),
        seconds=sum(collected.seconds for collected in files),
        reused=True,
        path=base.path,
        kinds={name: kind for collected in files for name, kind in collected.kinds.items()},
        unmasked={name: source for collected in files for name, source in collected.unmasked.items()},
        parts=tuple(sorted(parts)),
    )


def check_same_origin(base: Collected, other: Collected) -> None:
    """TableError when two files cannot be merged."""
    both = f"{base.path} and {other.path} cannot be merged"
    for collected in (base, other):
        if any(h.mode != "pow2" for h in collected.histograms.values()):
            raise TableError(
                f"{both}: {collected.path} has TensorRT's ranges, which depend on what each collection saw first, "
                "so that no exact sum exists.",
                "Collect every shard with --order-free.",
            )
    if odd := sorted(base.histograms.keys() ^ other.histograms.keys()):
        raise TableError(f"{both}: only one of them has {odd[0]!r}.", "Give histograms of the same model.")
    mine, theirs = base.provenance, other.provenance
    if mine is not None and theirs is not None:
        if mine.model_sha256 != theirs.model_sha256:
            models = f"{mine.model_sha256[:12]} and {theirs.model_sha256[:12]}"
            raise TableError(f"{both}: their models differ ({models}).", "Give histograms of the same model.")
        if mine.ignore_padding != theirs.ignore_padding:
            raise TableError(f"{both}: one counts padding, the other does not.", "Collect both the same way.")
    if base.histograms == other.histograms:
        raise TableError(f"{both}: they hold the same histograms; the data would count twice.", ONCE)


def parts_of(collected: Collected) -> tuple[str, ...]:
    """Hashes of the data in a file, one for each shard that was merged into it."""
    if collected.parts or collected.provenance is None:
        return collected.parts
    return (collected.provenance.data_sha256,)


def merge_all(name: str, files: Sequence[Collected]) -> Histogram:
    """One tensor's histogram over all files."""
    total, *rest = (collected.histograms[name] for collected in files)
    for histogram in rest:
        try:
            total = total.merge(histogram)
        except CalibrationError as error:
            raise TableError(f"The files cannot be merged at {name!r}: {error.message}", error.hint) from error
    return total


def merged_provenance(files: Sequence[Collected], parts: Sequence[str]) -> Provenance | None:
    """What is true of all shards together, whatever their order; None where a shard says nothing of itself."""
    found = [collected.provenance for collected in files if collected.provenance is not None]
    if len(found) < len(files):
        return None
    seeds, lengths = {p.seed for p in found}, {p.seq_len for p in found}
    return replace(
        found[0],
        data_sha256=sha256_json(sorted(parts)),
        samples=sum(p.samples for p in found),
        seed=seeds.pop() if len(seeds) == 1 else None,
        # Over power-of-two ranges the batch size decides nothing.
        batch=max(p.batch for p in found),
        seq_len=lengths.pop() if len(lengths) == 1 else None,
        collector="+".join(sorted({p.collector for p in found})),
    )
