"""What is measured: cells of a grid, or the queries of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from crossforge.profiles import InputError
from crossforge.runtime.profiling.options import ProfileOptions
from crossforge.runtime.profiling.report import Skipped
from crossforge.runtime.profiling.texts import compose_texts
from crossforge.runtime.records import QueryRecord, read_run
from crossforge.runtime.tokenization import PairTokenizer

_MOST_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class Call:
    """A query with its candidates."""

    query: str
    passages: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of each pair."""

    @property
    def tokens(self) -> int:
        """Tokens of all pairs, padding left out."""
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a row of the report measures: calls that are alike, asked in turn."""

    candidates: int
    sequence_length: int
    calls: tuple[Call, ...]

    @property
    def tokens(self) -> int:
        """Tokens of a call, or their mean."""
        return round(sum(call.tokens for call in self.calls) / len(self.calls))

    def __str__(self) -> str:
        return f"{self.candidates} candidates of {self.sequence_length} tokens"


def plan_workload(options: ProfileOptions, tokenizer: PairTokenizer) -> tuple[list[Cell], list[Skipped]]:
    """The cells to measure, cheapest first, and what of the grid cannot be measured as asked.

    Raises:
        InputError: The run cannot be read or holds no pair, or no length of the grid fits the model.
    """
    if options.workload is not None:
        return cells_of_run(read_run(options.workload), tokenizer, where=options.workload), []
    return cells_of_grid(options, tokenizer)


def cells_of_grid(options: ProfileOptions, tokenizer: PairTokenizer) -> tuple[list[Cell], list[Skipped]]:
    """Candidates times lengths; see :func:`plan_workload`."""
    limit = tokenizer.truncation.max_length
    most_query = tokenizer.truncation.query_room(tokenizer.template.special_token_count)
    if options.query_tokens > most_query:
        raise InputError("the query would be cut", got=f"{options.query_tokens} tokens", allowed=f"up to {most_query}")
    lengths, skipped = clip_lengths(
        options.lengths, least=options.query_tokens + tokenizer.template.special_token_count + 1, most=limit
    )
    query = compose_texts(lambda texts: _count_query(tokenizer, texts), options.query_tokens, 1)[0]
    cells = []
    for length in lengths:
        room = length - options.query_tokens - tokenizer.template.special_token_count
        texts = compose_texts(lambda texts: _count_passages(tokenizer, query, texts), room, max(options.candidates))
        for candidates in sorted(set(options.candidates)):
            call = Call(query=query, passages=texts[:candidates], lengths=(length,) * candidates)
            cells.append(Cell(candidates=candidates, sequence_length=length, calls=(call,)))
    return _cheapest_first(cells), skipped


def clip_lengths(lengths: Sequence[int], *, least: int, most: int) -> tuple[list[int], list[Skipped]]:
    """The lengths that a model can be given: longer ones become its longest, and too short ones are left out.

    Raises:
        InputError: None is left.
    """
    skipped = [
        Skipped(what=f"{length} tokens", why=f"the model reads {most} at most, which are measured in their place")
        for length in sorted(set(lengths))
        if length > most
    ]
    short = [length for length in sorted(set(lengths)) if length < least]
    skipped += [
        Skipped(what=f"{length} tokens", why=f"query, special tokens and a passage take {least} at least")
        for length in short
    ]
    kept = sorted({min(length, most) for length in lengths if length >= least})
    if not kept:
        raise InputError("no length can be measured", got=list(lengths), allowed=f"{least} to {most} tokens")
    return kept, skipped


def cells_of_run(records: Sequence[QueryRecord], tokenizer: PairTokenizer, *, where: str | Path = "the run") -> list[Cell]:
    """A run's queries, grouped by their number of candidates; eight groups at most, of adjacent numbers.

    Raises:
        InputError: No query has a passage, or a text cannot be used.
    """
    calls: dict[int, list[Call]] = defaultdict(list)
    for record in records:
        if record.passages:
            texts = tuple(passage.text for passage in record.passages)
            lengths = tuple(tokenizer.encode(record.query, texts).lengths.tolist())
            calls[len(texts)].append(Call(query=record.query, passages=texts, lengths=lengths))
    if not calls:
        raise InputError(f"{where} holds no pair", allowed="a query with one passage or more")
    numbers = sorted(calls)
    groups = min(_MOST_GROUPS, len(numbers))
    edges = [len(numbers) * i // groups for i in range(groups + 1)]
    return _cheapest_first(
        [_group([call for number in numbers[start:stop] for call in calls[number]]) for start, stop in pairwise(edges)]
    )


def _group(calls: Sequence[Call]) -> Cell:
    pairs = sum(len(call.passages) for call in calls)
    return Cell(
        candidates=round(pairs / len(calls)),
        sequence_length=round(sum(call.tokens for call in calls) / pairs),
        calls=tuple(calls),
    )


def _cheapest_first(cells: list[Cell]) -> list[Cell]:
    return sorted(cells, key=lambda cell: cell.tokens)


# A text that was cut counts as one token more than is left of it: more than any that is asked for.


def _count_query(tokenizer: PairTokenizer, texts: Sequence[str]) -> list[int]:
    around = len(tokenizer.template.prefix.ids) + len(tokenizer.template.separator.ids)
    encoded = [tokenizer.encode(text, [""]) for text in texts]
    return [len(pairs.heads[0]) - around + bool(pairs.query_truncated[0]) for pairs in encoded]


def _count_passages(tokenizer: PairTokenizer, query: str, texts: Sequence[str]) -> list[int]:
    pairs = tokenizer.encode(query, texts)
    return [len(ids) + cut for ids, cut in zip(pairs.passages, pairs.truncated.tolist(), strict=True)]
