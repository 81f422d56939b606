"""The workload of a run: how many tokens its pairs have under a bundle's tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from crossforge.profiles import InputError, Workload
from crossforge.runtime.records import QueryRecord
from crossforge.runtime.tokenization import PairTokenizer


def workload_from_records(records: Iterable[QueryRecord], tokenizer: PairTokenizer) -> Workload:
    """Count pair lengths and candidates, as the reranker would see them.

    Args:
        records: Queries with their passages. A query without passages counts for nothing.
        tokenizer: The bundle's; its contract cuts long pairs.

    Raises:
        InputError: No query has a passage, or a text cannot be used.
    """
    pair_lengths: Counter[int] = Counter()
    candidates: Counter[int] = Counter()
    for record in records:
        if not record.passages:
            continue
        try:
            pairs = tokenizer.encode(record.query, [passage.text for passage in record.passages])
        except InputError as error:
            raise InputError(
                f"query {record.qid!r}: {error.what}", got=error.got, allowed=error.allowed, fix=error.fix
            ) from error
        pair_lengths.update(pairs.lengths.tolist())
        candidates[len(pairs)] += 1
    if not candidates:
        raise InputError("the workload holds no pair", allowed="a query with one passage or more")
    return Workload(pair_lengths=pair_lengths, candidates=candidates)
