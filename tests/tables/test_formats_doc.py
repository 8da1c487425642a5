"""The examples in docs/formats.md are files that quantkit reads."""

from __future__ import annotations

import re
from pathlib import Path

from quantkit.tables import json_text, trt_text

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def example(kind: str) -> str:
    (block,) = re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    return block


def test_cache_example_comes_back_byte_for_byte():
    table = trt_text.loads(example("trt"))
    assert table.names == ("(Unnamed Layer* 2) [Constant]_output", "layer0: ffn/gelu", "never.used")
    assert table.dumps("tensorrt") == example("trt")


def test_json_example_comes_back_byte_for_byte():
    table = json_text.loads(example("json"))
    assert table.provenance.samples == 512
    assert table.dumps() == example("json")


def test_plan_example_comes_back_byte_for_byte(tmp_path):
    from quantkit.network.plan_file import load_plan

    path = tmp_path / "plan.json"
    path.write_text(example("plan"), encoding="utf-8")
    given = load_plan(path)
    assert given.plan.mode == "gemm+residual"
    assert given.save(path).read_text(encoding="utf-8") == example("plan")


def test_every_link_leads_to_a_heading():
    headings = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in re.findall(r"^## (.*)$", TEXT, re.M)}
    links = set(re.findall(r"\(#([^)]*)\)", TEXT))
    assert links == headings
