"""What starting costs: the light parts of the package load none of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"onnx", "openvino", "onnxruntime", "tensorrt", "transformers", "datasets", "evaluate", "numba", "torch"}
HEAVY |= {"jinja2", "plotly", "dask", "distributed"}


def loaded_after(statement: str) -> set[str]:
    """Top-level packages in memory after a statement ran in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint('\\nLOADED', *{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


HELP = "sys.argv = ['quantkit', '--help']\nfrom quantkit.cli.app import main\ntry: main()\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "statement",
    ["import quantkit", "import quantkit.tables.table", "import quantkit.calibrate", HELP],
    ids=["package", "tables", "calibrate", "help"],
)
def test_nothing_heavy_is_loaded(statement):
    assert not loaded_after(statement) & HEAVY


def test_the_measure_can_fail():
    assert "onnx" in loaded_after("import onnx")


def test_every_public_name_is_there():
    import quantkit

    assert sorted(quantkit.__all__) == quantkit.__all__
    for name in quantkit.__all__:
        assert getattr(quantkit, name) is not None
