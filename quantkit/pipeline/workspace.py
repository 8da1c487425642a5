"""A model, a task and a backend, loaded once and shared by the stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends import get_backend
from quantkit.backends.base import Backend
from quantkit.data.examples import Examples
from quantkit.data.glue import Task, get_task, load_examples
from quantkit.data.sampling import CalibrationSample, calibration_sample
from quantkit.errors import InputError
from quantkit.pipeline.settings import DEMO, DEMO_TASK, Settings
from quantkit.report.record import context
from quantkit.types import Watcher

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.data.tokenize import TextTokenizer
    from quantkit.distributed.cluster import Cluster
    from quantkit.network.graph import Network

SHARED = ("task", "model_path", "adapter_path", "network", "tokenizer", "evaluation", "sample")
"""What does not depend on the backend."""


@dataclass
class Workspace:
    """Everything that the stages need, each thing loaded when it is first asked for.

    Args:
        settings: what the user asked for.
        watcher: who is told how it goes.
        cluster: workers that share the work; None without.
    """

    settings: Settings
    watcher: Watcher
    cluster: Cluster | None = None
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What stages want to keep for each other; each key belongs to one stage."""

    def on(self, settings: Settings) -> Workspace:
        """A workspace with another backend's settings that shares what this one has loaded of model and data."""
        other = Workspace(settings, self.watcher, self.cluster)
        other.__dict__.update({name: value for name, value in self.__dict__.items() if name in SHARED})
        return other

    @cached_property
    def task(self) -> Task:
        """The task; UnknownNameError when there is none of that name."""
        return get_task(self.settings.task_name)

    @cached_property
    def backend(self) -> Backend:
        """The backend with its own options; MissingDependencyError when it is not installed."""
        backend = get_backend(self.settings.backend)
        backend.require()
        return backend.configured(self.settings.engine, lambda: (self.model_path, self.adapter_path))

    @property
    def helpers(self) -> Cluster | None:
        """The workers, where this backend's work can be shared."""
        return self.cluster if self.backend.shareable else None

    def context(self) -> dict[str, Any]:
        """The record's part on machine, versions, settings and workers."""
        return context(self.settings.as_json(), self.cluster.as_json() if self.cluster else None)

    @property
    def is_demo(self) -> bool:
        """Whether the packaged model is used."""
        return self.settings.model == DEMO

    @cached_property
    def model_path(self) -> Path:
        """Folder or .onnx file of the model; a hub id is downloaded into the hub's own cache."""
        if self.is_demo:
            from quantkit.data.demo import demo_model_dir

            return demo_model_dir()
        path = Path(self.settings.model)
        if path.exists():
            return path
        from quantkit.pipeline.hub import fetch_model

        return fetch_model(self.settings.model)

    @cached_property
    def adapter_path(self) -> Path | None:
        """Folder of the adapter, if there is one; the demo's task brings its own."""
        if self.settings.adapter:
            return Path(self.settings.adapter)
        if self.is_demo and self.task.name == DEMO_TASK:
            from quantkit.data.demo import demo_adapter_dir

            return demo_adapter_dir()
        return None

    @cached_property
    def network(self) -> Network:
        """The model as a graph.

        Raises:
            ModelError: it cannot be read, or its outputs do not fit the task.
        """
        from quantkit.network.model import load_model

        if self.settings.memory:
            from quantkit.pipeline.memory import LOADING, check_room, give_back_early

            give_back_early()
            check_room(self.settings.memory, LOADING * model_bytes(self.model_path), "Loading the model")
        network = load_model(self.model_path, self.adapter_path)
        expected = self.task.num_labels
        if network.num_labels not in (0, expected):
            raise InputError(
                f"The labels of {self.task.name} need {expected} output(s); the model has {network.num_labels}.",
                "Choose the task that the model, or its --adapter, was trained for.",
            )
        return network

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer: --tokenizer, else the model's folder."""
        from quantkit.data.tokenize import load_tokenizer

        if self.settings.tokenizer:
            return load_tokenizer(Path(self.settings.tokenizer))
        if self.model_path.is_file():
            raise InputError(
                f"{self.model_path} is an ONNX file and brings no tokenizer.",
                "Name its folder with --tokenizer.",
            )
        return load_tokenizer(self.model_path)

    @cached_property
    def evaluation(self) -> Examples:
        """The rows that are evaluated, in file order."""
        rows = self._load("eval", self.settings.data)
        return rows.head(self.settings.limit) if self.settings.limit else rows

    @cached_property
    def sample(self) -> CalibrationSample:
        """The rows that calibrate: of the train split, none of which stands in the evaluation split."""
        settings = self.settings
        train = self._load("train", settings.calib_data or settings.data)
        held_out = None if self._one_file else self._evaluation_for_check()
        return calibration_sample(train, settings.calib_samples, seed=settings.seed, exclude=held_out)

    @cached_property
    def tuning(self) -> Examples:
        """The rows that decide a search: train rows that neither calibrate nor stand in the evaluation split.

        Where the calibration sample leaves too few, all that are left are used.
        """
        settings = self.settings
        train = self._load("train", settings.calib_data or settings.data)
        taken = [self.sample.examples, *([] if self._one_file else [self._evaluation_for_check()])]
        seed = settings.seed + 1  # another draw than the calibration sample's
        return calibration_sample(train, settings.tune_rows, seed=seed, exclude=taken).examples

    @property
    def fixed_graph(self) -> ModelProto:
        """The FP32 graph with the shapes that engines are compiled for: fixed ones, where the backend wants them."""
        if self.backend.dynamic:
            return self.network.proto
        return self.network.fixed(self.settings.batch, self.settings.seq_len)

    @property
    def free_graph(self) -> ModelProto | None:
        """The FP32 graph with free shapes; None where the model has fixed ones, or the backend wants them."""
        if not self.backend.free_shapes:
            return None
        shape = self.network.index.shape(self.network.input_names[0]) or ()
        return None if any(isinstance(extent, int) for extent in shape) else self.network.proto

    @property
    def _one_file(self) -> bool:
        """Whether one file is all there is, so that calibration and evaluation read the same rows."""
        settings = self.settings
        return bool(settings.data and Path(settings.data).is_file() and not settings.calib_data)

    def _evaluation_for_check(self) -> Examples:
        """All evaluation rows, whatever --limit says."""
        return self._load("eval", self.settings.data)

    def _load(self, split: str, data: str) -> Examples:
        """Rows of a split from where the settings say."""
        settings = self.settings
        with self.watcher.stage(f"read {self.task.name} {split}"):
            return load_examples(
                self.task,
                split,
                data or None,
                text_columns=settings.text_columns or None,
                label_column=settings.label_column or None,
            )


def model_bytes(path: Path) -> int:
    """Bytes of a model's files: of an ONNX file, or of all weights in a folder."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
