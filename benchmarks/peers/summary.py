"""From raw samples to figures: medians with their spread, ratios within rounds, agreement with the reference's ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crossforge.export.gates import OPEN_GATE
from crossforge.export.parity import compare_logits, scores_by_query
from crossforge.export.quality import Judgements, measure_quality
from peers.contenders import REFERENCE, Contender
from peers.workloads import Bulk

GATE_TAU, GATE_NDCG = 0.97, 0.005
"""What a variant must keep to count as the same ranking: Kendall tau, and how much nDCG@10 may fall."""


@dataclass
class Samples:
    """What one contender answered, round by round."""

    contender: Contender
    load_s: float = 0.0
    failure: str = ""
    """Why it has no figures; blank if it has."""
    bulk_s: list[float] = field(default_factory=list)
    long_s: list[float] = field(default_factory=list)
    latency_s: dict[int, list[float]] = field(default_factory=dict)
    """One call each, by the number of candidates."""
    scores: list[list[float]] = field(default_factory=list)
    """Of each round's pairs in bulk."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(median=float(median), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contender's figures. Ratios are to the reference in the same round; above 1 is faster."""

    name: str
    is_ours: bool
    pairs_per_s: Spread
    ratio: Spread | None
    long_pairs_per_s: Spread | None
    long_ratio: Spread | None
    latency_ms: dict[int, tuple[float, float, int]]
    """p50, p99 and the number of calls, by the number of candidates."""
    kendall_tau: float | None
    ndcg_at_10: float | None
    ceiling_share: Spread | None
    """Integer products that the model needs, a second, over what one large product reaches; int8 contenders."""
    load_s: float
    passes_gate: bool | None


def summarize(
    all_samples: Mapping[str, Samples],
    rounds: Sequence[Bulk],
    long: Bulk | None,
    *,
    judgements: Judgements | None,
    ceilings: Sequence[float],
    operations: Sequence[float],
) -> list[Row]:
    """Figures of the contenders that answered.

    Args:
        all_samples: By name.
        rounds: What each round asked in bulk.
        long: What each round asked of long pairs, if it did.
        judgements: Of the queries.
        ceilings: Integer operations a second that the machine reached in each round.
        operations: Integer operations that each round's pairs in bulk need.
    """
    reference = all_samples.get(REFERENCE)
    base = None if reference is None or reference.failure else reference
    rows = []
    for samples in all_samples.values():
        if samples.failure:
            continue
        tau, ndcg, base_ndcg = _fidelity(samples, base, rounds, judgements)
        is_int8 = samples.contender.is_int8
        shares = [
            work / seconds / ceiling
            for work, seconds, ceiling in zip(operations, samples.bulk_s, ceilings, strict=False)
            if is_int8
        ]
        rows.append(
            Row(
                name=samples.contender.name,
                is_ours=samples.contender.is_ours,
                pairs_per_s=Spread.of([len(b.lengths) / s for b, s in zip(rounds, samples.bulk_s, strict=True)]),
                ratio=None if base is None else _ratio(base.bulk_s, samples.bulk_s),
                long_pairs_per_s=None if long is None else Spread.of([len(long.lengths) / s for s in samples.long_s]),
                long_ratio=None if long is None or base is None else _ratio(base.long_s, samples.long_s),
                latency_ms={
                    count: (*(float(ms) for ms in np.percentile(np.asarray(calls) * 1e3, (50, 99))), len(calls))
                    for count, calls in samples.latency_s.items()
                },
                kendall_tau=tau,
                ndcg_at_10=ndcg,
                ceiling_share=Spread.of(shares) if shares else None,
                load_s=samples.load_s,
                passes_gate=None
                if tau is None
                else tau >= GATE_TAU and (ndcg is None or base_ndcg is None or base_ndcg - ndcg <= GATE_NDCG),
            )
        )
    return rows


def _ratio(base: Sequence[float], own: Sequence[float]) -> Spread:
    return Spread.of([theirs / ours for theirs, ours in zip(base, own, strict=True)])


def _fidelity(
    samples: Samples, base: Samples | None, rounds: Sequence[Bulk], judgements: Judgements | None
) -> tuple[float | None, float | None, float | None]:
    """Kendall tau with the reference, nDCG@10, and the reference's nDCG@10."""
    records = [record for b in rounds for record in b.records]
    records = list({record.qid: record for record in records}.values())
    own = _logits(samples, rounds)
    ndcg = tau = base_ndcg = None
    if judgements is not None:
        ndcg = measure_quality(scores_by_query(own, records, ranking_label=0), judgements).ndcg_at_10
    if base is not None:
        theirs = _logits(base, rounds)
        parity = compare_logits(theirs, own, records, ranking_label=0, name=REFERENCE, gate=OPEN_GATE)
        tau = parity.kendall_tau
        if judgements is not None:
            base_ndcg = measure_quality(scores_by_query(theirs, records, ranking_label=0), judgements).ndcg_at_10
    return tau, ndcg, base_ndcg


def _logits(samples: Samples, rounds: Sequence[Bulk]) -> NDArray[np.float32]:
    """Scores of every query once, float32 [pairs, 1]."""
    seen: dict[str, list[float]] = {}
    for scores, asked in zip(samples.scores, rounds, strict=True):
        start = 0
        for record in asked.records:
            stop = start + len(record.passages)
            seen.setdefault(record.qid, scores[start:stop])
            start = stop
    return np.asarray([score for scores in seen.values() for score in scores], dtype=np.float32)[:, None]
