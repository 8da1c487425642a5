"""What a release promises in several places: version and changelog, requirements, the documents about them."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
from packaging.version import Version

import quantkit

CHECKOUT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## (?P<version>\S+)(?: - (?P<date>\S+))?$", re.MULTILINE)


def changelog() -> list[tuple[str, str]]:
    """Versions and dates of the changelog's headings, from the top."""
    text = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    return [(match["version"], match["date"] or "") for match in HEADING.finditer(text)]


def pyproject() -> dict:
    """The project's description."""
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib  # pytest brings it where Python lacks it
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place(cli):
    described = pyproject()
    assert "version" not in described["project"] and described["project"]["dynamic"] == ["version"]
    assert described["tool"]["hatch"]["version"]["path"] == "quantkit/__init__.py"
    assert cli("--version") == (0, f"quantkit {quantkit.__version__}\n", "")


def test_the_changelog_begins_with_this_version():
    """A development version has its changes under Unreleased; a release has an entry of its own."""
    top, *_ = changelog()
    version = Version(quantkit.__version__)
    assert str(version) == quantkit.__version__
    assert top[0] == ("Unreleased" if version.is_devrelease else quantkit.__version__)


def test_the_changelog_is_in_order():
    released = [entry for entry in changelog() if entry[0] != "Unreleased"]
    assert released
    versions = [Version(version) for version, _ in released]
    dates = [date.fromisoformat(day) for _, day in released]
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)


def requirements() -> list[str]:
    """Every requirement of pyproject.toml, extras included."""
    project = pyproject()["project"]
    return [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]


def test_every_requirement_has_a_lower_bound():
    assert [line for line in requirements() if not re.match(r"[\w.\[\]-]+>=\d", line)] == []


def test_an_upper_bound_has_its_reason_beside_it():
    lines = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bounded = [line for line in lines if re.search(r'^\s+"[\w.\[\]-]+>=[^"]*<', line)]
    assert len(bounded) == sum("<" in line for line in requirements())
    assert [line for line in bounded if "#" not in line.rpartition('"')[2]] == []


@pytest.mark.parametrize("extra", ["onnxruntime"])
def test_the_tools_for_tests_ask_for_no_other_version_than_an_extra(extra):
    """The tests run with what the extra admits: one bound, written twice."""
    extras = pyproject()["project"]["optional-dependencies"]
    assert set(extras[extra]) <= set(extras["dev"])
