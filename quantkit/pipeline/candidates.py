"""The one place where a plan becomes a quantized graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import QdqResult, insert_qdq
from quantkit.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.tables.table import CalibrationTable


def build_candidate(workspace: Workspace, graph: ModelProto, table: CalibrationTable, plan: PrecisionPlan) -> QdqResult:
    """The graph with Q/DQ pairs by the plan.

    Args:
        workspace: settings and calibration data, for what else is done to the weights.
        graph: the FP32 graph, with fixed or free shapes.
        table: ranges of the activations.
        plan: what becomes INT8.
    """
    return insert_qdq(graph, table, plan)


def candidate_identity(workspace: Workspace) -> dict[str, Any]:
    """What decides a candidate beside graph, table and plan: JSON values that enter the key of every kept result."""
    return {}
