"""Whose turn it is: a round robin over requests, by slices of about equal size. Pure: it knows no threads and no clock."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Slice(Generic[Owner]):
    """Some pairs of one request."""

    owner: Owner
    indices: NDArray[np.intp]
    """Positions of the pairs in the request: [n]."""
    tokens: int


class FairQueue(Generic[Owner]):
    """Requests in slices, taken in turn.

    A request of a thousand pairs has many slices and one of five pairs has one, and a turn is one slice: what a small
    request waits for is the number of requests before it, not their size. Round robin over pieces of equal cost is what
    deficit round robin (Shreedhar and Varghese, 1995) approximates for packets that cannot be cut; a request can be.

    Within a request the longest pairs come first, so that a slice holds pairs of nearly the same length.

    Args:
        slice_tokens: Most tokens of a slice. A pair that has more is a slice of its own.
    """

    def __init__(self, slice_tokens: int) -> None:
        self._slice_tokens = slice_tokens
        self._waiting: OrderedDict[Owner, deque[Slice[Owner]]] = OrderedDict()

    def __len__(self) -> int:
        """Requests with pairs left to take."""
        return len(self._waiting)

    def add(self, owner: Owner, lengths: NDArray[np.int32]) -> None:
        """Queue a request behind the others.

        Args:
            owner: The request, which is not queued yet.
            lengths: Tokens of each of its pairs: int32 [n].
        """
        slices: deque[Slice[Owner]] = deque()
        order = np.argsort(-lengths.astype(np.int64), kind="stable")
        start, tokens = 0, 0
        for position, length in enumerate(lengths[order].tolist()):
            if tokens and tokens + length > self._slice_tokens:
                slices.append(Slice(owner=owner, indices=order[start:position], tokens=tokens))
                start, tokens = position, 0
            tokens += length
        if start < len(order):
            slices.append(Slice(owner=owner, indices=order[start:], tokens=tokens))
            self._waiting[owner] = slices

    def discard(self, owner: Owner) -> None:
        """Forget what is left of a request, if anything is."""
        self._waiting.pop(owner, None)

    def take(self, most_tokens: int) -> list[Slice[Owner]]:
        """Take the slices whose turn it is, one of each request in turn.

        Args:
            most_tokens: Where to stop. The first slice is taken in any case.

        Returns:
            Slices in order of their turns; empty if nothing waits.
        """
        taken: list[Slice[Owner]] = []
        tokens = 0
        while self._waiting:
            owner, slices = next(iter(self._waiting.items()))
            if taken and tokens + slices[0].tokens > most_tokens:
                break
            tokens += slices[0].tokens
            taken.append(slices.popleft())
            if slices:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
        return taken
