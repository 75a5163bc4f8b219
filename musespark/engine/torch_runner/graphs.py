"""Recorded steps. A decode launches hundreds of small kernels; replaying a CUDA graph launches them at once.

A graph is recorded the first time that its layout (layout.py) is seen, and replayed for every batch of that layout. On
a CPU nothing can be recorded: the same function runs over the same kind of arrays.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from musespark.engine.torch_runner.layout import Layout

log = logging.getLogger(__name__)

MOST_GRAPHS = 64  # the least recently used goes; about 1 MB each beside the memory that all share

Compute = Callable[[Layout, Tensor], Tensor]  # values (…,) int64 on the device -> logits of all rows (N, V)


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    values: Tensor
    logits: Tensor


class Graphs:
    """`compute`, recorded for each layout where `records`."""

    def __init__(self, compute: Compute, *, records: bool) -> None:
        self._compute = compute
        self._records = records
        self._graphs: OrderedDict[Layout, _Recorded] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if records else None

    @property
    def records(self) -> bool:
        return self._records

    def run(self, layout: Layout, values: Tensor) -> Tensor:
        """Logits (N, V), valid until the next run."""
        if not self._records:
            return self._compute(layout, values)
        recorded = self._graphs.get(layout)
        if recorded is None:
            try:
                recorded = self._record(layout, values)
            except RuntimeError:
                # An operation that this card or this build of torch can't record: slower, but not wrong.
                log.exception("a step can't be recorded; decoding goes on without CUDA graphs")
                self._records = False
                self._graphs.clear()
                return self._compute(layout, values)
            self._graphs[layout] = recorded
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(layout)
        recorded.values.copy_(values)
        recorded.graph.replay()
        return recorded.logits

    def _record(self, layout: Layout, values: Tensor) -> _Recorded:
        static = values.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once before, for what libraries set up at their first call
            self._compute(layout, static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._compute(layout, static)
        return _Recorded(graph, static, logits)
