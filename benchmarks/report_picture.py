"""The README's picture of a report: a real run of the demo, opened in a headless Chromium.

python benchmarks/report_picture.py                       # runs the demo anew, writes docs/img/report.png
python benchmarks/report_picture.py --record quantkit-out # draws a record that is there already

Needs the package selenium, and Chromium with its driver (Debian: chromium, chromium-driver). The picture
has the page from its head to the first tensors of the table, in light colours, at the width of a laptop's window.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantkit.files import write_bytes
from quantkit.report.html import write_report

PLACE = Path(__file__).resolve().parents[1] / "docs" / "img" / "report.png"
WIDTH, SCALE = 1366, 0.8
"""Of the window in pixels, a laptop's; and of the picture against it."""
LAST_ROW = 10
"""Of the table of tensors; below it the picture ends."""
SHOWN_S = 20.0
DRAWN = "return document.querySelectorAll('#chart-tensor .barlayer .point').length > 0"
BOTTOM = "return document.querySelectorAll('#tensor-table tbody tr')[arguments[0]].getBoundingClientRect().bottom"


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, driven; nothing is downloaded for it."""
    from selenium import webdriver

    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        sys.exit("There is no Chromium with its driver (Debian: chromium, chromium-driver).")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def picture(report: Path) -> bytes:
    """PNG of the page's upper part."""
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium() as browser:
        size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        light = [{"name": "prefers-color-scheme", "value": "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": light})
        browser.get(report.resolve().as_uri())
        WebDriverWait(browser, SHOWN_S).until(lambda page: page.execute_script(DRAWN))
        height = browser.execute_script(BOTTOM, LAST_ROW)
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": SCALE}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return base64.b64decode(shot["data"])


def main() -> None:
    """Makes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="folder of a run's results; without it the demo runs")
    parser.add_argument("--out", type=Path, default=PLACE, help="PNG file to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        record = given.record or Path(name) / "quantkit-out"
        if given.record is None:
            # From within the folder, so that the page names no path of this machine.
            command = [sys.executable, "-m", "quantkit", "run", "demo", "--quiet"]
            subprocess.run(command, cwd=name, check=True)
        report, notes = write_report(record, Path(name) / "report.html")
        if notes:
            sys.exit(f"The record is not complete: {' '.join(notes)}")
        data = picture(report)
    print(f"{write_bytes(given.out, data)}: {len(data)} bytes")


if __name__ == "__main__":
    main()
