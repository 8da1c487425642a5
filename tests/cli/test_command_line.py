"""The terminal: completion, NO_COLOR, --quiet and --json everywhere, doctor in one screen, the command reference."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from quantkit.cli.app import app
from quantkit.cli.doctor import show
from quantkit.cli.reference import COMMAND, PLACE, reference

CHECKOUT = Path(__file__).resolve().parents[2]
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")


def leaves(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Name and command of everything that does something."""
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", {})
    for name, child in children.items():
        yield from leaves(child, (*path, name))
    if not children:
        yield " ".join(path), command


@pytest.mark.parametrize(("name", "command"), leaves(), ids=[name for name, _ in leaves()])
def test_every_command_can_be_quiet_and_speak_json(name, command):
    flags = {flag for param in command.params for flag in param.opts}
    assert {"--quiet", "-q", "--json"} <= flags


def test_the_reference_is_up_to_date():
    assert (CHECKOUT / PLACE).read_text(encoding="utf-8") == reference(), f"docs/cli.md is stale: run {COMMAND}"


def test_the_reference_has_every_command_and_option():
    text = reference()
    for name, command in leaves():
        section = text.partition(f"\n## quantkit {name}\n")[2].partition("\n## ")[0]
        flags = {flag for param in command.params for flag in param.opts if flag.startswith("--")} - {"--help"}
        assert {flag for flag in flags if f"`{flag}" not in section} == set(), name


def test_a_stale_reference_is_told(tmp_path, monkeypatch, capsys):
    from quantkit.cli.reference import main

    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert COMMAND in capsys.readouterr().out
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / PLACE).write_text("# Command line\n")
    assert main(["--check"]) == 1


def complete(line: str) -> list[str]:
    """What completion offers for the last word of a line."""
    words = line.split(" ")
    environment = {"_QUANTKIT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-m", "quantkit"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("quantkit tab", ["table"]),
        ("quantkit table con", ["convert"]),
        ("quantkit migrate --float", ["--float-weights"]),
        ("quantkit run --method m", ["minmax", "mse"]),
        ("quantkit table convert x --to f", ["flatbuffers"]),
    ],
)
def test_completion_knows_commands_options_and_values(line, offered):
    assert complete(line) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_works_in_bash(tmp_path):
    """The script that quantkit installs, sourced by a bash that then completes a line."""
    program = tmp_path / "quantkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantkit "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def bash(script: str) -> str:
        # The trailing command keeps bash alive as the parent, which is how the shell is recognised.
        command = ["bash", "-c", f"{script}\ntrue"]
        done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bash("quantkit --install-completion")
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert str(script) in (tmp_path / ".bashrc").read_text()
    line = "COMP_WORDS=(quantkit table va); COMP_CWORD=2; _quantkit_completion quantkit; echo ${COMPREPLY[@]}"
    assert bash(f"source {script}; complete -p quantkit; {line}").splitlines()[-1] == "validate"
    assert bash("quantkit --show-completion").strip() == script.read_text().strip()


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    parent, child = pty.openpty()
    hidden = ("NO_COLOR", "FORCE_COLOR", "CI", "GITHUB_ACTIONS", "PY_COLORS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    settings = {**kept, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    command = [sys.executable, "-m", "quantkit", *arguments]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=settings, cwd=CHECKOUT) as process:
        os.close(child)
        text = b""
        while True:
            try:
                piece = os.read(parent, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
    os.close(parent)
    assert process.returncode == 0
    return text.decode()


def test_no_color_is_honoured():
    assert COLOUR.search(on_a_terminal("--help"))
    assert not COLOUR.search(on_a_terminal("--help", NO_COLOR="1"))


def worst_facts() -> dict[str, Any]:
    """A machine about which there is much to say: long names, every backend, TensorRT's longest table."""
    from quantkit.backends.trt.capabilities import Gpu, capabilities
    from quantkit.backends.trt.versions import Version

    tables = [capabilities(Version(*v), Gpu("NVIDIA H100 80GB HBM3", (9, 0))) for v in ((8, 6), (11, 0))]
    rows = [vars(row) for row in max(tables, key=len).values()]
    packages = ["python", "quantkit", "numpy", "scipy", "numba", "onnx", "openvino", "onnxruntime", "transformers"]
    packages += ["tokenizers", "tensorrt"]
    says = "2026.4.1-22982-e213a147257-releases/2026/4 (BF16, BIN, EXPORT_IMPORT, FP16, FP32, INT8, WINOGRAD)"
    precisions = ["fp32", "tf32", "fp16", "int8", "int8+fp16"]
    facts = {"table": rows}
    return {
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "cores": 128,
            "system": "Linux-" + "x" * 60,
        },
        "versions": dict.fromkeys(packages, "2026.10.11"),
        "backends": [
            {"name": "openvino", "precisions": precisions[:4], "says": says, "facts": {}},
            {"name": "onnxruntime", "precisions": precisions[:2], "says": "1.32.0 (FP32, INT8)", "facts": {}},
            {"name": "tensorrt", "precisions": precisions, "says": "10.13.3 on NVIDIA H100 80GB HBM3", "facts": facts},
        ],
        "demo": ["demo: the packaged model is installed"],
        "cache": "/home/somebody/.cache/quantkit",
    }


def test_doctor_fits_one_screen_on_any_machine(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show(worst_facts())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 23  # and the prompt
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("tensorrt can: version, gpu, fp32") for line in lines)
    show(worst_facts(), every=True)
    assert "tensorrt inspector: yes. Engines can be inspected layer by layer." in capsys.readouterr().out


def test_doctor_says_less_when_it_is_to_be_quiet(cli):
    code, out, _ = cli("doctor", "--quiet")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["openvino", "onnxruntime", "tensorrt"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, OSError, SystemError])
def test_ctrl_c_that_a_library_turned_into_its_own_error_is_an_interruption(cli, monkeypatch, kind):
    from quantkit.pipeline import calibration

    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if kind is KeyboardInterrupt:
                raise
            raise kind("Can't close the ZIP file while there is an open writing handle on it.")  # noqa: B904

    monkeypatch.setattr(calibration, "write_tables", interrupted)
    code, _, error = cli("calibrate", "demo")
    assert (code, "Interrupted." in error, "Traceback" in error) == (130, True, False)
