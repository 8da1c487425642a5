"""The page in a headless Chromium: it draws, sorts, filters, shows a tensor, prints, and asks nothing of a network."""

from __future__ import annotations

import base64
import importlib.util
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from report_helpers import NASTY, RECORD, comparison

from quantkit.collect.histogram import HistogramAccumulator
from quantkit.report.files import Beside
from quantkit.report.html import render
from quantkit.report.record import Record

CHECKOUT = Path(__file__).resolve().parents[2]
LOST = [
    {
        **{"name": f"layer{i}.{group}", "layer": i, "group": group, "rank": 2 * i + j + 1, "group_ms": 0.5},
        "alone": {"drop": 0.1 * i, "drop_stderr": 0.1, "sqnr_db": 20 + i + 5 * j},
    }
    for i in range(4)
    for j, group in enumerate(("qkv", "ffn1"))
]


@pytest.fixture(scope="module")
def made_page(tmp_path_factory):
    """A page with six tensors, one of a nasty name, histograms and sensitivity."""
    draw = np.random.default_rng(5)
    curve = {"at": [0.5, 1.0, 2.0], "loss": [0.5, 0.25, 0.3]}
    rows, histograms = [], {}
    for i, name in enumerate(["embeddings", "layer0.query", "layer0.gelu", "layer10.query", "layer2.query", NASTY]):
        accumulator = HistogramAccumulator("tensorrt")
        accumulator.update((draw.standard_normal(4000) * (i + 1)).astype(np.float32))
        histograms[name] = accumulator.snapshot()
        amax = histograms[name].amax
        row = {"name": name, "kind": "gelu" if "gelu" in name else "dense", "method": "mse", "reason": "", "amax": amax}
        row |= {
            "minimum": -amax,
            "maximum": amax,
            "quantized": "query" in name,
            "values": 4000,
            "zeros": 0,
            "masked": 0,
        }
        row |= {"ranges": {"entropy": 0.6 * amax, "mse": 0.8 * amax}, "sqnr_db": [30, None, 10, 20, 5, 50][i]}
        rows.append(row | {"sqnr_by_method": {"entropy": 20.0, "mse": 30.0}, "curves": {"kl": curve, "mse": curve}})
    rows.append({**rows[1], "name": "layer0.query_heads", "same_as": "layer0.query"})
    text = render(Record(RECORD), Beside(rows, histograms, {"units": LOST}))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(browser, made_page):
    """The page, opened from disk; at the end nothing was logged and nothing but the file was asked for."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": LIGHT})
    browser.get(made_page.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert asked_for(browser) == {made_page.as_uri()}


def asked_for(browser):
    """Addresses that were asked for since the log was read last; what the page holds itself is none."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    return {url for url in asked if not url.startswith(("data:", "blob:"))}


LIGHT = [{"name": "prefers-color-scheme", "value": "light"}]
DARK = [{"name": "prefers-color-scheme", "value": "dark"}]


def css(page, selector):
    return page.find_elements("css selector", selector)


def names(page):
    return [row.get_attribute("data-name") for row in css(page, "#tensor-table tbody tr")]


def head(page, title):
    return next(cell for cell in css(page, "#tensor-table thead th") if cell.text == title)


def drawn(page, chart):
    """Types of the traces that a chart drew, as SVG on the page."""
    assert css(page, f"#{chart} .cartesianlayer .trace"), chart
    return page.execute_script(f"return document.getElementById('{chart}').data.map((trace) => trace.type)")


