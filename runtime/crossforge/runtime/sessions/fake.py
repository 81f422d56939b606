"""A session without a model, for tests of whatever embeds a reranker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import EngineError, ExecutionProvider

ScoreRow = Callable[[NDArray[np.int64]], float]


def _mean_token_id(ids: NDArray[np.int64]) -> float:
    return float(ids.mean()) / 1000


class FakeSession:
    """Scores each row by a function of its unpadded token ids, and remembers every batch.

    Args:
        score_row: From one pair's token ids, int64 [length], to its logit. The default is deterministic and depends on
            nothing but the pair, so scores must not change with order or batch mates.
        labels: Columns of the output; column ``k`` is the logit plus ``k``.
    """

    input_names: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    provider = ExecutionProvider.CPU

    def __init__(self, score_row: ScoreRow = _mean_token_id, *, labels: int = 1) -> None:
        self._score_row = score_row
        self._labels = labels
        self._closed = False
        self.batches: list[dict[str, NDArray[np.int64]]] = []
        """Every batch that was run, in order."""

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Score a batch; see :meth:`Session.run`."""
        if self._closed:
            raise EngineError("the session is closed")
        self.batches.append(dict(batch))
        lengths = batch["attention_mask"].sum(axis=1)
        logits = [self._score_row(ids[:length]) for ids, length in zip(batch["input_ids"], lengths, strict=True)]
        return (np.asarray(logits, dtype=np.float32)[:, None] + np.arange(self._labels, dtype=np.float32)).astype(np.float32)

    def close(self) -> None:
        """Refuse further batches."""
        self._closed = True
