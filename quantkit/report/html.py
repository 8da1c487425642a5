"""One self-contained HTML file from a stored record; nothing is measured or calibrated here.

The page is put together by Jinja2 with every value escaped. Data for the charts travels as JSON in a block that is not
code, and the page's script puts text into the document as text only. A content security policy allows exactly the
page's own scripts, by hash, and no connection at all: a name that slipped through would still not run, and opening the
file asks nothing of any network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import InputError, MissingDependencyError
from quantkit.files import write_text
from quantkit.report import compare_view, run_view
from quantkit.report.files import Beside, read_beside
from quantkit.report.record import Record, load_record

PAGE = "quantkit.report"
SCRIPTS = {"run": ("base.js", "engines.js", "tensors.js"), "compare": ("base.js", "compare.js")}
_INCOMPLETE = (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration, ArithmeticError)


def write_report(path: Path, out: Path | None = None) -> tuple[Path, tuple[str, ...]]:
    """Renders a stored record into a file.

    Args:
        path: a record.json, a sensitivity.json, or the folder that holds one of them.
        out: the file to write; report.html beside the record by default.

    Returns:
        The file's path, and what the report had to leave out, one sentence each.

    Raises:
        InputError: it is no record, or one that lacks what every record has.
        StorageError: a file cannot be read or written.
    """
    source = path
    if path.is_dir():
        names = (path / "record.json", path / "sensitivity.json")
        source = next((name for name in names if name.is_file()), names[0])
    record = load_record(source)
    beside = read_beside(record.data, source.parent)
    return write_text(out or source.parent / "report.html", render(record, beside, source.name)), beside.notes


def render(record: Record, beside: Beside | None = None, source: str = "record.json") -> str:
    """The whole page as text.

    Args:
        record: of a run or of a comparison.
        beside: what lay beside it; nothing by default.
        source: the record's file name, for the last line of the page.

    Raises:
        InputError: the record lacks what every record has.
    """
    beside = beside or Beside()
    kind = "compare" if record.data.get("kind") == "compare" else "run"
    try:
        values = compare_view.page(record) if kind == "compare" else run_view.page(record, beside)
    except _INCOMPLETE as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{source} lacks what a record has ({what}).", "Give the record.json that quantkit wrote, unchanged."
        ) from error
    return fill(kind, {**values, "source": source})


def fill(kind: str, values: Mapping[str, Any]) -> str:
    """The template of a kind of page, filled; `values["data"]` is what its charts draw.

    Raises:
        MissingDependencyError: Jinja2 or plotly is not installed.
    """
    page = template(f"{kind}.html")
    from markupsafe import Markup

    theme, plotly = asset("theme.js"), plotly_js()
    script = "\n".join(asset(name).replace('"use strict";\n', "") for name in SCRIPTS[kind])
    script = '"use strict";\n(() => {\n' + script + "})();\n"
    rendered: str = page.render(
        {
            **values,
            "data": Markup(json_block(values["data"])),
            "style": Markup(asset("report.css")),
            "theme": Markup(theme),
            "plotly": Markup(plotly),
            "script": Markup(script),
            "policy": policy([theme, plotly, script]),
            "version": __version__,
        }
    )
    return rendered


@cache
def template(name: str) -> Any:
    """A template of the page, compiled; values are escaped in it, and a missing one is an error.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependencyError("The report needs Jinja2, which is not here.", "pip install jinja2") from error
    loader = FunctionLoader(asset)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(name)


@cache
def asset(name: str) -> str:
    """Text of a file of the page."""
    return (resources.files(PAGE) / "page" / name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """plotly.js as the plotly package ships it; the package itself is not imported.

    Raises:
        MissingDependencyError: the package is not installed, or no longer ships it.
    """
    import importlib.util

    found = importlib.util.find_spec("plotly")
    places = found.submodule_search_locations if found else None
    path = Path(next(iter(places))) / "package_data" / "plotly.min.js" if places else None
    if path is None or not path.is_file():
        raise MissingDependencyError("The report draws with plotly.js, which is not here.", "pip install plotly")
    # A closing tag inside a string of the script would end the block that holds it.
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script").replace("\r\n", "\n")


def policy(scripts: Sequence[str]) -> str:
    """The content security policy: these scripts, the page's own styles and images, and no connection."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )


def json_block(value: Any) -> str:
    """JSON that may stand in a script element: no `<`, `>` or `&` is left as such; NaN and infinities become null."""
    text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def finite(value: Any) -> Any:
    """The JSON value with None in place of every NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
