"""The one place where a plan becomes a quantized graph: ranges, refinement, Q/DQ pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantkit.network.precision import PrecisionPlan
from quantkit.network.qdq import QdqResult, insert_qdq
from quantkit.pipeline.refinement import Refined, refine, refinement_path, steps_of
from quantkit.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from onnx import ModelProto

    from quantkit.tables.table import CalibrationTable


def build_candidate(workspace: Workspace, graph: ModelProto, table: CalibrationTable, plan: PrecisionPlan) -> QdqResult:
    """The graph with Q/DQ pairs by the plan.

    Args:
        workspace: what decides the refinement.
        graph: the FP32 graph, with fixed or free shapes.
        table: ranges of the activations.
        plan: what becomes INT8.
    """
    return insert_qdq(graph, table, plan, refined_for(workspace, plan).refinement)


def refined_for(workspace: Workspace, plan: PrecisionPlan) -> Refined:
    """The refinement for a plan, kept in memory; plans of one grid that agree on residuals share theirs."""
    key = ("refinement", plan.symmetric, plan.places.residual)
    if key not in workspace.kept:
        workspace.kept[key] = refine(workspace, plan)
    found: Refined = workspace.kept[key]
    return found


def candidate_identity(workspace: Workspace, plan: PrecisionPlan) -> dict[str, Any]:
    """What decides a candidate beside graph, table and plan: JSON values that enter the key of every kept result."""
    steps, _ = steps_of(workspace)
    modes = ("gemm", "gemm+residual")
    return {"refinements": [refinement_path(workspace, replace(plan, mode=mode), steps).name for mode in modes]}
