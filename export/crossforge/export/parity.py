"""Does a variant still rank like its reference? Measured on pairs, query by query, judged by a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossforge.export.gates import Gate
from crossforge.export.pairs import digest_pairs
from crossforge.export.quality import Judgements, measure_quality
from crossforge.profiles import ParityQuality, ParityReport
from crossforge.runtime.activation import Floats, relevance
from crossforge.runtime.records import QueryRecord

_MOVES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class RankMove:
    """A passage that changed its place."""

    id: str
    reference_rank: int
    """Its rank by the reference, from 1."""
    variant_rank: int


@dataclass(frozen=True, kw_only=True)
class QueryParity:
    """What became of one query's ranking."""

    qid: str
    query: str
    max_abs_diff: float | None
    """Largest difference of a logit; None where one is not finite."""
    kendall_tau: float | None
    """Tau-b between the two orders; 0 where the variant ties what the reference orders, None where there is no order."""
    same_top1: bool | None
    """Whether the best passage is the same; None where nothing ranks, as the two below."""
    top10_overlap: float | None
    """Share of the reference's ten best passages that the variant has among its ten best."""
    ties_created: int
    moves: tuple[RankMove, ...]
    """The passages that moved farthest, at most three."""


def compare_logits(
    reference: Floats,
    variant: Floats,
    records: Sequence[QueryRecord],
    *,
    ranking_label: int | None,
    name: str,
    gate: Gate,
    judgements: Judgements | None = None,
) -> ParityReport:
    """Compare two models' logits on the same pairs.

    Args:
        reference: float32 [pairs, labels], pairs in the order of ``records``.
        variant: The same of the variant.
        records: The queries that the pairs belong to.
        ranking_label: The column that ranks, if one does.
        name: What the reference is called.
        gate: Decides ``passed``.
        judgements: Grades of passages, by which the quality of both rankings is measured too.
    """
    difference = _difference(reference, variant)
    queries = compare_queries(reference, variant, records, ranking_label=ranking_label)
    report = ParityReport(
        reference=name,
        pairs_sha256=digest_pairs(records),
        queries=len(records),
        pairs=len(reference),
        max_abs_diff=float(difference.max(initial=0.0)),
        mean_abs_diff=float(difference.mean()) if difference.size else 0.0,
        kendall_tau=_mean([query.kendall_tau for query in queries]),
        top1_agreement=_mean([query.same_top1 for query in queries]),
        top10_overlap=_mean([query.top10_overlap for query in queries]),
        ties_created=sum(query.ties_created for query in queries),
        non_finite=int((~np.isfinite(variant)).sum()),
        quality=_compare_quality(reference, variant, records, ranking_label, judgements),
        passed=False,
    )
    return dataclasses.replace(report, passed=gate.passes(report))


def compare_queries(
    reference: Floats, variant: Floats, records: Sequence[QueryRecord], *, ranking_label: int | None
) -> tuple[QueryParity, ...]:
    """Compare two models' logits query by query; the arguments are those of :func:`compare_logits`."""
    difference = _difference(reference, variant)
    a, b = _relevance(reference, ranking_label), _relevance(variant, ranking_label)
    queries = []
    for record, rows in _rows_by_query(records):
        largest = float(difference[rows].max(initial=0.0))
        ranks = ranking_label is not None and rows.stop > rows.start
        best_a, best_b = _best_first(a[rows]), _best_first(b[rows])
        first = len(best_a[:10])
        queries.append(
            QueryParity(
                qid=record.qid,
                query=record.query,
                max_abs_diff=largest if np.isfinite(largest) else None,
                kendall_tau=rank_agreement(a[rows], b[rows]) if ranks else None,
                same_top1=bool(best_a[0] == best_b[0]) if ranks else None,
                top10_overlap=len(set(best_a[:10].tolist()) & set(best_b[:10].tolist())) / first if ranks else None,
                ties_created=_ties_created(a[rows], b[rows]) if ranks else 0,
                moves=_find_moves(record, best_a, best_b) if ranks else (),
            )
        )
    return tuple(queries)


def describe_parity(parity: ParityReport) -> str:
    """The figures of a report in one line."""
    parts = [f"largest logit difference {parity.max_abs_diff:.2g}"]
    if parity.kendall_tau is not None:
        parts.append(f"Kendall tau {parity.kendall_tau:.4f}")
    if parity.top1_agreement is not None:
        parts.append(f"same first passage {parity.top1_agreement:.0%}")
    if parity.quality is not None:
        parts.append(
            f"nDCG@10 {parity.quality.ndcg_at_10:.4f} ({parity.reference} {parity.quality.reference_ndcg_at_10:.4f})"
        )
    if parity.ties_created:
        parts.append(f"{parity.ties_created} new ties")
    if parity.non_finite:
        parts.append(f"{parity.non_finite} logits NaN or infinite")
    return ", ".join(parts)


