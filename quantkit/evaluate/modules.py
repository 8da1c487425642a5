"""GLUE's five metrics as modules of the `evaluate` library, made here and never fetched from a hub.

    from quantkit.evaluate.modules import F1
    F1().compute(predictions=[1, 0], references=[1, 1])      # {"f1": 0.667, "f1_stderr": 0.33}

Importing this module imports `evaluate`, which takes about two seconds: `quantkit.evaluate.metrics` does it when
a metric is first computed. Rows are kept in memory; nothing is written to disk.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from quantkit.environment import variable
from quantkit.evaluate import formulas

# `evaluate` imports transformers, which would tell that there is no PyTorch.
with variable("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"):
    import datasets
    import evaluate


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """What the five have in common; `compute` returns {key: value, key + "_stderr": standard error}.

    Args:
        config_name: as in evaluate.Metric.
        keep_in_memory: False lets `evaluate` keep rows in files, which it needs for several processes.
        kwargs: the other arguments of evaluate.Metric.
    """

    key: ClassVar[str]
    element: ClassVar[str]
    summary: ClassVar[str]

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any) -> None:
        super().__init__(config_name, keep_in_memory, **kwargs)

    def _build_data_dir(self) -> str:
        """The folder for rows kept in files; the library makes it even where everything stays in memory."""
        return str(self._data_dir_root) if self.keep_in_memory else str(super()._build_data_dir())

    def _info(self) -> evaluate.MetricInfo:
        """What `evaluate` shows about the metric, and the types of the rows."""
        columns = {name: datasets.Value(self.element) for name in ("predictions", "references")}
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="predictions, references: one value a row, as many of the one as of the other.",
            features=datasets.Features(columns),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float] | None:
        """The metric of the rows given, or of those that were added before.

        Rows that are given whole do not take the library's way through an Arrow table: it fingerprints that table by
        pickling type objects, which fails with some builds of pyarrow, and a metric must not.
        """
        if predictions is not None and references is not None and not kwargs and self.writer is None:
            return self._compute(predictions, references)
        result: dict[str, float] | None = super().compute(predictions=predictions, references=references, **kwargs)
        return result

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        """The metric of all rows, by the function of its name in `quantkit.evaluate.formulas`."""
        formula = getattr(formulas, self.key)
        value, stderr = formula(np.asarray(predictions, self.element), np.asarray(references, self.element))
        return {self.key: value, f"{self.key}_stderr": stderr}


class Accuracy(GlueMetric):
    """Share of rows whose label is right."""

    key, element, summary = "accuracy", "int64", "Share of rows whose label is right."


class F1(GlueMetric):
    """F1 of class 1."""

    key, element, summary = "f1", "int64", "Harmonic mean of precision and recall of class 1."


class Matthews(GlueMetric):
    """Matthews correlation coefficient."""

    key, element, summary = "matthews", "int64", "Correlation of predicted and true classes."


class Pearson(GlueMetric):
    """Pearson's correlation."""

    key, element, summary = "pearson", "float64", "Linear correlation of predicted and true scores."


class Spearman(GlueMetric):
    """Spearman's rank correlation."""

    key, element, summary = "spearman", "float64", "Correlation of the ranks of predicted and true scores."
