"""Windows of passages that are too long for the model: where they are cut, and which of them won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crossforge.profiles import InputError, RequestTooLargeError

if TYPE_CHECKING:
    from crossforge.runtime.tokenization import EncodedPairs

DEFAULT_OVERLAP = 0.25
MAX_OVERLAP = 0.9
"""Beyond it, a passage costs more than ten times its own length."""


class Pooling(StrEnum):
    """How the scores of a passage's windows become one."""

    MAX = "max"


@dataclass(frozen=True, kw_only=True)
class Chunking:
    """How a passage that is too long is read: in overlapping windows."""

    pooling: Pooling = Pooling.MAX
    """The best window's score is the passage's (MaxP: Dai and Callan, 2019)."""
    overlap: float = DEFAULT_OVERLAP
    """Share of the longest possible window that two neighbours have in common, at least: 0.0 to :data:`MAX_OVERLAP`."""
    window_tokens: int | None = None
    """Longest window, in tokens of the passage; a passage that is longer is split. None: what the model reads of one."""
    max_tokens: int | None = None
    """Most tokens that all windows of a call may have, queries included; more is refused before they are cut."""

    def __post_init__(self) -> None:
        if self.pooling not in tuple(Pooling):
            raise InputError("unknown chunk", got=repr(self.pooling), allowed=f"None, {', '.join(Pooling)}")
        if not 0 <= self.overlap <= MAX_OVERLAP:
            raise InputError("the overlap of windows is out of range", got=self.overlap, allowed=f"0.0 to {MAX_OVERLAP}")
        for name in ("window_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is too small", got=value, allowed="1 or more")

    @classmethod
    def parse(cls, chunk: Chunking | str | None) -> Chunking | None:
        """What a caller passes as ``chunk``: nothing, a pooling's name, or all of it.

        Raises:
            InputError: It is none of these.
        """
        if chunk is None or isinstance(chunk, Chunking):
            return chunk
        return cls(pooling=chunk)  # type: ignore[arg-type]  # a plain string, which __post_init__ checks


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a passage that was too long."""

    index: int
    """Which of the passage's windows, from 0."""
    count: int
    """How many the passage has."""
    start: int
    """The first character of the passage that the window reads, of which it may lack a part."""
    end: int
    """The character after the last one."""


@dataclass(frozen=True, kw_only=True)
class PassageWindows:
    """Which rows of :class:`EncodedPairs` are windows of which pair's passage."""

    first_row: NDArray[np.intp]
    """Where the windows of each pair begin: [n]. A pair that fits has one row."""
    spans: NDArray[np.intp]
    """Start and end of each row's text in its passage, in characters: [rows, 2]."""

    def find_best(self, relevance: NDArray[np.float32]) -> NDArray[np.intp]:
        """The row of each pair's best window, the first of equals: float32 [rows] -> [n]."""
        bounds = [*self.first_row.tolist(), len(self.spans)]
        best = [start + int(relevance[start:stop].argmax()) for start, stop in pairwise(bounds)]
        return np.asarray(best, dtype=np.intp)

    def describe(self, rows: NDArray[np.intp]) -> tuple[Window | None, ...]:
        """What the chosen row of each pair, [n], is of its passage: None where it is the whole."""
        counts = np.diff(self.first_row, append=len(self.spans)).tolist()
        indices, spans = (rows - self.first_row).tolist(), self.spans[rows].tolist()
        return tuple(
            Window(index=index, count=count, start=start, end=end) if count > 1 else None
            for index, count, (start, end) in zip(indices, counts, spans, strict=True)
        )


