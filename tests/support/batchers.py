"""A micro-batcher that is kept busy, and what it computed."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from crossforge.runtime import FakeSession
from crossforge.runtime.microbatch import MicroBatcher
from support.sessions import GatedSession

QUERY = "where is the city"
TOKENS = 8
"""Of the query with "berlin"."""


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def busy(batcher: MicroBatcher, session: GatedSession) -> Future[Any]:
    """A request that the only worker is computing."""
    future = batcher.submit(QUERY, ["berlin"])
    session.wait_for_a_batch()
    return future


def computed_pairs(session: FakeSession) -> int:
    return sum(len(batch["input_ids"]) for batch in session.batches)
