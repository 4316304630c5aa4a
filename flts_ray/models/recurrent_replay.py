"""Work that is done again and again on the same tensors: on a GPU recorded once, then replayed.

Design choices: a small network keeps a GPU waiting for the processor that starts its hundreds of
operations, a recorded step is started as one (CUDA graphs); the work takes no argument and gives
no answer, all it reads and writes are tensors that stay where they are, so the same code runs
unrecorded on a CPU; a device or driver that cannot record does the work as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog
import torch

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Runs nothing; gives what does the recorded work once more. Raises RuntimeError if it cannot."""

WARM_UP = 3
"""Times that work is done before it is recorded, in which libraries choose how to do it."""


class Replayed:
    """Call it to do the work once. record: None where nothing is recorded."""

    def __init__(self, work: Work, record: Record | None) -> None:
        self._work, self._record, self._before = work, record, WARM_UP

    def __call__(self) -> None:
        if self._record is not None and self._before == 0:
            try:
                self._work = self._record(self._work)
            except RuntimeError as error:
                structlog.get_logger().warning("step_not_recorded", error=str(error))
            self._record = None
        self._before -= self._record is not None
        self._work()


def recorder(device: torch.device) -> Record | None:
    """How work is recorded on this device; None for a CPU, which waits for nobody."""
    return partial(_cuda_graph, device) if device.type == "cuda" else None


def _cuda_graph(device: torch.device, work: Work) -> Work:
    # Recording listens to the current device alone: work on another one would run, unrecorded.
    # One that breaks off leaves its stream the current one.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError:
            generator.graphsafe_set_state(before)  # or it would wait for the end of the recording
            raise
    replay: Work = graph.replay
    return replay


def half_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 with weights in float32, on a GPU that has it; else nothing changes.

    A CPU, where half precision is slower, never uses it.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
