"""The page as text: what it says, that it stands alone, and that no name in it is ever markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from report_helpers import NASTY, RECORD, comparison

from quantkit.collect.histogram import HistogramAccumulator
from quantkit.collect.store import save_histograms
from quantkit.errors import InputError
from quantkit.files import sha256_file, write_json
from quantkit.report import compare_view, run_view
from quantkit.report.files import Beside, read_beside
from quantkit.report.html import json_block, render
from quantkit.report.record import Record
from quantkit.report.repeat import repeat


class Page(HTMLParser):
    """Elements with attributes, the visible text, and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self):
        """What the charts draw; a script element's text has no entities."""
        return json.loads(next(text for text in self.scripts if text.startswith("{")))


def page_of(data, **beside) -> Page:
    return Page(render(Record(data), Beside(**beside)))


def test_the_verdict_and_every_engine_are_there(record):
    text = page_of(record).text
    assert "INT8 against FP32: accuracy -0.30 points, at 2.50 times its speed." in text
    assert "36 matrix products run in INT8, 14 in float" in text
    assert "-0.30 points" in text and "not told from chance (p = 0.4)" in text
    assert "2.50x" in text and "67 %" in text
    assert "0.8890 ±0.0100" in text
    assert "failed no half precision here" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"int8_ops": 0}, "no matrix product runs in INT8"),
        ({"status": "failed", "reason": "it does not build"}, "it does not build"),
        ({"precision": "fp16"}, "This run had no INT8 engine."),
        ({"int8_ops": None}, "not known"),
    ],
)
def test_an_int8_engine_that_is_none_is_called_so(record, change, says):
    record["engines"][2] |= change
    assert says in page_of(record).text


def test_where_int8_fails_the_fastest_that_works_is_told(record):
    record["engines"][1] = {**record["engines"][2], "precision": "fp16", "speedup": 1.75}
    record["engines"][2] = {**RECORD["engines"][1], "precision": "int8"}
    page = page_of(record)
    assert "fastest that works: fp16" in page.text
    assert "1.75x" in page.text and "accuracy 0.8890 ±0.0100" in page.text


def test_the_page_stands_alone_and_its_policy_allows_its_own_scripts_only(record):
    page = page_of(record)
    for tag, attributes in page.elements:
        assert not {"src", "action", "formaction", "srcset"} & set(attributes), (tag, attributes)
        assert str(attributes.get("href", "#")).startswith(("#", "data:,")), (tag, attributes)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy and "http" not in policy
    run = [text for text in page.scripts if not text.startswith("{")]
    for text in run:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.count("sha256-") == len(run) == 3


