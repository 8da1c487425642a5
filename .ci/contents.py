"""Compares the files of a built sdist and wheel with the checkout: nothing is missing, nothing else came in.

Usage: python .ci/contents.py DIST
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

CHECKOUT = Path(__file__).resolve().parents[1]
IN_SDIST = ("quantkit", "calib_data", "caches", "tests", "docs", "benchmarks", ".ci")
IN_ROOT = {"Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", ".gitignore", "PKG-INFO"}
MADE = {"__pycache__", ".hypothesis", "quantkit-out", "quantkit-compare"}
"""Folders that running things leaves behind."""


def in_checkout(folder: str) -> set[str]:
    """The files below a folder of the checkout, without what was made by running it."""
    found = set()
    for path in (CHECKOUT / folder).rglob("*"):
        name = path.relative_to(CHECKOUT)
        if path.is_file() and not MADE & set(name.parts):
            found.add(name.as_posix())
    return found


def cache_folder(names: set[str]) -> set[str]:
    """The names without what stands in caches/ beside its two own files."""
    own = {"caches/README.md", "caches/.gitignore"}
    return {name for name in names if not name.startswith("caches/") or name in own}


def wheel_files(path: Path) -> set[str]:
    """The wheel's files by the names they have in the checkout, without its metadata."""
    with zipfile.ZipFile(path) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    shipped = "quantkit/_calib_data/"
    return {f"calib_data/{name[len(shipped) :]}" if name.startswith(shipped) else name for name in names}


def sdist_files(path: Path) -> set[str]:
    """The sdist's files, without the folder that holds them all."""
    with tarfile.open(path) as file:
        return {str(PurePosixPath(*PurePosixPath(member.name).parts[1:])) for member in file if member.isfile()}


def compare(path: Path, found: set[str], expected: set[str]) -> bool:
    """Prints how a package differs from what it should hold; whether it does not."""
    for name in sorted(expected - found):
        print(f"{path.name} lacks {name}")
    for name in sorted(found - expected):
        print(f"{path.name} holds {name}, which is not in the checkout")
    return found == expected


def main(dist: Path) -> int:
    """Compares both packages in a folder; the exit code."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    in_wheel = in_checkout("quantkit") | in_checkout("calib_data")
    in_sdist = cache_folder(IN_ROOT.union(*map(in_checkout, IN_SDIST)))
    fits = [compare(wheel, wheel_files(wheel), in_wheel), compare(sdist, sdist_files(sdist), in_sdist)]
    for path in (wheel, sdist):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return 0 if all(fits) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
