"""Plans on disk: origin, damage, other machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.backends.trt import plans
from quantkit.backends.trt.capabilities import Gpu
from quantkit.backends.trt.rules import Rules
from quantkit.backends.trt.versions import Version
from quantkit.errors import BackendError, StorageError

GPU, OTHER = Gpu("NVIDIA H100", (9, 0)), Gpu("NVIDIA A100", (8, 0))
V86, V103 = Version(8, 6), Version(10, 3)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A plan with its sidecar."""
    rules = Rules({"input_ids": ("batch", None)}, {"input_ids": 100})
    info = plans.info_for(b"machine code", V86, GPU, key={"options": {}}, outcome={"seconds": 1.0}, rules=rules)
    return plans.store(tmp_path / "a.plan", b"machine code", info, {"times": {}})


def test_what_was_stored_is_found(stored: Path) -> None:
    info = plans.check(stored, V86, GPU)
    assert info is not None
    assert info.size == 12
    assert info.gpu == "NVIDIA H100 (9.0)"
    assert info.rules == Rules({"input_ids": ("batch", None)}, {"input_ids": 100})
    assert plans.info_of(stored) == info
    assert json.loads(plans.inspection_file(stored).read_text()) == {"times": {}}


def test_the_key_of_origin_is_its_owner_s_alone(stored: Path) -> None:
    key = plans.folder() / "origin.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.stat().st_size == plans.KEY_BYTES


@pytest.mark.parametrize("trust", [False, True])
def test_a_damaged_plan_is_refused(stored: Path, trust: bool) -> None:
    stored.write_bytes(b"machine codE")
    with pytest.raises(StorageError, match="is damaged"):
        plans.check(stored, V86, GPU, trust=trust)


def test_a_changed_sidecar_makes_a_stranger(stored: Path) -> None:
    side = plans.sidecar(stored)
    value = json.loads(side.read_text())
    side.write_text(json.dumps({**value, "tensorrt": "10.3.0"}))
    with pytest.raises(BackendError, match="was not built by this user"):
        plans.check(stored, V103, GPU)
    with pytest.raises(BackendError, match="does not run here"):
        plans.check(stored, V86, GPU, trust=True)


def test_a_plan_from_elsewhere_needs_trust(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path / "another"))
    with pytest.raises(BackendError, match="was not built by this user") as caught:
        plans.check(stored, V86, GPU)
    assert "--trust" in caught.value.hint
    assert plans.check(stored, V86, GPU, trust=True) is not None


def test_a_plan_without_a_sidecar_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(b"code")
    with pytest.raises(BackendError, match="was not built by this user"):
        plans.check(path, V86, GPU)
    assert plans.check(path, V86, GPU, trust=True) is None


def test_another_gpu_or_version_is_named(stored: Path) -> None:
    with pytest.raises(BackendError, match=r"built for NVIDIA H100 \(9\.0\), this is NVIDIA A100 \(8\.0\)"):
        plans.check(stored, V86, OTHER)
    with pytest.raises(BackendError, match=r"built with TensorRT 8\.6\.0, this is 10\.3\.0"):
        plans.check(stored, V103, GPU)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"_type": "other"}', '{"_type": "quantkit.plan", "_version": 1}'])
def test_an_odd_sidecar_is_an_error(stored: Path, text: str) -> None:
    plans.sidecar(stored).write_text(text)
    with pytest.raises((StorageError, BackendError)):
        plans.check(stored, V86, GPU)
    with pytest.raises(StorageError):
        plans.check(stored, V86, GPU, trust=True)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no engine"):
        plans.check(tmp_path / "none.plan", V86, GPU)


def test_equal_keys_have_one_place() -> None:
    assert plans.plan_path({"a": 1, "b": [2]}) == plans.plan_path({"b": [2], "a": 1})
    assert plans.plan_path({"a": 1}) != plans.plan_path({"a": 2})
