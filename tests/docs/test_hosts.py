"""Blocks of a document that show commands on several machines: run on this one, on loopback, as one cluster."""

from __future__ import annotations

import datetime
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from docrun import CHECKOUT, blocks, workplace
from prepare import PREPARE, Place
from tiny import made_sentences

PROMPT = re.compile(r"^(machine-[a-z])\$ (.*)$", re.MULTILINE)
HOST = "127.0.0.1"
TIMEOUT_S = 300


def on_hosts(document: Path) -> list[list[str]]:
    """The commands behind a prompt like `machine-a$`, a list a block."""
    shown = (block.text for block in blocks(document) if block.language == "text")
    found = [[command for _, command in PROMPT.findall(text)] for text in shown]
    return [commands for commands in found if commands]


def test_only_one_document_has_such_blocks():
    documents = {path.name for path in CHECKOUT.glob("**/*.md") if on_hosts(path)}
    assert documents == {"distributed.md"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def here(command: str, ports: dict[str, int]) -> str:
    """A command with this machine's address, free ports, and as many workers as a test can wait for."""
    command = re.sub(r"(tcp|tls)://10\.0\.0\.5:8786", lambda at: f"{at[1]}://{HOST}:{ports[at[1]]}", command)
    command = command.replace("--nworkers 16", "--nworkers 1")
    if command.startswith("dask scheduler"):
        command = re.sub(r" --host 10\.0\.0\.5 --port 8786", "", command)
        command += f" --host {HOST} --port {ports['tls' if 'tls' in command else 'tcp']}"
    return command + " --no-dashboard" * command.startswith("dask ")


@contextmanager
def in_background(command: str, ready: str, log: Path) -> Iterator[None]:
    """A process and its children, from the moment on which it says that it is ready; ended with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while ready not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ready in log.read_text(), f"{command}\n{log.read_text()}"
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_certificates(folder: Path) -> None:
    """ca.pem, cluster.pem and cluster-key.pem: a certificate that signs itself, good for both sides."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cluster")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    text = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for file in ("ca.pem", "cluster.pem"):
        (folder / file).write_bytes(text)
    (folder / "cluster-key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What distributed.md needs, two parts of the sentences, certificates, and `dask` on the path."""
    for package in ("distributed", "cryptography"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra distributed)")
    with ExitStack() as stack:
        stack.enter_context(workplace(tmp_path))
        PREPARE["distributed.md"](Place(tmp_path, stack))
        program = tmp_path / ".bin" / "dask"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dask "$@"\n')
        program.chmod(0o755)
        for part in (1, 2):
            Path(f"part{part}.txt").write_text("".join(f"{text}\n" for text in made_sentences(40, seed=part)))
        make_certificates(tmp_path)
        # The configuration of which the document speaks.
        tls = "DASK_DISTRIBUTED__COMM__TLS__"
        monkeypatch.setenv(f"{tls}CA_FILE", str(tmp_path / "ca.pem"))
        monkeypatch.setenv(f"{tls}CLIENT__CERT", str(tmp_path / "cluster.pem"))
        monkeypatch.setenv(f"{tls}CLIENT__KEY", str(tmp_path / "cluster-key.pem"))
        yield tmp_path


@pytest.mark.slow
def test_the_commands_of_several_machines_work_together(place):
    ports = {"tcp": free_port(), "tls": free_port()}
    asked = []
    with ExitStack() as cluster:
        for number, commands in enumerate(on_hosts(CHECKOUT / "docs" / "distributed.md")):
            for position, shown in enumerate(commands):
                command = here(shown, ports)
                if command.startswith("dask "):
                    ready = "Scheduler at:" if "scheduler" in command else "Registered to:"
                    cluster.enter_context(in_background(command, ready, place / f".log-{number}-{position}"))
                    continue
                done = subprocess.run(
                    ["bash", "-c", command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
                )
                assert done.returncode == 0, f"{command}\n{done.stderr}"
                asked.append(command)
    assert [command.split()[1] for command in asked] == ["calibrate", "eval", "calibrate", "calibrate"]
    for folder in ("quantkit-out", "part1", "part2"):
        assert (place / folder / "histograms.npz").is_file()