def most_moved(queries: Sequence[QueryParity]) -> list[QueryParity]:
    """The queries whose order changed, most changed first."""
    moved = [query for query in queries if query.kendall_tau is not None and query.kendall_tau < 1]
    return sorted(moved, key=lambda query: query.kendall_tau or 0.0)


def describe_moved(queries: Sequence[QueryParity], *, most: int = 3) -> str:
    """The queries whose ranking moved most, in words that continue a sentence; blank where none did."""
    worst = ", ".join(f"{query.query!r:.50} ({query.kendall_tau:.2f})" for query in most_moved(queries)[:most])
    return f"; most moved: {worst}" if worst else ""


def kendall_tau(a: NDArray[np.floating], b: NDArray[np.floating]) -> float | None:
    """Kendall's tau-b between two score lists; None where one of them orders nothing (all tied, or one item)."""
    from scipy.stats import kendalltau

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(kendalltau(a, b).statistic)


def rank_agreement(reference: NDArray[np.floating], variant: NDArray[np.floating]) -> float | None:
    """Tau-b with a reference's order; None where the reference orders nothing.

    A variant that ties everything has lost the order: it agrees with nothing, which is no reason to leave the query out.
    """
    if len(reference) < 2 or np.ptp(reference) == 0:
        return None
    return 0.0 if np.ptp(variant) == 0 else kendall_tau(reference, variant)


def scores_by_query(
    logits: Floats, records: Sequence[QueryRecord], *, ranking_label: int | None
) -> dict[str, dict[str, float]]:
    """What ranks the passages, by query id and passage id."""
    scores = _relevance(logits, ranking_label)
    return {
        record.qid: dict(zip((passage.id for passage in record.passages), scores[rows].tolist(), strict=True))
        for record, rows in _rows_by_query(records)
    }


def _compare_quality(
    reference: Floats,
    variant: Floats,
    records: Sequence[QueryRecord],
    ranking_label: int | None,
    judgements: Judgements | None,
) -> ParityQuality | None:
    if judgements is None or ranking_label is None or not np.isfinite(variant).all():
        return None
    ours = measure_quality(scores_by_query(variant, records, ranking_label=ranking_label), judgements)
    theirs = measure_quality(scores_by_query(reference, records, ranking_label=ranking_label), judgements)
    return ParityQuality(
        ndcg_at_10=ours.ndcg_at_10,
        mrr_at_10=ours.mrr_at_10,
        reference_ndcg_at_10=theirs.ndcg_at_10,
        reference_mrr_at_10=theirs.mrr_at_10,
    )


def _difference(reference: Floats, variant: Floats) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # where infinities meet; gates refuse them
        difference: NDArray[np.float64] = np.abs(reference.astype(np.float64) - variant)
    return difference


def _relevance(logits: Floats, ranking_label: int | None) -> Floats:
    """What ranks: float32 [pairs]; zeros where no label does."""
    with np.errstate(invalid="ignore"):
        return np.zeros(len(logits), np.float32) if ranking_label is None else relevance(logits, ranking_label)


def _rows_by_query(records: Sequence[QueryRecord]) -> Iterator[tuple[QueryRecord, slice]]:
    """Each query with the rows that its pairs take in a matrix of all pairs."""
    start = 0
    for record in records:
        stop = start + len(record.passages)
        yield record, slice(start, stop)
        start = stop


def _ties_created(a: Floats, b: Floats) -> int:
    apart = a[:, None] != a[None, :]
    tied = b[:, None] == b[None, :]
    return int((apart & tied).sum()) // 2


def _find_moves(record: QueryRecord, best_a: NDArray[np.intp], best_b: NDArray[np.intp]) -> tuple[RankMove, ...]:
    before, after = np.argsort(best_a), np.argsort(best_b)
    farthest = np.argsort(-np.abs(before - after), kind="stable")[:_MOVES_SHOWN]
    return tuple(
        RankMove(id=record.passages[i].id, reference_rank=int(before[i]) + 1, variant_rank=int(after[i]) + 1)
        for i in farthest.tolist()
        if before[i] != after[i]
    )


def _best_first(scores: Floats) -> NDArray[np.intp]:
    return np.argsort(-scores, kind="stable")


def _mean(values: Sequence[bool | float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
