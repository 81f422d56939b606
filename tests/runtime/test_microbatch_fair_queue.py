from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossforge.runtime.microbatch.fair_queue import FairQueue
from support.strategies import lengths, no_deadline

sizes = st.integers(min_value=1, max_value=2000)


def as_lengths(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.asarray(values, dtype=np.int32)


@given(requests=st.lists(lengths, max_size=6), slice_tokens=sizes, round_tokens=sizes)
@no_deadline
def test_every_pair_is_taken_once(requests: list[list[int]], slice_tokens: int, round_tokens: int) -> None:
    queue: FairQueue[int] = FairQueue(slice_tokens)
    for owner, values in enumerate(requests):
        queue.add(owner, as_lengths(values))
    taken: Counter[tuple[int, int]] = Counter()
    while len(queue):
        for piece in queue.take(round_tokens):
            taken.update((piece.owner, i) for i in piece.indices.tolist())
            assert piece.tokens == sum(requests[piece.owner][i] for i in piece.indices)

    assert taken == Counter((owner, i) for owner, values in enumerate(requests) for i in range(len(values)))
    assert queue.take(round_tokens) == []


@given(requests=st.lists(lengths, max_size=6), slice_tokens=sizes, round_tokens=sizes)
@no_deadline
def test_no_slice_and_no_round_is_too_large_unless_nothing_smaller_will_do(
    requests: list[list[int]], slice_tokens: int, round_tokens: int
) -> None:
    queue: FairQueue[int] = FairQueue(slice_tokens)
    for owner, values in enumerate(requests):
        queue.add(owner, as_lengths(values))
    while len(queue):
        pieces = queue.take(round_tokens)
        assert all(piece.tokens <= slice_tokens or len(piece.indices) == 1 for piece in pieces)
        assert sum(piece.tokens for piece in pieces) <= round_tokens or len(pieces) == 1


@given(large=st.integers(min_value=1, max_value=300), small=st.integers(min_value=1, max_value=10))
@no_deadline
def test_a_turn_is_one_slice_whatever_the_size_of_the_request(large: int, small: int) -> None:
    queue: FairQueue[str] = FairQueue(100)
    queue.add("large", as_lengths([50] * large))
    for i in range(small):
        queue.add(f"small {i}", as_lengths([50, 50]))
    turns = [piece.owner for piece in queue.take(100_000)]

    assert turns[: small + 1] == ["large", *(f"small {i}" for i in range(small))]


def test_a_request_keeps_its_place_when_a_round_is_full() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for owner in "abc":
        queue.add(owner, as_lengths([100, 100]))
    rounds = [[piece.owner for piece in queue.take(200)] for _ in range(3)]

    assert rounds == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_the_longest_pairs_of_a_request_come_first() -> None:
    queue: FairQueue[str] = FairQueue(25)
    queue.add("a", as_lengths([5, 20, 10, 5]))

    assert [piece.indices.tolist() for piece in queue.take(100)] == [[1], [2, 0, 3]]


def test_a_discarded_request_is_not_taken() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.add("a", as_lengths([10, 10]))
    queue.add("b", as_lengths([10]))
    queue.discard("a")
    queue.discard("unknown")

    assert [piece.owner for piece in queue.take(100)] == ["b"]


def test_a_request_without_pairs_does_not_wait() -> None:
    queue: FairQueue[str] = FairQueue(10)
    queue.add("a", as_lengths([]))

    assert len(queue) == 0
