"""Running an ONNX Runtime session through IO bindings: inputs go to the device first, logits come to an array of ours.

What it saves is ONNX Runtime's own buffer for the logits, and input copies inside the run, where they would stand between
kernels. Whether that pays for ids of a hundred kilobytes has not been measured; their way is host to device and back
either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OUTPUT_TYPES: dict[str, np.dtype[np.floating[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


class BoundRuns:
    """Runs batches through bindings, as many at the same time as there are threads that call.

    A binding holds the inputs of one run, so no two runs may share one. Each run takes a binding that is free, or makes one;
    there come to be as many as ever ran at once. Device memory of the inputs is the session's own arena's, under its limit,
    and goes back to it after the run.

    Args:
        session: ``onnxruntime.InferenceSession`` with one output, float32 or float16 [batch, labels].
        labels: Columns of the output.
    """

    def __init__(self, session: Any, labels: int) -> None:
        self._session = session
        self._labels = labels
        (output,) = session.get_outputs()
        self._output: str = output.name
        self._dtype = _OUTPUT_TYPES[output.type]
        self._free: deque[Any] = deque()  # its append and pop are atomic

    @property
    def free(self) -> int:
        """Bindings that no run holds; all of them while nothing runs."""
        return len(self._free)

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Compute logits.

        Args:
            batch: int64 [batch, sequence] for each input.

        Returns:
            float32 [batch, labels], owned by the caller.
        """
        try:
            binding = self._free.pop()
        except IndexError:
            binding = self._session.io_binding()
        rows = len(next(iter(batch.values())))
        logits: NDArray[np.floating[Any]] = np.empty((rows, self._labels), dtype=self._dtype)
        try:
            for name, ids in batch.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(ids))  # copies to where the graph reads it
            binding.bind_output(self._output, "cpu", 0, self._dtype, logits.shape, logits.ctypes.data)
            binding.synchronize_inputs()  # a run does not wait for the copies
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        finally:
            # Also after a failure: a binding that kept an input would answer the next batch that lacks it.
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
            self._free.append(binding)
        return logits.astype(np.float32, copy=False)