def test_names_are_text_wherever_they_stand(record, tensors):
    plain = page_of(record, tensors=tensors)
    record["model"]["name"] = record["task"]["name"] = record["context"]["command"] = NASTY
    record["verdict"] = [NASTY]
    record["context"]["settings"] |= {NASTY: NASTY}
    record["engines"][1]["reason"] = NASTY
    record["engines"][2] |= {"notes": [NASTY], "precision": "int8", "compute": NASTY, "model_file": NASTY}
    record["engines"][2]["metrics"] |= {NASTY: {"value": 0.5, "stderr": 0.1}}
    record["engines"][2]["details"] = {"audit": {"verdict": [NASTY], "gemms": {NASTY: 3}}}
    for row in tensors:
        row["name"], row["kind"], row["reason"] = NASTY + row["name"], NASTY, NASTY
    units = [{"name": NASTY, "rank": 1, "group_ms": 1.0, "alone": {"drop": 0.1, "drop_stderr": 0.1, "sqnr_db": 20}}]
    page = page_of(record, tensors=tensors, sensitivity={"units": units}, notes=(NASTY,))
    assert len(page.scripts) == len(plain.scripts)
    assert "img" not in {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(NASTY) > 8
    assert page.data["tensors"][0]["name"] == NASTY + "a.gelu"


def test_json_in_a_page_ends_no_script_and_has_no_nan():
    value = {"a": "</script><!--", "b": [math.nan, math.inf, 1.5], "c": "\u2028&"}
    block = json_block(value)
    assert not set("<>&\u2028") & set(block)
    assert json.loads(block) == value | {"b": [None, None, 1.5]}


def test_who_is_beaten_in_both_is_not_on_the_front(record):
    rows = record["engines"]
    rows[1] = {**rows[2], "precision": "fp16", "latency_ms": {"median": 50.0}, "metrics": {"accuracy": {"value": 0.88}}}
    front = {p["label"]: p["front"] for p in run_view.engine_points(rows, ["accuracy"])}
    assert front == {"fp32": True, "fp16": False, "int8": True}
    rows[1]["metrics"]["accuracy"]["value"] = 0.890
    assert all(p["front"] for p in run_view.engine_points(rows, ["accuracy"]))


def test_drawn_bins_add_up_to_the_histogram():
    accumulator = HistogramAccumulator("tensorrt")
    accumulator.update(np.random.default_rng(3).standard_normal(5000).astype(np.float32))
    histogram = accumulator.snapshot()
    bins = run_view.binned(histogram, 8)
    assert sum(bins["counts"]) == histogram.total == 5000
    assert bins["counts"][3] == histogram.counts[24:32].sum()
    assert bins["width"] == 8 * histogram.bin_width
    assert bins["counts"][-1] > 0


def test_many_tensors_are_drawn_coarser(tensors):
    accumulator = HistogramAccumulator("tensorrt")
    accumulator.update(np.linspace(0, 1, 4096, dtype=np.float32))
    many = [tensors[0] | {"name": f"t{i}"} for i in range(400)]
    few, lots = (
        run_view.with_bins(Beside(rows, {row["name"]: accumulator.snapshot() for row in rows}))
        for rows in (many[:2], many)
    )
    assert len(few[0]["bins"]["counts"]) == 512
    assert sum(len(row["bins"]["counts"]) for row in lots) <= run_view.DRAWN_BINS


def test_files_that_are_missing_or_of_another_run_are_said(record, tensors, tmp_path):
    file = {"_type": "quantkit.tensors", "_version": 1, "method": "mse", "tensors": tensors}
    path = write_json(tmp_path / "tensors.json", file)
    histograms = save_histograms(tmp_path / "histograms.npz", {}, {})
    record["files"] = {p.stem: {"path": p.name, "sha256": sha256_file(p)} for p in (path, histograms)}
    assert read_beside(record, tmp_path).tensors == tensors
    record["files"]["tensors"]["path"] = "../../../elsewhere/tensors.json"
    assert read_beside(record, tmp_path).tensors == tensors, "only files beside the record are read"
    histograms.unlink()
    assert "histograms.npz is not beside the record." in read_beside(record, tmp_path).notes
    path.write_text("{}")
    found = read_beside(record, tmp_path)
    assert not found.tensors
    assert "tensors.json is not the file that this run wrote" in " ".join(found.notes)
    record["files"]["tensors"]["sha256"] = sha256_file(path)
    assert "not a quantkit.tensors file" in " ".join(read_beside(record, tmp_path).notes)
    assert "nothing to show tensor by tensor" in page_of(record, notes=found.notes).text


def test_sensitivity_and_the_plans_of_a_search_are_shown(record):
    alone = {"drop": 0.3, "drop_stderr": 0.15, "sqnr_db": 18.4, "failed": ""}
    units = [
        {"name": "layer1.qkv", "layer": 1, "group": "qkv", "rank": 2, "group_ms": 0.5, "alone": alone},
        {
            "name": "layer0.ffn",
            "layer": 0,
            "group": "ffn",
            "rank": 1,
            "group_ms": 0.7,
            "alone": alone | {"failed": "does not build"},
        },
    ]
    chosen = {"plan": {"mode": "gemm"}, "kept_in_float": ["layer0.ffn"], "ms": 3.0, "speedup": 2.4, "judged": alone}
    dear = {**chosen, "judged": alone | {"drop": 0.45}}
    plans = [{**chosen, "judged": None}, dear, {**chosen, "speedup": 2.1}, chosen]
    record["search"] = {"sensitivity": {"units": units}, "candidates": plans, "chosen": chosen}
    record["search"] |= {"goal": {"max_drop": 0.5}, "rows": {"rows": 4096}, "reasons": {"layer0.ffn": f"dear {NASTY}"}}
    page = page_of(record)
    assert [part["name"] for part in page.data["sensitivity"]] == ["layer0.ffn", "layer1.qkv"]
    assert "0.30 ±0.15" in page.text and "does not build" in page.text
    assert [(part["layer"], part["group"], part["db"]) for part in page.data["sensitivity"]] == [
        (0, "ffn", None),
        (1, "qkv", 18.4),
    ]
    assert "at most 0.5 points on 4,096 train rows" in page.text
    for fate in ("chosen", "not judged", "costs too much: 0.60 with its error", "would do"):
        assert fate in page.text
    assert f"dear {NASTY}" in page.text
    record["search"]["goal"] = {"min_speedup": 2.2}
    page = page_of(record)
    assert "too slow" in page.text and "at 2.2 times FP32's speed or more" in page.text
    assert "sensitivity" in {attributes.get("id") for _, attributes in page.elements}


def test_a_run_without_calibration_has_no_section_on_tensors(record):
    record["calibration"] = None
    page = page_of(record)
    assert "tensors" not in {attributes.get("id") for _, attributes in page.elements}


@pytest.mark.parametrize("broken", [{"model": None}, {"context": {}}, {"engines": [{}]}, {"engines": [3]}])
def test_a_record_that_is_not_whole_is_refused_in_one_sentence(record, broken):
    with pytest.raises(InputError, match=r"record\.json lacks what a record has"):
        render(Record(record | broken))


def test_a_count_without_end_is_refused_in_one_sentence(record):
    record["engines"][0].update(int8_ops=float("inf"), details={})
    with pytest.raises(InputError, match=r"record\.json lacks what a record has \(OverflowError"):
        render(Record(record))


def test_the_command_renders_a_stored_record_again(cli, record, tmp_path):
    write_json(tmp_path / "record.json", record)
    code, out, err = cli("report", tmp_path, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["report"] == str(tmp_path / "report.html")
    assert told["bytes"] == (tmp_path / "report.html").stat().st_size > 4_000_000
    assert "tensors.json" in told["notes"][0]
    assert cli("report", tmp_path / "record.json", "-o", tmp_path / "again.html", "--quiet") == (0, "", "")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()
    (tmp_path / "other.json").write_text("{}")
    code, _, err = cli("report", tmp_path / "other.json")
    assert (code, "not a record" in err) == (2, True)
    assert cli("report", tmp_path / "missing.json")[0] == 2


def test_a_comparison_shows_every_cell_and_why_one_failed():
    data = comparison(["sst2", NASTY])
    page = Page(render(Record(data)))
    assert "1.23 ±1.01" in page.text and "12.35x" in page.text.replace("12.34x", "12.35x")
    assert page.text.count("no [brackets] are lost") >= 2, "in the matrix and in the list of cells"
    assert page.text.count(NASTY) >= 3 and "img" not in {tag for tag, _ in page.elements}
    assert [cell["task"] for cell in page.data["cells"]] == ["sst2"]
    with pytest.raises(InputError, match="lacks what a record has"):
        render(Record(data | {"cells": [{}]}))


@pytest.mark.parametrize(("points", "warmer"), [(-1.0, True), (1.0, False)])
def test_a_loss_is_orange_and_a_gain_blue_stronger_the_larger(points, warmer):
    red, _, blue = map(int, compare_view.shade(points)[4:-1].split(","))
    assert (red > blue) == warmer
    faint = sum(map(int, compare_view.shade(points / 4)[4:-1].split(",")))
    assert faint > sum(map(int, compare_view.shade(points)[4:-1].split(",")))
    assert compare_view.shade(50 * points) == compare_view.shade(2 * points)


def test_hashes_stand_in_a_list_of_their_own(record):
    engines = {"int8": {"graph_sha256": "cd" * 32, "logits_sha256": None}}
    record["manifest"] = {"job": "run", "adapter_sha256": {"a.json": "ef" * 32}, "engines": engines}
    record["files"] = {"tensors": {"path": "tensors.json", "sha256": "01" * 32}}
    found = repeat(record)
    assert found["hashes"] == [
        ("adapter a.json", "ef" * 32),
        ("engines int8 graph", "cd" * 32),
        ("tensors.json", "01" * 32),
    ]
    assert dict(found["groups"])["Job"] == [("job", "run")]


def test_products_in_float_are_named_where_others_are_int8(record):
    names = [f"layer{i}.ffn" for i in range(30)]
    record["engines"][0]["details"] = record["engines"][2]["details"] = {"audit": {"float_products": names}}
    text = page_of(record).text
    assert text.count("layer23.ffn and 6 more") == 1
    assert "layer24.ffn" not in text


def test_a_sensitivity_record_has_a_page_of_its_own(record, cli, tmp_path):
    alone = {"drop": 0.1, "drop_stderr": 0.2, "sqnr_db": 20.0, "failed": ""}
    units = [{"name": "layer0.ffn1", "layer": 0, "group": "ffn1", "rank": 1, "group_ms": 1.0, "alone": alone}]
    rows = {"rows": 64, "split": "train", "metric": "accuracy", "fp32": {"value": 0.9, "stderr": 0.01}}
    task = {"name": "sst2", "seq_len": 64, "batch": 16}
    found = {key: record[key] for key in ("schema", "context", "model", "calibration")}
    found |= {"task": task, "rows": rows, "speedup": 2.5, "sensitivity": {"units": units, "whole": alone}}
    write_json(tmp_path / "sensitivity.json", found | {"verdict": ["ffn1 is the dearest part."]})
    assert cli("report", tmp_path, "--quiet") == (0, "", "")
    page = Page((tmp_path / "report.html").read_text())
    for words in ("64 rows of train", "2.50x", "0.10 ±0.20 points lost", "layer0.ffn1", "ffn1 is the dearest part."):
        assert words in page.text
    assert "Accuracy and latency" not in page.text and "no INT8 engine" not in page.text