def cut_windows(tokens: int, room: int, overlap: float) -> list[tuple[int, int]]:
    """Cut a text into windows of equal size, as few and then as short as cover it.

    Equal windows leave no padding in a batch. That they are short costs less, and does not leave a last window that holds
    almost what the one before it holds.

    Args:
        tokens: Length of the text, 1 or more.
        room: Longest window, 1 or more.
        overlap: Share of ``room`` that neighbours have in common, at least; they share up to two tokens more.

    Returns:
        Start and end of each window, in tokens; one window if the text fits.
    """
    if tokens <= room:
        return [(0, tokens)]
    count, size = _count_and_size(tokens, room, overlap)
    starts = [i * (tokens - size) // (count - 1) for i in range(count)]
    return [(start, start + size) for start in starts]


def _count_and_size(tokens: int, room: int, overlap: float) -> tuple[int, int]:
    if tokens <= room:
        return 1, tokens
    shared = min(int(room * overlap), room - 1)
    count = 1 + ceil((tokens - room) / (room - shared))
    return count, ceil((tokens + (count - 1) * shared) / count)


def split_passages(
    pairs: EncodedPairs,
    rooms: Sequence[int],
    offsets: Sequence[Sequence[tuple[int, int]] | None],
    characters: Sequence[int],
    chunking: Chunking,
) -> EncodedPairs:
    """Give each pair as many rows as its passage has windows.

    Args:
        pairs: With whole passages; ``n`` of them.
        rooms: Longest window of each pair's passage, in tokens: [n].
        offsets: Start and end of each token in its text, in characters, of each passage that does not fit: [n].
        characters: Length of each passage: [n].
        chunking: How much windows overlap.

    Returns:
        A row a window, with :attr:`EncodedPairs.windows`. What was unknown or cut is told of the whole pair, in each of
        its rows.

    Raises:
        RequestTooLargeError: They have more than ``chunking.max_tokens``.
    """
    _check_tokens(pairs, rooms, chunking)
    cuts = [cut_windows(len(ids), room, chunking.overlap) for ids, room in zip(pairs.passages, rooms, strict=True)]
    owner = np.repeat(np.arange(len(pairs)), [len(cut) for cut in cuts])
    passages = tuple(ids[start:end] for ids, cut in zip(pairs.passages, cuts, strict=True) for start, end in cut)
    beside = pairs.lengths - np.asarray([len(ids) for ids in pairs.passages], dtype=np.int32)
    spans = [
        span for cut, places, length in zip(cuts, offsets, characters, strict=True) for span in _spans(cut, places, length)
    ]
    return replace(
        pairs.take(owner),
        passages=passages,
        lengths=(beside[owner] + [len(ids) for ids in passages]).astype(np.int32),
        windows=PassageWindows(
            first_row=np.searchsorted(owner, np.arange(len(pairs))),
            spans=np.asarray(spans, dtype=np.intp).reshape(-1, 2),
        ),
    )


def _check_tokens(pairs: EncodedPairs, rooms: Sequence[int], chunking: Chunking) -> None:
    """Count the windows' tokens before there are any: short windows of long texts would be millions of arrays."""
    if chunking.max_tokens is None:
        return
    different = {(head, id(ids)): i for i, (head, ids) in enumerate(zip(pairs.head_of_pair, pairs.passages, strict=True))}
    tokens = 0
    for i in different.values():
        length = len(pairs.passages[i])
        count, size = _count_and_size(length, rooms[i], chunking.overlap)
        tokens += count * (size + int(pairs.lengths[i]) - length)
    if tokens > chunking.max_tokens:
        raise RequestTooLargeError(
            "the windows of the passages are too many",
            got=f"{tokens:,} tokens",
            allowed=f"up to {chunking.max_tokens:,}",
            fix="Send fewer or shorter passages, or ask for longer windows with less overlap.",
        )


def _spans(
    cut: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]] | None, characters: int
) -> list[tuple[int, int]]:
    """The characters of each window. Together they are all of the text, what no token stands for included."""
    if offsets is None or len(cut) == 1:
        return [(0, characters)]
    last = len(cut) - 1
    return [
        (offsets[start][0] if i else 0, offsets[end - 1][1] if i < last else characters)
        for i, (start, end) in enumerate(cut)
    ]
