"""One worker: a reranker that scores shards, each by itself."""

from __future__ import annotations

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from crossforge.profiles import Activation, DeploymentProfile, InputError
from crossforge.runtime.distinct import find_distinct
from crossforge.runtime.distributed.formats import format_of
from crossforge.runtime.distributed.job import JobFolder, unfinished
from crossforge.runtime.profiling.memory import read_memory
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import check_finite


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """Everything that a worker has to know; small, and the same for all of them."""

    job: JobFolder
    files: tuple[Path, ...]
    bundle: Path
    provider: str
    precision: str
    deployment: DeploymentProfile
    budget_tokens: int
    activation: Activation | None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What a shard came to."""

    shard: int
    pairs: int
    tokens: int
    """Of the pairs that differ, special tokens included."""
    padded_tokens: int
    """What the engine computed for them."""
    truncated: int
    """Pairs of which the model did not see all."""
    seconds: float
    worker: str
    """Host and process."""
    peak_mb: float
    """Most memory that the worker has held so far, in MB."""


class ShardScorer:
    """Scores shards with one reranker. Close it, or use it as a context manager.

    Batches are planned for each shard alone and for one worker, whatever runs them: so the bytes of a part depend on the
    shard, the bundle and the settings, and on nothing else.

    Args:
        work: What to do.
        threads: Batches that run at the same time, on the CPU.

    Raises:
        CrossforgeError: As :meth:`Reranker.load`, with ``strict``.
    """

    def __init__(self, work: ShardWork, *, threads: int = 1) -> None:
        self._work = work
        self._table = work.job.table()
        self._format = format_of(work.files[0])
        self._reranker = Reranker.load(
            work.bundle,
            provider=work.provider,
            precision=work.precision,
            strict=True,
            deployment=replace(work.deployment, workers=threads, cost=None),
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crossforge") if threads > 1 else None
        self._journal = work.job.journal().open("a", encoding="utf-8", buffering=1)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def score(self, shard: int) -> Receipt | None:
        """Score a shard and put its part into the job's folder; None if it is there already.

        Raises:
            InputError: A text cannot be used.
            EngineError: The engine failed, or answered NaN.
        """
        path = self._work.job.part(shard)
        if path.exists():
            return None
        start = time.perf_counter()
        self._note(event="begin", shard=shard)
        place = self._table[shard]
        rows = self._format.read(self._work.files[place.file], place)
        reranker = self._reranker
        try:
            encoded = reranker.tokenizer.encode_pairs(rows.pairs)
        except InputError as error:
            where = f"{self._work.files[place.file]}, from record {place.first} on"
            raise InputError(f"{where}: {error.what}", got=error.got, allowed=error.allowed, fix=error.fix) from error
        distinct = find_distinct(encoded)
        logits, plans = reranker.compute_logits(
            distinct.pairs, budget_tokens=self._work.budget_tokens, workers=1, executor=self._pool
        )
        logits = logits[distinct.position]
        check_finite(logits, reranker.precision)
        scores = reranker.relevance(logits, activation=self._work.activation).astype(np.float32, copy=False)
        with unfinished(path) as writing:
            self._format.write(writing, rows, scores, encoded.truncated)
        receipt = Receipt(
            shard=shard,
            pairs=len(rows.pairs),
            tokens=int(distinct.pairs.lengths.sum()),
            padded_tokens=sum(plan.padded_tokens for plan in plans),
            truncated=int(encoded.truncated.sum()),
            seconds=time.perf_counter() - start,
            worker=self._worker,
            peak_mb=peak_memory_mb(),
        )
        self._note(event="end", **asdict(receipt))
        return receipt

    def close(self) -> None:
        """Free the model."""
        if self._pool is not None:
            self._pool.shutdown()
        self._journal.close()
        self._reranker.close()

    def __enter__(self) -> ShardScorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _note(self, **fields: object) -> None:
        self._journal.write(json.dumps(fields) + "\n")


def peak_memory_mb() -> float:
    """Most memory that this process has held, in MB."""
    return read_memory().peak_bytes / 1e6
