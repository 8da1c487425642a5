"""GLUE from the hub: the call that is made, the rows that come back, and how it fails without a network."""

import time

import numpy as np
import pytest

from quantkit.data import hub
from quantkit.data.glue import load_examples
from quantkit.errors import DataError

datasets = pytest.importorskip("datasets")


def answer(monkeypatch, columns, calls=None):
    """Makes `datasets.load_dataset` return these columns."""

    def load_dataset(path, name=None, *, split=None):
        if calls is not None:
            calls.append((path, name, split, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_every_task_is_asked_for_by_its_name_on_the_hub(monkeypatch):
    from quantkit.data.glue import TASKS

    monkeypatch.setattr(hub, "_reachable", lambda name: True)
    for task in TASKS.values():
        if not task.hub_config:
            continue
        calls = []
        columns = {name: [f"{name} {i}" for i in range(3)] for name in task.text_columns}
        answer(monkeypatch, columns | {"label": [1.5, 0.0, 5.0] if task.regression else [1, 0, 1]}, calls)
        for split, where in task.splits.items():
            examples = load_examples(task, split)
            assert calls.pop()[:3] == ("nyu-mll/glue", task.name, where.hub)
            assert examples.texts[2] == tuple(f"{name} 2" for name in task.text_columns)
            assert examples.labels.dtype == (np.float32 if task.regression else np.int64)
            assert examples.labels.tolist() == ([1.5, 0.0, 5.0] if task.regression else [1, 0, 1])
            assert examples.source == f"nyu-mll/glue/{task.name}[{where.hub}]"


def test_without_the_hub_the_local_copy_is_used_and_the_settings_are_put_back(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Unreachable())
    calls = []
    answer(monkeypatch, {"sentence": ["x"], "label": [1]}, calls)
    assert len(load_examples("sst2", "eval")) == 1
    assert calls == [("nyu-mll/glue", "sst2", "validation", True)]
    assert huggingface_hub.constants.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is False


class Unreachable:
    """A hub that cannot be reached."""

    def dataset_info(self, name, timeout):
        raise ConnectionError("no network")


def test_the_hub_is_asked_once_whether_it_answers(monkeypatch):
    import huggingface_hub

    asked = []

    class Api:
        def dataset_info(self, name, timeout):
            asked.append((name, timeout))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    calls = []
    answer(monkeypatch, {"sentence": ["x"], "label": [1]}, calls)
    load_examples("sst2", "train")
    assert asked == [("nyu-mll/glue", hub.PROBE_SECONDS)]
    assert calls == [("nyu-mll/glue", "sst2", "train", False)]


def test_offline_is_one_sentence_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(hub, "_reachable", lambda name: False)
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"nyu-mll/glue \(sst2\) could not be loaded") as caught:
        load_examples("sst2", "eval")
    assert time.perf_counter() - started < 5
    assert "--data DIR" in caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": ["a", "b"], "label": [1, -1]}, r"row 1: label -1 is not one of SST-2's"),
        ({"sentence": ["a", None], "label": [1, 1]}, r"row 1: a text is missing"),
        ({"text": ["a"], "label": [1]}, r"has no column 'sentence'; it has text, label"),
    ],
)
def test_rows_that_cannot_be_used_are_named(monkeypatch, columns, message):
    monkeypatch.setattr(hub, "_reachable", lambda name: True)
    answer(monkeypatch, columns)
    with pytest.raises(DataError, match=message):
        load_examples("sst2", "eval")
