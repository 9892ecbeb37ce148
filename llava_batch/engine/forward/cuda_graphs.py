"""CUDA graphs of the decode step: one for each bucket, all in one memory pool.

A graph replays the kernels that one run of the step launched, on the same addresses; what a step
returns is therefore the graph's own memory, overwritten by the next step of any bucket. Where capture
runs out of memory that bucket is run as it is, where it fails otherwise all are.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llava_batch.engine.device import is_out_of_memory
from llava_batch.engine.stats import Stats

log = logging.getLogger(__name__)

Key = tuple[int, int]
"""(slots, key length)."""
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Run = Callable[[Key], Outputs]

NUM_WARM_UPS = 2
"""Runs before a capture: libraries choose kernels and allocate workspaces in the first."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A graph, and where its results lie."""

    graph: Any
    outputs: Outputs


class Graphs:
    """Captured steps by bucket."""

    def __init__(
        self,
        run: Run,
        idle: Callable[[Key], None],
        device: torch.device,
        stats: Stats,
    ) -> None:
        """run: the step. idle: sets its inputs so that running it changes nothing of use."""
        self._run, self._idle = run, idle
        self._device, self._stats = device, stats
        self._pool: Any = None
        self._stream: Any = None
        """Of all captures: libraries keep a workspace for each stream that they see."""
        self._captured: dict[Key, Captured | None] = {}
        self._gave_up = False

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def warm(self, keys: list[Key]) -> None:
        """Capture these, before any work; the largest first, whose memory the others then share."""
        for key in keys:
            self._prepare(key)

    def _prepare(self, key: Key) -> None:
        if self._gave_up:
            return
        self._captured[key] = None
        try:
            self._captured[key] = self._capture(key)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._stats.memory_backoffs += 1
                log.warning("no memory for a graph of %d slots, they decode without", key[0])
            else:
                self._gave_up = True
                log.warning("the decode step cannot be captured, none is from here on: %s", error)

    def run(self, key: Key) -> Outputs:
        """One step of a bucket, replayed where it was captured."""
        captured = self._captured.get(key)
        if captured is None:
            return self._run(key)
        captured.graph.replay()
        return captured.outputs

    def _capture(self, key: Key) -> Captured:
        """Warm up beside the stream at work, then capture."""
        if self._stream is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails leaves its stream to be the thread's: this block takes it back.
        with torch.cuda.stream(self._stream):
            self._idle(key)
            for _ in range(NUM_WARM_UPS):
                self._run(key)
            # Other threads of the process may allocate meanwhile: only this one's errors count.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = self._run(key)
        current.wait_stream(self._stream)
        return Captured(graph=graph, outputs=outputs)
