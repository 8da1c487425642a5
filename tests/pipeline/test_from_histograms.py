"""Tables from histogram files: the same as from data, merged where that is exact, refused where it is not."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import quantkit
from quantkit.calibrate import CALIBRATORS, calibrate_histograms, make_calibrator
from quantkit.collect.histogram import Histogram
from quantkit.collect.store import dump_trt_histogram_cache
from quantkit.errors import InputError, TableError
from quantkit.pipeline.from_histograms import calibrate_from
from quantkit.pipeline.settings import Settings
from quantkit.tables.provenance import Provenance

NAMES = ("scores", "probs")


def made_provenance(data: str = "a" * 64, **changes) -> Provenance:
    values = {
        **{"model_sha256": "e" * 64, "data_sha256": data, "samples": 40, "seed": 0, "batch": 8, "seq_len": 32},
        **{"method": "", "parameters": {}, "range_mode": "pow2", "ignore_padding": False, "collector": "openvino"},
    }
    return Provenance(**values | changes)


def made_values(seed: int, n: int = 4_000) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    scores = draw.standard_t(3, n) * 2.0 ** draw.integers(-3, 4)
    return {"scores": scores.astype(np.float32), "probs": draw.random(n).astype(np.float32)}


@pytest.fixture
def save(tmp_path):
    """Saves made activations: save("a", values, mode=..., provenance=...) -> path."""

    def saved(name, values, mode="pow2", provenance=None, **meta):
        histograms = {key: Histogram.empty(mode).updated(array) for key, array in values.items()}
        if provenance is not None:
            meta["provenance"] = provenance.to_dict() if isinstance(provenance, Provenance) else provenance
        return quantkit.save_histograms(tmp_path / f"{name}.npz", histograms, meta)

    return saved


@pytest.fixture
def shards(save):
    """Three shards with provenance, and the values of all together."""
    values = [made_values(seed) for seed in (1, 2, 3)]
    paths = [save(f"s{i}", v, provenance=made_provenance(str(i) * 64)) for i, v in enumerate(values)]
    return paths, {name: np.concatenate([v[name] for v in values]) for name in NAMES}


def calibrated(paths, out, **settings):
    summary = calibrate_from(paths, Settings(out=out, **settings))
    return summary, {row["method"]: quantkit.load_table(row["table"]) for row in summary["tables"]}


def test_tables_equal_those_of_the_collection_byte_for_byte(cli, tiny_bert_dir, tiny_glue_dir, tmp_path):
    model = [tiny_bert_dir, "--task", "sst2", "--data", tiny_glue_dir, "--batch", 8, "--seq-len", 32]
    assert cli("calibrate", *model, "--calib-samples", 16, "--out", tmp_path / "a")[0] == 0
    code, out, err = cli(
        "calibrate",
        "--from",
        tmp_path / "a" / "histograms.npz",
        "--out",
        tmp_path / "b",
        "--json",
        "--percentile",
        99.99,
    )
    assert code == 0, err
    summary = json.loads(out)
    assert {row["method"] for row in summary["tables"]} == set(CALIBRATORS)
    assert (summary["samples"], summary["reused"]) == (16, True)
    for method in CALIBRATORS:
        for kind in ("json", "cache"):
            assert (tmp_path / "a" / f"{method}.{kind}").read_bytes() == (
                tmp_path / "b" / f"{method}.{kind}"
            ).read_bytes()
    auto = quantkit.load_table(tmp_path / "b" / "auto.json")
    assert auto["layer0.attention.probs"].scale == np.float32(1) / np.float32(127)
    assert auto["layer0.attention.scores_masked"].reason.startswith("masked logits, range of layer0.attention.scores")
    code, out, _ = cli(
        "calibrate", "--from", tmp_path / "a" / "histograms.npz", "--out", tmp_path / "c", "--method", "mse"
    )
    assert code == 0
    assert "16 sentences, not collected again" in out
    assert not (tmp_path / "c" / "entropy.json").exists()


def test_a_tensorrt_histogram_cache_serves_too(tmp_path):
    histograms = {name: Histogram.empty("tensorrt").updated(array) for name, array in made_values(4).items()}
    path = tmp_path / "legacy.hist"
    path.write_bytes(dump_trt_histogram_cache(histograms))
    summary, tables = calibrated([path], tmp_path / "out", methods=("entropy", "auto"))
    expected = calibrate_histograms(histograms, make_calibrator("entropy"))
    assert tables["entropy"].scales == {name: found.scale for name, found in expected.items()}
    assert tables["entropy"].provenance is None
    assert summary["samples"] is None
    assert all(entry.reason for entry in tables["auto"].entries.values())


def test_the_methods_parameters_are_taken(save, tmp_path):
    path = save("a", made_values(1))
    _, tables = calibrated([path], tmp_path / "out", methods=("percentile",), parameters={"percentile": 50.0})
    assert tables["percentile"].parameters == {"percentile": 50.0}
    assert tables["percentile"]["probs"].amax == pytest.approx(0.5, abs=0.05)


def test_shards_in_any_order_give_the_tables_of_all_data(shards, save, tmp_path):
    paths, values = shards
    whole = calibrated([save("whole", values)], tmp_path / "whole")[1]
    for number, order in enumerate(itertools.permutations(paths)):
        _, tables = calibrated(list(order), tmp_path / f"out{number}")
        for method, table in tables.items():
            assert table.entries == whole[method].entries
            first = (tmp_path / "out0" / f"{method}.json").read_bytes()
            assert (tmp_path / f"out{number}" / f"{method}.json").read_bytes() == first


def test_merging_step_by_step_is_merging_at_once(shards, tmp_path):
    paths, _ = shards
    calibrate_from(paths[:2], Settings(out=tmp_path / "ab", methods=("mse",)))
    steps, after_steps = calibrated([tmp_path / "ab" / "merged.npz", paths[2]], tmp_path / "abc", methods=("mse",))
    once, at_once = calibrated(paths, tmp_path / "all", methods=("mse",))
    assert after_steps["mse"] == at_once["mse"]
    assert at_once["mse"].provenance.samples == 120 == once["samples"] == steps["samples"]
    assert (
        quantkit.load_histograms(steps["histograms"]).histograms
        == quantkit.load_histograms(once["histograms"]).histograms
    )


def test_what_shards_do_not_share_is_left_open(save, tmp_path):
    paths = [
        save("a", made_values(1), provenance=made_provenance("1" * 64, seed=1, seq_len=32)),
        save("b", made_values(2), provenance=made_provenance("2" * 64, seed=2, seq_len=64, collector="onnxruntime")),
    ]
    provenance = calibrated(paths, tmp_path / "out", methods=("minmax",))[1]["minmax"].provenance
    assert (provenance.seed, provenance.seq_len, provenance.collector) == (None, None, "onnxruntime+openvino")
    paths.append(save("c", made_values(3)))
    assert calibrated(paths, tmp_path / "out", methods=("minmax",))[1]["minmax"].provenance is None


def test_the_same_data_is_not_counted_twice(shards, save, tmp_path):
    paths, _ = shards
    for twice in ([paths[0], paths[0]], [paths[0], save("copy", made_values(1))]):
        with pytest.raises(TableError, match="the same histograms"):
            calibrate_from(twice, Settings(out=tmp_path / "out"))
    calibrate_from(paths[:2], Settings(out=tmp_path / "ab", methods=("mse",)))
    with pytest.raises(TableError, match="some of the same data"):
        calibrate_from([tmp_path / "ab" / "merged.npz", paths[1]], Settings(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "tensorrt"}, "no exact sum.*--order-free"),
        ({"provenance": made_provenance("2" * 64, model_sha256="f" * 64)}, "models differ"),
        ({"provenance": made_provenance("2" * 64, ignore_padding=True)}, "counts padding"),
        ({"values": {"scores": made_values(2)["scores"]}}, "only one of them has 'probs'"),
    ],
    ids=["tensorrt ranges", "model", "padding", "tensors"],
)
def test_what_cannot_be_merged_is_refused(save, tmp_path, changes, words):
    first = save("a", made_values(1), provenance=made_provenance("1" * 64))
    changes = {"values": made_values(2), "provenance": made_provenance("2" * 64)} | changes
    second = save("b", changes.pop("values"), **changes)
    with pytest.raises(TableError, match=f"(?s){words}") as raised:
        calibrate_from([first, second], Settings(out=tmp_path / "out"))
    assert str(first) in str(raised.value)
    assert str(second) in str(raised.value)


def test_mask_thresholds_that_differ_are_refused_by_tensor(tmp_path):
    values = made_values(1)["scores"]
    paths = []
    for number, limit in enumerate((None, -5000.0)):
        histograms = {"scores": Histogram.empty("pow2", limit).updated(values * (number + 1))}
        paths.append(quantkit.save_histograms(tmp_path / f"{number}.npz", histograms, {}))
    with pytest.raises(TableError, match=r"'scores'.*mask threshold"):
        calibrate_from(paths, Settings(out=tmp_path / "out"))


@pytest.mark.parametrize(
    "meta",
    [{"provenance": {"samples": 3}}, {"kinds": ["softmax"]}, {"unmasked": {"a": 1}}, {"seconds": "long"}, {"parts": 7}],
)
def test_damaged_meta_data_is_an_error_that_names_the_file(save, tmp_path, meta):
    path = save("odd", made_values(1), **meta)
    with pytest.raises(TableError, match=r"odd\.npz"):
        calibrate_from([path], Settings(out=tmp_path / "out"))


def test_other_files_are_refused(save, tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("TRT-8600-EntropyCalibration2\nconv1: 3c010a14\n")
    with pytest.raises(TableError, match=r"notes\.txt is no histogram file"):
        calibrate_from([other], Settings(out=tmp_path / "out"))
    with pytest.raises(TableError, match="holds no histogram"):
        calibrate_from([save("none", {})], Settings(out=tmp_path / "out"))


def test_settings_of_the_data_have_no_meaning_here(save, tmp_path):
    path = save("a", made_values(1))
    with pytest.raises(InputError, match="--from needs no --calib-samples"):
        calibrate_from([path], Settings(calib_samples=7))
    with pytest.raises(InputError, match="--from needs no model"):
        calibrate_from([path], Settings(model="mine", task="sst2"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--study", "--from", "x.npz"), "--study compares passes"), (("--orders", 3), "--orders belongs to --study")],
)
def test_options_that_do_not_go_together(cli, arguments, words):
    code, _, err = cli("calibrate", *arguments)
    assert code == 2
    assert words in err
