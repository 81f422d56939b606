"""How fast a worker has been of late."""

from __future__ import annotations

_KEPT = 0.95
"""Share of the past that each batch leaves: the last twenty or so count."""


class Throughput:
    """Tokens a second of one worker: recent tokens over recent seconds, so that a small batch weighs little."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self._tokens = self._tokens * _KEPT + tokens
        self._seconds = self._seconds * _KEPT + seconds

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second while it computes; None before the first batch."""
        return self._tokens / self._seconds if self._seconds else None