def click(page, element):
    """A click with the mouse, on an element that the page's head does not cover."""
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def wait_for(condition):
    """Waits until a condition holds; what the page does after an event takes a moment."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def clear(page):
    page.execute_script(
        "for (const id of ['filter', 'kind']) { const e = document.getElementById(id); e.value = ''; "
        "e.dispatchEvent(new Event('input')); }"
    )


def test_the_page_of_a_comparison_draws_its_matrix_and_charts(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(Record(comparison(["sst2", "cola", NASTY]))), encoding="utf-8")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    assert [len(css(browser, f"#{chart} .cartesianlayer .trace")) for chart in ("chart-change", "chart-speed")] == [
        1,
        1,
    ]
    cells = [cell.text for cell in css(browser, ".matrix tbody td")]
    assert cells[:2] == ["0.8922 ±0.0105"] * 2
    assert cells[3].split() == ["-1.23", "±1.01", "12.35x"]
    assert "no [brackets] are lost" in cells[5]
    assert NASTY in [cell.text.splitlines()[0] for cell in css(browser, ".matrix thead th") if cell.text]
    assert "213, 94, 0" not in css(browser, ".matrix .cell")[0].value_of_css_property("background-color")
    assert browser.get_log("browser") == []
    assert asked_for(browser) == {path.as_uri()}


@pytest.mark.parametrize("chart", ["accuracy", "latency", "front", "overview", "tensor", "sensitivity"])
def test_every_chart_is_drawn(page, chart):
    assert drawn(page, f"chart-{chart}")


def test_sensitivity_has_a_line_a_group_along_the_layers(page):
    lines = page.execute_script(
        "return document.getElementById('chart-sensitivity').data.map((line) => [line.name, line.x, line.y])"
    )
    assert lines == [["ffn1", [0, 1, 2, 3], [25, 26, 27, 28]], ["qkv", [0, 1, 2, 3], [20, 21, 22, 23]]]


def test_error_bars_and_front_are_drawn(page):
    assert len(css(page, "#chart-accuracy .yerror")) == 2
    assert len(css(page, "#chart-latency .xerror")) == 2
    front = page.execute_script("return document.getElementById('chart-front').data[0].x")
    assert front == [40.0, 100.0]


def test_the_table_sorts_by_number_and_by_name_both_ways(page):
    clear(page)
    click(page, head(page, "SQNR dB").find_element("tag name", "button"))
    assert names(page)[:3] == ["layer2.query", "layer0.gelu", "layer10.query"]
    assert names(page)[-1] == "layer0.query", "what has no figure stands last"
    assert head(page, "SQNR dB").get_attribute("aria-sort") == "ascending"
    click(page, head(page, "SQNR dB").find_element("tag name", "button"))
    assert names(page)[0] == NASTY and names(page)[-1] == "layer0.query"
    click(page, head(page, "tensor").find_element("tag name", "button"))
    layers = [name for name in names(page) if name.startswith("layer")]
    assert layers == ["layer0.gelu", "layer0.query", "layer2.query", "layer10.query"]


def test_the_table_filters(page):
    clear(page)
    assert len(names(page)) == 6, "reordered copies are left out at first"
    assert css(page, "#count")[0].text == "6 of 7 tensors"
    css(page, "#filter")[0].send_keys("query layer1")
    assert names(page) == ["layer10.query"]
    clear(page)
    page.execute_script(
        "const e = document.getElementById('kind'); e.value = 'gelu'; e.dispatchEvent(new Event('input'))"
    )
    assert names(page) == ["layer0.gelu"]
    clear(page)
    click(page, css(page, "#int8-only")[0])
    assert sorted(names(page)) == ["layer0.query", "layer10.query", "layer2.query"]
    click(page, css(page, "#no-copies")[0])
    assert len(names(page)) == 4
    click(page, css(page, "#no-copies")[0])
    click(page, css(page, "#int8-only")[0])
    assert css(page, "#count")[0].text == "6 of 7 tensors"


def test_a_click_shows_the_tensors_histogram_with_every_threshold(page):
    clear(page)
    row = next(r for r in css(page, "#tensor-table tbody tr") if r.get_attribute("data-name") == "layer0.gelu")
    click(page, row)
    assert css(page, "#chosen")[0].text == "layer0.gelu"
    assert "on" in row.get_attribute("class")
    assert drawn(page, "chart-tensor") == ["bar", "scatter", "scatter"]
    seen = page.execute_script(
        "const c = document.getElementById('chart-tensor');"
        "const stored = JSON.parse(document.getElementById('data').textContent).tensors[2];"
        "return [c.data[0].y.reduce((a, b) => a + b), c.layout.shapes.map((s) => s.x0), stored]"
    )
    assert seen[0] == 4000
    assert sorted(seen[1]) == sorted(seen[2]["ranges"].values())
    assert len(css(page, "#chart-tensor .barlayer .point")) > 50
    cells = [cell.text for cell in css(page, "#methods tbody td")]
    assert "mse (used)" in cells and "80.0 %" in cells


def test_the_first_tensor_shown_is_the_worst_that_feeds_int8(page):
    page.refresh()
    assert css(page, "#chosen")[0].text == "layer2.query"


def test_a_nasty_name_is_text_in_table_and_chart(page):
    clear(page)
    row = next(r for r in css(page, "#tensor-table tbody tr") if r.get_attribute("data-name") == NASTY)
    click(page, row)
    assert css(page, "#chosen")[0].text == NASTY
    assert not css(page, "main img, #tensor-table script")


def test_colours_follow_the_system_and_the_switch(page):
    def paper():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    def ink():
        return page.execute_script("return document.getElementById('chart-accuracy').layout.font.color")

    light = paper(), ink()
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": DARK})
    wait_for(lambda: paper() != light[0] and ink() != light[1])
    dark = paper(), ink()
    switch = css(page, "#theme")[0]
    for name, colours in (("light", light), ("dark", dark), ("auto", dark)):
        switch.click()
        assert switch.text == f"theme: {name}"
        assert (paper(), ink()) == colours
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": LIGHT})
    wait_for(lambda: (paper(), ink()) == light)


def test_nothing_is_wider_than_a_laptop(page):
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_it_prints_in_light_colours_on_few_pages_and_comes_back(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": DARK})
    page.execute_script(
        "addEventListener('beforeprint', () => { window.onPaper = document.documentElement.dataset.theme })"
    )
    pdf = base64.b64decode(page.print_page())
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 6
    assert page.execute_script("return window.onPaper") == "light"
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.theme") == "dark")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": LIGHT})
    assert not css(page, ".controls")[0].is_displayed()
    assert page.execute_script("return getComputedStyle(document.querySelector('.scroll.tall')).overflowY") == "visible"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": LIGHT})


def emulate(page, width, **media):
    """A window of that width; media and colours as given, those of a light screen by default."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": LIGHT, **media})
    page.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})


