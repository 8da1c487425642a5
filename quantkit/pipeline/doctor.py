"""What this machine can do, as JSON."""

from __future__ import annotations

import platform
from typing import Any

from quantkit.backends import BACKENDS, get_backend
from quantkit.errors import QuantkitError
from quantkit.files import cache_dir
from quantkit.report.record import available_cores, cpu_name, versions


def examine() -> dict[str, Any]:
    """Machine, versions, backends with what they compute, the demo's packages, the cache folder."""
    return {
        "machine": {"cpu": cpu_name(), "cores": available_cores(), "system": platform.platform()},
        "versions": versions(),
        "backends": [backend_row(name) for name in BACKENDS],
        "demo": [demo_line()],
        "cache": str(cache_dir()),
    }


def backend_row(name: str) -> dict[str, Any]:
    """One backend: its precisions, and its own facts or the reason why it cannot be used."""
    backend = get_backend(name)
    if reason := backend.available():
        return {"name": name, "precisions": [], "says": reason, "facts": None}
    facts = backend.describe()
    capabilities = ", ".join(str(c) for c in facts.get("capabilities", ()))
    device = facts.get("device", "")
    where = "" if device == cpu_name() else f" on {device}"  # the machine's own line has its name already
    says = f"{facts.get('version', '')}{where} ({capabilities})"
    return {"name": name, "precisions": list(backend.precisions()), "says": says, "facts": facts}


def demo_line() -> str:
    """Whether the demo's model and sentences are installed."""
    from quantkit.data.demo import demo_model_dir

    try:
        demo_model_dir()
    except QuantkitError as error:
        return f"demo: {error}"
    return "demo: the packaged model is installed"
