"""How a micro-batcher is set, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass, fields

from crossforge.profiles import InputError

DEFAULT_QUEUE_TOKENS = 262_144
"""Room for a thousand pairs of 256 tokens."""
BATCHES_AHEAD = 4
"""Batches a worker that are planned together: enough to sort by length, few enough that a newcomer soon has its turn."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchConfig:
    """Settings of a :class:`MicroBatcher`; None means what suits the reranker."""

    max_queue_tokens: int = DEFAULT_QUEUE_TOKENS
    """Most tokens of requests that were taken and are not computed, padding left out."""
    slice_tokens: int | None = None
    """Tokens that a request may bring into a round before the next has its turn; None is one batch's budget."""
    round_tokens: int | None = None
    """Tokens that are planned together; None is four batches a worker."""
    workers: int | None = None
    """Batches that run at the same time; None is the reranker's."""
    tokenizer_threads: int = 2
    """Threads that tokenize for callers who do not wait: ``schedule`` and the coroutines."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise InputError(f"{field.name} is too small", got=value, allowed="1 or more")


@dataclass(frozen=True, kw_only=True)
class BatcherStats:
    """A micro-batcher at one moment; what counts, counts since it was made."""

    pending_requests: int
    """Taken, and not answered yet."""
    pending_tokens: int
    """Tokens of those that are not computed yet, padding left out."""
    answered: int
    """Requests that got their scores."""
    rejected: int
    """Requests that found the queue full."""
    expired: int
    """Requests whose deadline passed."""
    cancelled: int
    failed: int
    """Requests that were answered with any other error after they were taken."""
    batches: int
    pairs: int
    """Pairs that were computed."""
    tokens: int
    """Their tokens, padding left out."""
    padded_tokens: int
    """What the engine computed for them."""
    worker_restarts: int