@pytest.fixture
def as_on(page):
    """`emulate`, undone at the end."""
    yield lambda width, **media: emulate(page, width, **media)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": False})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": LIGHT})
    page.execute_script("dispatchEvent(new Event('afterprint'))")


CUT_OFF = """
const wide = document.documentElement.clientWidth, scrolls = (e) => e.closest(arguments[0] || '.none');
return [...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() && !scrolls(e)
  && e.getBoundingClientRect().right > wide + 1).map((e) => `${e.tagName} ${e.className}`);
"""
"""Elements that reach beyond the right edge, outside of what scrolls by itself."""


def test_a_phone_shows_everything_without_scrolling_sideways(page, as_on):
    clear(page)
    as_on(390)
    wait_for(lambda: page.execute_script("return document.getElementById('chart-overview').layout.width ?? 0") < 390)
    wait_for(lambda: page.execute_script(CUT_OFF, ".scroll, nav") == [])
    assert page.execute_script("return document.documentElement.scrollWidth") == 390


def test_paper_shows_everything_in_dark_ink_and_within_its_width(page, as_on):
    clear(page)
    choose = "while (theme.name() !== arguments[0]) document.getElementById('theme').click()"
    page.execute_script(choose, "dark")
    as_on(700, media="print", features=DARK)  # A4 less two margins of 12 mm are 703 pixels
    ink = page.execute_script("return getComputedStyle(document.body).color")
    assert ink == "rgb(29, 36, 48)", "a dark theme leaves no light text on white paper"
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script("return document.getElementById('chart-front').layout.font.color") == "#1d2430"
    assert page.execute_script(CUT_OFF) == [], "nothing scrolls on paper"
    shown = page.execute_script(
        "return ['#verdict', '#engines', '#tensor-table', '#methods', '#sensitivity', '#audit', '#repeat', 'footer']"
        ".map((s) => document.querySelector(s).checkVisibility())"
    )
    assert all(shown)
    head = css(page, "#tensor-table thead")[0]
    assert "percentile" not in head.text and "SQNR dB" in head.text
    assert not [e for e in head.find_elements("tag name", "button") if e.is_displayed()], (
        "they keep it from being repeated"
    )
    cut = (
        "return [...document.querySelectorAll('#tensor-table td')].filter((e) => e.scrollWidth > e.clientWidth).length"
    )
    assert page.execute_script(cut) == 0, "no cell ends in an ellipsis"
    page.execute_script(choose, "auto")


def test_the_readmes_picture_has_the_page_from_its_head_to_the_table(page, made_page):
    """`benchmarks/report_picture.py`, on the small page."""
    found = importlib.util.spec_from_file_location("report_picture", CHECKOUT / "benchmarks" / "report_picture.py")
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    script.LAST_ROW = 3
    data = script.picture(made_page)
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG") and width == round(script.WIDTH * script.SCALE)
    assert height > 1000, "from the verdict to the table of tensors"
