"""What a feed must obey beyond the engine's own types and shapes; a plan does not know it, its sidecar does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.backends.feeds import SEGMENTS, graph_inputs, rows_of, symbols_of
from quantkit.backends.trt.plan import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Rules:
    """Names of the inputs' changing dimensions, and sizes of the tables that inputs are looked up in.

    Attributes:
        symbols: see `quantkit.backends.feeds.symbols_of`.
        rows: see `quantkit.backends.feeds.rows_of`.
    """

    symbols: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_graph(cls, proto: Any) -> Rules:
        """The rules of an ONNX graph."""
        return cls(symbols_of(graph_inputs(proto)), rows_of(proto))

    @classmethod
    def of_bert(cls, model: Path) -> Rules:
        """The rules of a BERT that is defined from its folder."""
        from quantkit.network.bert import INPUTS
        from quantkit.network.config import BertConfig

        config = BertConfig.from_dir(model)
        rows = {"input_ids": config.vocab_size, SEGMENTS: config.type_vocab_size}
        return cls(dict.fromkeys(INPUTS, ("batch", "sequence")), rows)

    @classmethod
    def of_tensors(cls, tensors: Iterable[Tensor]) -> Rules:
        """What can be said of token inputs (batch, sequence) without a sidecar."""
        words = ("batch", "sequence")
        return cls(
            {t.name: tuple(w if n == -1 else None for w, n in zip(words, t.shape, strict=False)) for t in tensors}
        )
