"""The seam between planning and an inference engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import ExecutionProvider


class Session(Protocol):
    """A loaded model. ``run`` may be called from several threads at once."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs that ``run`` must be given, no more and no less."""
        ...

    @property
    def provider(self) -> ExecutionProvider:
        """What really runs the model, read back from the engine."""
        ...

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Compute logits.

        Args:
            batch: int64 [batch, sequence] for each name in ``input_names``; the caller keeps the buffers.

        Returns:
            float32 [batch, labels], owned by the caller.

        Raises:
            EngineError: The engine failed.
        """
        ...

    def close(self) -> None:
        """Free the model; the session cannot run afterwards."""
        ...
