from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossforge.profiles import InputError
from crossforge.runtime.distributed.shards import STRETCH, Mark, Shard, ShardTable, cut_shards

QUERIES = st.lists(st.integers(1, 12), min_size=1, max_size=30)
"""Passages of each query."""


def marks_of(passages: list[int], size_bytes: int = 1) -> list[Mark]:
    queries = [f"q{number}" for number, count in enumerate(passages) for _ in range(count)]
    return [
        Mark(query=query, size_bytes=size_bytes, start=10 * i, stop=10 * i + 9, number=i + 1)
        for i, query in enumerate(queries)
    ]


def shards_of(table: ShardTable) -> list[Shard]:
    return [table[i] for i in range(len(table))]


@given(st.lists(QUERIES, min_size=1, max_size=3), st.integers(1, 20))
def test_shards_partition_the_pairs_in_their_order(files: list[list[int]], shard_pairs: int) -> None:
    table = cut_shards([marks_of(passages) for passages in files], shard_pairs=shard_pairs)

    for position, passages in enumerate(files):
        number = 0
        for shard in shards_of(table):
            if shard.file == position:
                assert (shard.start, shard.first) == (10 * number, number + 1)
                number += shard.pairs
                assert shard.stop == 10 * (number - 1) + 9
        assert number == sum(passages)
    assert table.pairs == sum(map(sum, files))


@given(QUERIES, st.integers(4, 20))
def test_a_query_that_fits_is_in_one_shard(passages: list[int], shard_pairs: int) -> None:
    marks = marks_of(passages)  # at most 12 passages: less than STRETCH x 4
    shards_of_query: dict[str, set[int]] = {}
    for i, shard in enumerate(shards_of(cut_shards([marks], shard_pairs=shard_pairs))):
        for mark in marks[shard.first - 1 : shard.first - 1 + shard.pairs]:
            shards_of_query.setdefault(mark.query, set()).add(i)
    assert all(len(shards) == 1 for shards in shards_of_query.values())


@given(QUERIES, st.integers(1, 20))
def test_a_shard_is_full_but_for_the_last_and_never_beyond_its_stretch(passages: list[int], shard_pairs: int) -> None:
    sizes = [shard.pairs for shard in shards_of(cut_shards([marks_of(passages)], shard_pairs=shard_pairs))]
    assert all(size >= shard_pairs for size in sizes[:-1])
    assert all(size <= STRETCH * shard_pairs for size in sizes)


def test_long_texts_end_a_shard_before_its_pairs_do() -> None:
    table = cut_shards([marks_of([1] * 10, size_bytes=400)], shard_pairs=1_000, most_bytes=1_000)
    assert Counter(shard.pairs for shard in shards_of(table)) == {3: 3, 1: 1}


def test_one_endless_query_is_cut_after_all() -> None:
    table = cut_shards([marks_of([100])], shard_pairs=10)
    assert [shard.pairs for shard in shards_of(table)] == [40, 40, 20]


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = cut_shards([marks_of([3, 4, 5])], shard_pairs=2)
    table.save(tmp_path / "table.npy")
    assert shards_of(ShardTable.load(tmp_path / "table.npy")) == shards_of(table)


def test_an_input_without_pairs_is_refused() -> None:
    with pytest.raises(InputError, match="holds no pair"):
        cut_shards([[]], shard_pairs=1)
