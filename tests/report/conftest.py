"""Records for reports, made by hand, and a headless Chromium to look at pages with."""

from __future__ import annotations

import shutil
from copy import deepcopy

import pytest
from report_helpers import RECORD


@pytest.fixture
def record():
    """The data of a run's record that a test may change."""
    return deepcopy(RECORD)


@pytest.fixture
def tensors():
    """Rows of tensors.json for two tensors and a reordered copy."""
    curve = {"at": [1.0, 2.0, 3.0], "loss": [0.5, 0.25, None]}
    row = {"kind": "gelu", "method": "mse", "reason": "", "amax": 2.0, "minimum": -0.5, "maximum": 3.0}
    row |= {"quantized": True, "values": 1000, "zeros": 10, "masked": 0, "sqnr_db": 30.0}
    row |= {"ranges": {"entropy": 1.0, "mse": 2.0}, "sqnr_by_method": {"entropy": 20.0, "mse": 30.0}}
    row |= {"curves": {"kl": curve, "mse": curve}}
    other = row | {"name": "b.norm", "kind": "layer norm", "sqnr_db": 12.0, "quantized": False, "amax": 1.5}
    copy = {name: row[name] for name in ("kind", "method", "reason", "amax", "minimum", "maximum", "quantized")}
    return [row | {"name": "a.gelu"}, other, copy | {"name": "a.copy", "same_as": "a.gelu"}]


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that keeps what its console and its network say; nothing is downloaded for it."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1366,820",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()
