"""GLUE from the hub, through `datasets`; where the hub cannot be reached, one sentence after a second, not retries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantkit.data.examples import Examples
from quantkit.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from quantkit.data.glue import Task

HUB_DATASET = "nyu-mll/glue"

PROBE_SECONDS = 5.0
"""How long the hub may take to answer before it counts as unreachable."""


def hub_examples(task: Task, split: str) -> Examples:
    """One split of a GLUE task from the hub, or from the copy that `datasets` keeps of it.

    Args:
        task: a task with a `hub_config`.
        split: its name in the task's table.

    Raises:
        DataError: the hub cannot be reached and there is no copy; or a row has no text or none of the task's labels.
        MissingDependencyError: `datasets` is not installed.
    """
    source = f"{HUB_DATASET}/{task.hub_config}[{task.splits[split].hub}]"
    rows = _load(HUB_DATASET, task.hub_config, task.splits[split].hub)
    names = (*task.text_columns, task.label_column)
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise DataError(f"{source} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}.")
    texts, labels = [], []
    for number, (*row, label) in enumerate(zip(*(list(rows[name]) for name in names), strict=True)):
        if not all(isinstance(text, str) for text in row):
            raise DataError(f"{source}, row {number}: a text is missing.")
        texts.append(tuple(row))
        try:
            labels.append(task.read_label(label))
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error.message}") from None
    return Examples(tuple(texts), task.label_array(labels), source, split)


def _load(name: str, config: str, split: str) -> Any:
    """The data set's rows as a `datasets.Dataset`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("The package datasets is not installed.", "Run: pip install datasets") from error
    try:
        if _reachable(name):
            return datasets.load_dataset(name, config, split=split)
        with _offline():
            return datasets.load_dataset(name, config, split=split)
    # What the hub's client raises differs between its versions (httpx, requests, OSError, its own).
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} ({config}) could not be loaded from the hub: {reason}",
            "Use --data DIR with a folder in the GLUE TSV layout, or a file of your own.",
        ) from error


def _reachable(name: str) -> bool:
    """Whether the hub answers; asked once, because the client's own retries take 23 seconds without a network."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except Exception:
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Tells the hub's client and `datasets` for a while to use their local copies only.

    Both read HF_HUB_OFFLINE once, when they are imported, so the variable comes too late here.
    """
    import datasets
    import huggingface_hub

    places = [huggingface_hub.constants, datasets.config]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
