"""The nine GLUE tasks and the demo's in one table, and the loader that reads any of them from any source.

Sources, in the order `load_examples` looks at them: a file (TSV, CSV, JSON lines, Parquet with named columns, or plain
text for calibration), a folder in the standard GLUE TSV layout, the hub (`nyu-mll/glue`, through `datasets`), and for
the demo task the package that ships its sentences. Columns, label order, splits and metrics are those of
A. Wang et al., "GLUE" (ICLR 2019), and of the data set's card on the hub.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.data.examples import Examples
from quantkit.data.text import Table, find_columns, missing_columns, open_table, read_sentences, text_cell
from quantkit.errors import DataError, InputError, UnknownNameError
from quantkit.registry import Registry
from quantkit.types import Array

_SPLIT_ALIASES = {
    "dev": "eval", "validation": "eval", "validation_matched": "eval", "dev_matched": "eval",
    "dev_mismatched": "eval_mismatched", "validation_mismatched": "eval_mismatched", "mismatched": "eval_mismatched",
}  # fmt: skip

_USUAL_TEXTS = {
    1: (("sentence",), ("text",), ("review",), ("content",)),
    2: (
        ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
        ("text1", "text2"), ("text_a", "text_b"),
    ),
}  # fmt: skip
_USUAL_LABELS = (("label",), ("labels",), ("gold_label",), ("score",), ("target",), ("class",), ("sentiment",))


@dataclass(frozen=True)
class Split:
    """Where one split of a task lies.

    Attributes:
        hub: its name on the hub.
        file: its file in the GLUE TSV layout.
        rows: how many rows the full split has; a local file may hold fewer.
    """

    hub: str
    file: str
    rows: int


@dataclass(frozen=True)
class Task:
    """What a data set is made of and how a model is judged on it.

    Attributes:
        name: how users call it.
        folder: its folder in the GLUE TSV layout, also its title.
        text_columns: one or two columns of text, as the hub names them.
        labels: class names in the order of the model's outputs; None for regression.
        metrics: names in `quantkit.evaluate.metrics`, the one to report first at the front.
        splits: "train", "eval", and for MNLI "eval_mismatched".
        tsv_text_columns: the columns of text in the TSV files.
        tsv_label_column: the label's column there; on the hub it is always "label".
        tsv_headerless: all columns, where the official TSV has no header (CoLA).
        skips_broken_rows: the official TSV holds a few rows with the wrong number of cells (QQP), which every
            published figure leaves out; elsewhere such a row is an error.
        max_score: the greatest score of a regression; the least is 0.
        hub_config: its name inside the hub's GLUE; empty for the demo's task.
    """

    name: str
    folder: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    splits: Mapping[str, Split] = field(repr=False)
    tsv_text_columns: tuple[str, ...]
    tsv_label_column: str = "label"
    tsv_headerless: tuple[str, ...] = ()
    skips_broken_rows: bool = False
    max_score: float = 5.0
    hub_config: str = ""

    label_column = "label"

    @property
    def regression(self) -> bool:
        """Whether the label is a score, not a class."""
        return self.labels is None

    @property
    def num_labels(self) -> int:
        """Outputs of a model for this task; 1 for regression."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def eval_splits(self) -> tuple[str, ...]:
        """Names of the splits that accuracy is measured on."""
        return tuple(name for name in self.splits if name != "train")

    def split_name(self, split: str) -> str:
        """The split's name in this table; "dev", "validation", "validation_mismatched" and the like are understood.

        Raises:
            UnknownNameError: the task has no such split.
        """
        name = _SPLIT_ALIASES.get(split.lower(), split.lower())
        if name not in self.splits:
            raise UnknownNameError(f"split of {self.folder}", split, self.splits)
        return name

    def read_label(self, value: Any) -> float:
        """A label as a class number or a score.

        Args:
            value: a class name in any case, a class number, or a number for regression; text or not.

        Raises:
            DataError: it is none of the task's labels, or a score that is no number from 0 to `max_score`.
        """
        if self.labels is None:
            score = _number(value)
            if not 0.0 <= score <= self.max_score:  # NaN fails too
                raise DataError(f"score {value!r} is not a number from 0 to {self.max_score:g}.")
            return score
        if isinstance(value, str):
            name = value.strip().casefold().replace("-", "_").replace(" ", "_")
            if name in self.labels:
                return self.labels.index(name)
        number = _number(value)
        if number not in range(len(self.labels)):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(self.labels))
            raise DataError(f"label {value!r} is not one of {self.folder}'s: {known}.")
        return int(number)

    def label_array(self, labels: list[float]) -> Array:
        """Labels in the type that metrics want: int64 classes or float32 scores, shape (rows,)."""
        return np.array(labels, dtype=np.float32 if self.regression else np.int64)


