"""Cutting a stream of pairs into shards: by position and by whole queries, and by nothing that a run could change."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError

MOST_BYTES = 16 * 2**20
"""A shard whose texts have so many bytes ends with its query, whatever its number of pairs."""
STRETCH = 4
"""A query longer than so many shards is cut after all: memory has a bound, and a query none."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a pair stands in its file, and what decides on the cut before it."""

    query: str
    size_bytes: int
    """Of its texts, about."""
    start: int
    """A byte of a JSON lines file, a row of a Parquet file."""
    stop: int
    number: int
    """Its line, or its row, as a reader would count it."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Consecutive pairs of one file."""

    file: int
    """Position of the file in the input."""
    start: int
    stop: int
    first: int
    """The line, or the row, of its first pair."""
    pairs: int


class ShardTable:
    """Every shard of an input, 40 bytes each: a thousand million pairs make a table of some 40 MB.

    Args:
        rows: int64 [shards, 5], the fields of :class:`Shard` in their order.
    """

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Shard:
        file, start, stop, first, pairs = (int(value) for value in self.rows[index])
        return Shard(file=file, start=start, stop=stop, first=first, pairs=pairs)

    @property
    def pairs(self) -> int:
        """Pairs of the input."""
        return int(self.rows[:, 4].sum())

    def save(self, path: Path) -> None:
        """Write it for :meth:`load`."""
        with path.open("wb") as file:
            np.save(file, self.rows)

    @classmethod
    def load(cls, path: Path) -> ShardTable:
        """Open a table without reading it whole."""
        return cls(np.load(path, mmap_mode="r"))


def cut_shards(files: Iterable[Iterable[Mark]], *, shard_pairs: int, most_bytes: int = MOST_BYTES) -> ShardTable:
    """Cut files of pairs into shards.

    A shard ends at the first change of query after ``shard_pairs`` pairs or ``most_bytes`` bytes, with its file, or, inside
    one query, at :data:`STRETCH` times as much. Nothing else is looked at, so the same input is always cut alike.

    Args:
        files: The pairs of each file, in order; read once, and nothing of them is kept.
        shard_pairs: Pairs of a shard, about.
        most_bytes: Bytes of a shard's texts, about.

    Raises:
        InputError: ``shard_pairs`` is below 1, or there is no pair.
    """
    if shard_pairs < 1:
        raise InputError("shard_pairs is too small", got=shard_pairs, allowed="1 or more")
    table = array("q")
    for position, marks in enumerate(files):
        pairs = size = start = first = stop = 0
        query = None
        for mark in marks:
            full = max(pairs / shard_pairs, size / most_bytes)
            if full >= STRETCH or (full >= 1 and mark.query != query):
                table.extend((position, start, stop, first, pairs))
                pairs = size = 0
            if not pairs:
                start, first = mark.start, mark.number
            query, stop = mark.query, mark.stop
            pairs += 1
            size += mark.size_bytes
        if pairs:
            table.extend((position, start, stop, first, pairs))
    if not table:
        raise InputError("the input holds no pair", allowed='records with "query" and "passage"')
    return ShardTable(np.asarray(table, dtype=np.int64).reshape(-1, 5))
