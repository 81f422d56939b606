"""Requests like those of a workload, made of filler text: how long a batch takes depends on its shape, not on its words."""

from __future__ import annotations

import numpy as np

from crossforge.profiles import Workload
from crossforge.profiles.workload import quantile
from crossforge.runtime.inputs import MAX_TEXT_CHARS
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer

QUERY = "How long does it take?"
_SENTENCE = "The river flows through the middle of the city, and 3,520,031 people live there. "


def typical_request(workload: Workload, tokenizer: PairTokenizer) -> EncodedPairs:
    """One query with the workload's median number of candidates, whose lengths are spread as the workload's are.

    Args:
        workload: What is asked; lengths beyond the tokenizer's contract are cut to it.
        tokenizer: The bundle's.
    """
    count = quantile(workload.candidates, 0.5)
    return request_of_lengths([quantile(workload.pair_lengths, (i + 0.5) / count) for i in range(count)], tokenizer)


def long_passage(tokenizer: PairTokenizer) -> str:
    """A text that fills the model's longest pair."""
    return _SENTENCE * min(MAX_TEXT_CHARS // len(_SENTENCE), tokenizer.truncation.max_length)


def request_of_lengths(lengths: list[int], tokenizer: PairTokenizer) -> EncodedPairs:
    """One query with a passage for each length, in tokens of the whole pair."""
    filler = tokenizer.encode(QUERY, [long_passage(tokenizer)])
    around = int(filler.lengths[0]) - len(filler.passages[0])
    passages = tuple(filler.passages[0][: max(0, length - around)] for length in lengths)
    none = np.zeros(len(lengths), dtype=np.int32)
    return EncodedPairs(
        heads=filler.heads,
        head_of_pair=np.zeros(len(lengths), dtype=np.intp),
        passages=passages,
        lengths=np.asarray([around + len(ids) for ids in passages], dtype=np.int32),
        truncated=none.astype(bool),
        query_truncated=none.astype(bool),
        unknown_tokens=none,
        mostly_unknown=none.astype(bool),
    )