def _number(value: Any) -> float:
    """A number or a numeral as float; NaN for everything else, booleans included."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return math.nan
    return math.nan


class _Tasks(Registry[Task]):
    """The tasks by name; case, "-" and "_" do not matter, so that GLUE's own spellings work ("SST-2", "sts-b")."""

    def __getitem__(self, name: str) -> Task:
        return super().__getitem__(self._known(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(self._known(name))

    def _known(self, name: str) -> str:
        """The registered spelling of a name, or the name itself."""
        return next((known for known in self if _plain(known) == _plain(name)), name)


def _plain(name: str) -> str:
    """A name without what spellings differ in."""
    return name.strip().lower().replace("-", "").replace("_", "")


def _splits(train: int, evaluation: int) -> dict[str, Split]:
    """The splits of a task with one evaluation split, by their sizes."""
    return {"train": Split("train", "train.tsv", train), "eval": Split("validation", "dev.tsv", evaluation)}


_PAIR = ("sentence1", "sentence2")
_YES_NO = ("entailment", "not_entailment")

_ALL = (
    Task(
        "cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), _splits(8551, 1043),
        ("sentence",), tsv_headerless=("source", "label", "mark", "sentence"), hub_config="cola",
    ),
    Task(
        "sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), _splits(67349, 872),
        ("sentence",), hub_config="sst2",
    ),
    Task(
        "mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), _splits(3668, 408),
        ("#1 String", "#2 String"), "Quality", hub_config="mrpc",
    ),
    Task(
        "stsb", "STS-B", _PAIR, None, ("pearson", "spearman"), _splits(5749, 1500),
        _PAIR, "score", hub_config="stsb",
    ),
    Task(
        "qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"),
        _splits(363_846, 40_430), ("question1", "question2"), "is_duplicate", skips_broken_rows=True, hub_config="qqp",
    ),
    Task(
        "mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
        {
            "train": Split("train", "train.tsv", 392_702),
            "eval": Split("validation_matched", "dev_matched.tsv", 9815),
            "eval_mismatched": Split("validation_mismatched", "dev_mismatched.tsv", 9832),
        },
        _PAIR, "gold_label", hub_config="mnli",
    ),
    Task(
        "qnli", "QNLI", ("question", "sentence"), _YES_NO, ("accuracy",), _splits(104_743, 5463),
        ("question", "sentence"), hub_config="qnli",
    ),
    Task("rte", "RTE", _PAIR, _YES_NO, ("accuracy",), _splits(2490, 277), _PAIR, hub_config="rte"),
    Task(
        "wnli", "WNLI", _PAIR, ("not_entailment", "entailment"), ("accuracy",), _splits(635, 71),
        _PAIR, hub_config="wnli",
    ),
    Task(
        "rotten_tomatoes", "rotten_tomatoes", ("sentence",), ("negative", "positive"), ("accuracy",),
        _splits(7463, 1067), ("sentence",),
    ),
)  # fmt: skip

TASKS: Registry[Task] = _Tasks("task", {task.name: task for task in _ALL})
"""Name -> task; spellings such as "SST-2" are understood, an unknown name raises UnknownNameError."""


def get_task(name: str) -> Task:
    """The task of this name; UnknownNameError, with the closest names, when there is none."""
    return TASKS[name]


def load_examples(
    task: Task | str,
    split: str,
    data: str | Path | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
) -> Examples:
    """Reads one split of a task.

    Args:
        task: the task or its name.
        split: "train", "eval", "eval_mismatched" (MNLI), or the hub's and GLUE's own names for them. For a file it only
            says what the rows are for: "train" rows calibrate and may come without labels.
        data: a file, a folder in the GLUE TSV layout (the one that holds SST-2/ and so on, or the task's own), or None
            for the hub (for the demo's task: the package that ships it).
        text_columns: names of the columns of text in a file, as many as the task has; None or empty tries the task's
            own names, then the usual ones.
        label_column: name of the label's column there, likewise.

    Raises:
        DataError: the source cannot be reached, or a row of it cannot be read; the message names file and line.
        InputError: columns were named, and the source is no file.
        UnknownNameError: no such task or split.
        MissingDependencyError: the demo's package, `datasets` or pyarrow is needed and not installed.
    """
    task = TASKS[task] if isinstance(task, str) else task
    split = task.split_name(split)
    if data is not None:
        path = Path(data)
        if path.is_dir():
            path = _file_in_folder(task, split, path)
        return _from_file(task, split, path, tuple(text_columns or ()), label_column or "")
    if text_columns or label_column:
        raise InputError("Columns can be named for a file only.", "Give the file with --data.")
    if not task.hub_config:
        from quantkit.data.demo import demo_examples

        return demo_examples(split)
    from quantkit.data.hub import hub_examples

    return hub_examples(task, split)


def _file_in_folder(task: Task, split: str, folder: Path) -> Path:
    """The split's TSV file in a GLUE folder or in the task's own.

    Raises:
        DataError: it is in neither, or the folder is another task's (RTE's files would pass for WNLI's).
    """
    name = task.splits[split].file
    for candidate in (folder / task.folder / name, folder / task.name / name):
        if candidate.is_file():
            return candidate
    owner = next((other for other in _ALL if folder.resolve().name in (other.folder, other.name)), task)
    if owner is not task:
        raise DataError(
            f"{folder} is the folder of {owner.folder}, and the task is {task.folder}.",
            f"Use --task {owner.name}, or give the folder that holds {task.folder}/.",
        )
    if (folder / name).is_file():
        return folder / name
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
    raise DataError(
        f"{folder} holds neither {task.folder}/{name} nor {name}; it holds {there}.",
        "Give the folder in the GLUE layout, or a file of your own.",
    )


def _from_file(task: Task, split: str, path: Path, text_columns: tuple[str, ...], label_column: str) -> Examples:
    """The rows of one file; labels may be missing in calibration data only."""
    if path.suffix.lower() == ".txt":
        if split != "train":
            raise DataError(
                f"{path} is plain text and holds no labels, so nothing can be evaluated on it.",
                "Use plain text for calibration only, and a file with a label column to evaluate.",
            )
        return Examples(tuple((line,) for line in read_sentences(path)), None, str(path), split)
    broken: list[int] | None = [] if task.skips_broken_rows else None
    table = open_table(path, headerless=task.tsv_headerless, broken=broken)
    texts = _text_columns(task, table, text_columns)
    label = _label_column(task, table, label_column, needed=split != "train")
    rows, labels = [], []
    for position, cells in table.select((*texts, *label)):
        row = tuple(text_cell(table, position, name, cell) for name, cell in zip(texts, cells, strict=False))
        if not any(text.strip() for text in row):
            raise DataError(f"{table.where(position)}: the text is empty.", "Take the row out.")
        rows.append(row)
        if label:
            try:
                labels.append(task.read_label(cells[-1]))
            except DataError as error:
                raise DataError(f"{table.where(position)}: {error.message}", _label_hint(label[0])) from None
    found = task.label_array(labels) if label else None
    return Examples(tuple(rows), found, str(path), split, len(broken or ()))


def _label_hint(column: str) -> str:
    """The next step for a label that is not the task's."""
    return f"Labels were read from column {column!r}; name another one with --label-column, or choose another task."


def _text_columns(task: Task, table: Table, named: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the columns of text in a table.

    Raises:
        DataError: they cannot be found, or more or fewer were named than the task has.
    """
    count = len(task.text_columns)
    if named and len(named) != count:
        raise DataError(
            f"{task.folder} has {count} text{'s' if count > 1 else ''} a row, and {len(named)} columns were named: "
            f"{', '.join(named)}.",
            "Name one with --text-column, for pairs two.",
        )
    usual = (task.tsv_text_columns, task.text_columns, *_USUAL_TEXTS[count])
    found = find_columns(table, named, usual, "the text")
    if not found:
        raise missing_columns(table, "the text", usual, "--text-column")
    return found


def _label_column(task: Task, table: Table, named: str, *, needed: bool) -> tuple[str, ...]:
    """Name of the label's column; empty where there is none and none is needed.

    Raises:
        DataError: it is needed and cannot be found, or the column that was named does not exist.
    """
    usual = ((task.tsv_label_column,), *_USUAL_LABELS)
    found = find_columns(table, (named,) if named else (), usual, "the label")
    if not found and needed:
        raise missing_columns(table, "the label", usual, "--label-column")
    return found
