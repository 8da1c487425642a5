"""A TensorRT engine as quantkit's `Engine`, and runners that share it among threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantkit.backends.base import CheckedRunner, Engine, EngineInfo
from quantkit.backends.feeds import checked_feed
from quantkit.backends.trt.audit import Audit
from quantkit.backends.trt.cuda import Device
from quantkit.backends.trt.execution import Execution, Phases
from quantkit.backends.trt.plan import LoadedPlan
from quantkit.backends.trt.rules import Rules
from quantkit.errors import BackendError
from quantkit.types import Array, FeedDict, TensorSpec

NAME = "tensorrt"


class ContextRunner(CheckedRunner):
    """An execution context of its own on a shared engine: one a thread."""

    def __init__(self, plan: LoadedPlan, owner: Device, rules: Rules, *, graphs: bool) -> None:
        super().__init__(NAME, _specs(plan.inputs), _specs(plan.outputs), rules.symbols, rules.rows)
        self.execution = Execution(plan, owner, graphs=graphs)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        return self.execution.run(feed)

    def _release(self) -> None:
        self.execution.close()


class TrtEngine(Engine):
    """A loaded engine with one execution context; `runner` gives more, for other threads.

    `infer` returns fresh arrays, float ones as float32, and takes int64 token arrays though the engine may want int32.

    Args:
        info: what the engine is.
        plan: the deserialized plan; the engine owns it.
        owner: the GPU.
        rules: what a feed must look like.
        audit: what the engine really computes.
        facts: further JSON values for a report: build time, tensors without a scale.
        graphs: capture CUDA graphs.
    """

    def __init__(
        self,
        info: EngineInfo,
        plan: LoadedPlan,
        owner: Device,
        rules: Rules,
        *,
        audit: Audit | None = None,
        facts: Mapping[str, Any] | None = None,
        graphs: bool = False,
    ) -> None:
        super().__init__(NAME, info, _specs(plan.inputs), _specs(plan.outputs), rules.symbols, rules.rows)
        self._rules = rules
        self.audit = audit
        self.facts = dict(facts or {})
        self.plan = plan
        self._owner = owner
        self._graphs = graphs
        self._execution = Execution(plan, owner, graphs=graphs)
        self._runners: list[ContextRunner] = []

    @property
    def details(self) -> dict[str, Any]:
        """What a record keeps of this engine besides the common fields; JSON values."""
        audit = {"audit": self.audit.as_json()} if self.audit else {}
        return {**self.facts, **audit}

    def runner(self) -> ContextRunner:
        """A runner with a context, stream and buffers of its own; closed with the engine at the latest.

        Raises:
            BackendError: the engine is closed, or there is not enough device memory.
        """
        with self._lock:
            if self._closed:
                raise BackendError("This tensorrt engine is closed and gives no runner.", "Load it again.")
            runner = self._new_runner()
            self._runners.append(runner)
            return runner

    def measure(self, feed: FeedDict) -> Phases:
        """Times of one inference by phases, in milliseconds.

        Raises:
            BackendError: as `infer`.
        """
        with self._lock:
            if self._closed:
                raise BackendError("This tensorrt engine is closed and cannot be measured.", "Load it again.")
            return self._measure(checked_feed(feed, self._inputs, self._symbols, self._rows))

    @property
    def graph_refusal(self) -> str:
        """Why CUDA graphs are not used although they were asked for; empty when they are."""
        return self._execution.graph_refusal

    def _new_runner(self) -> ContextRunner:
        return ContextRunner(self.plan, self._owner, self._rules, graphs=self._graphs)

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        return self._execution.run(feed)

    def _measure(self, feed: dict[str, Array]) -> Phases:
        return self._execution.measure(feed)

    def _release(self) -> None:
        for runner in self._runners:
            runner.close()
        self._execution.close()
        self.plan.close()


def _specs(tensors: Any) -> tuple[TensorSpec, ...]:
    """TensorSpecs of the engine's tensors."""
    return tuple(TensorSpec(t.name, t.dtype, t.shape) for t in tensors)
