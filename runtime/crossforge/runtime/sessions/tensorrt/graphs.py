"""CUDA graphs of the shapes that come most often, for engines of classic TensorRT.

A graph holds addresses and the state of the execution context that it was recorded from. So each has a context of its own,
which runs nothing else, and all are dropped when memory that they point to moves. TensorRT for RTX records by itself.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crossforge.profiles import CrossforgeWarning, DeviceLostError, EngineError
from crossforge.runtime.sessions.tensorrt.cuda import Cuda

Key = tuple[int, ...]
"""Profile, batch and sequence."""
CAPTURE_AFTER = 4
"""Runs of a shape before it is recorded, which costs a run and more; a shape that comes no more does not repay it."""
MOST_GRAPHS = 16
"""For each lane. A graph takes memory on the host and the device; the one that was not used for longest gives way."""


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    graph: Any
    """``cudaGraphExec_t``."""
    context: Any
    """What it was recorded from: alive as long as the graph, and used for nothing else."""


class ShapeGraphs:
    """The graphs of one lane. Used by one thread at a time, as the lane is.

    Args:
        cuda: The device's calls.
        stream: The lane's stream.
        capture_after: Runs of a shape before it is recorded.
        most: Graphs to hold.
    """

    def __init__(self, cuda: Cuda, stream: Any, *, capture_after: int = CAPTURE_AFTER, most: int = MOST_GRAPHS) -> None:
        self._cuda = cuda
        self._stream = stream
        self._capture_after = capture_after
        self._most = most
        self._recorded: OrderedDict[Key, _Recorded] = OrderedDict()
        self._runs: Counter[Key] = Counter()  # no more entries than the profiles have shapes
        self._refused = False

    @property
    def keys(self) -> tuple[Key, ...]:
        """The shapes that are held, the one that was not used for longest first."""
        return tuple(self._recorded)

    def launch(self, key: Key) -> bool:
        """Put a shape's graph on the stream; says whether there is one."""
        recorded = self._recorded.get(key)
        if recorded is None:
            return False
        self._recorded.move_to_end(key)
        self._cuda.launch(recorded.graph, self._stream)
        return True

    def count(self, key: Key) -> bool:
        """Count a run of a shape that has no graph; says whether it is to be recorded now."""
        self._runs[key] += 1
        return not self._refused and self._runs[key] >= self._capture_after

    def record(self, key: Key, prepare: Callable[[], Any], enqueue: Callable[[Any], None]) -> None:
        """Record a shape for its next run. Nothing may be running on the stream.

        What cannot be recorded is said once, in a warning, and nothing is recorded any more; the graphs that are there stay.

        Args:
            key: The shape.
            prepare: Makes an execution context that is set to the shape.
            enqueue: Puts a run of that context on the stream, and neither waits nor allocates.

        Raises:
            DeviceLostError: The GPU answers no more.
        """
        try:
            context = prepare()
            enqueue(context)  # a first run settles what follows from the shape; recorded, it would be repeated each time
            self._cuda.synchronize(self._stream)
            graph = self._cuda.capture(self._stream, lambda: enqueue(context))
        except DeviceLostError:
            raise
        except EngineError as error:
            self._refused = True
            warnings.warn(
                f"a batch of {key[1]} x {key[2]} cannot become a CUDA graph, so batches run without one ({error})",
                CrossforgeWarning,
                stacklevel=2,
            )
            return
        self._recorded[key] = _Recorded(graph=graph, context=context)
        if len(self._recorded) > self._most:
            self._drop(next(iter(self._recorded)))

    def clear(self) -> None:
        """Drop every graph, since what they point to moves or ends. Shapes that still come are recorded anew."""
        for key in self.keys:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._cuda.destroy_graph(self._recorded.pop(key).graph)
        self._runs[key] = 0
