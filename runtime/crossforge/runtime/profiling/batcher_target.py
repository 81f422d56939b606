"""A micro-batcher under load, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from crossforge.profiles import InputError
from crossforge.runtime.microbatch import MicroBatchConfig, MicroBatcher
from crossforge.runtime.profiling.load import Target
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.reranker import Reranker


class BatcherTarget:
    """A micro-batcher under load: the records' requests in their order, again and again. Tokenizes on its threads.

    Args:
        batcher: Takes the requests; the caller keeps it.
        records: One request each.
        deadline_s: Of each request, from when it is sent.
    """

    def __init__(self, batcher: MicroBatcher, records: Sequence[QueryRecord], *, deadline_s: float | None = None) -> None:
        if not records:
            raise InputError("there is no request to send", allowed="one record or more")
        self._batcher = batcher
        self._deadline_s = deadline_s
        self._requests = cycle([(record.query, [passage.text for passage in record.passages]) for record in records])

    def submit(self) -> Future[Any]:
        """Send the next request; see :meth:`Target.submit`."""
        query, passages = next(self._requests)
        return self._batcher.schedule(query, passages, deadline_s=self._deadline_s)


@contextmanager
def batcher_target(
    reranker: Reranker,
    records: Sequence[QueryRecord],
    *,
    config: MicroBatchConfig | None = None,
    deadline_s: float | None = None,
) -> Iterator[Target]:
    """A reranker behind a micro-batcher of its own, for as long as the context lasts.

    Args:
        reranker: What to measure; the caller keeps it.
        records: The requests, sent in their order, again and again.
        config: The micro-batcher's.
        deadline_s: Of each request.

    Raises:
        InputError: There are no records, or a text cannot be used.
    """
    batcher = MicroBatcher(reranker, config)
    try:
        target = BatcherTarget(batcher, records, deadline_s=deadline_s)
        target.submit().result()  # the first call of an engine is not like the others
        yield target
    finally:
        batcher.close(drain=False)
