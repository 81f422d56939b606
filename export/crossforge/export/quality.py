"""Ranking quality on judged queries, through ir-measures, and whether a difference is more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossforge.profiles import InputError, MissingPackageError

Scores = Mapping[str, Mapping[str, float]]
"""Score by passage id, by query id."""
Judgements = Mapping[str, Mapping[str, int]]
"""Grade by passage id, by query id."""

_RESAMPLES = 10_000
_SEED = 0
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the judged queries, and what they are means of."""

    ndcg_at_10: float
    mrr_at_10: float
    recall_at_100: float
    ndcg_by_query: dict[str, float]
    """nDCG@10 by query id."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A variant's nDCG@10 against a reference's, on the same queries."""

    mean: float
    """Variant minus reference."""
    interval_95: tuple[float, float]
    """Bootstrap interval of the mean, by percentiles."""
    p_value: float
    """Two-sided: how often flipping signs at random gives a mean as far from 0 as this one."""
    better: int
    """Queries that rank better than by the reference."""
    worse: int


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read TREC judgements: ``qid iteration docid grade`` a line.

    Raises:
        InputError: The file cannot be read, holds nothing, or a line is not such a row.
    """
    judgements: dict[str, dict[str, int]] = {}
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not (columns := line.split()):
            continue
        try:
            qid, _, docid, grade = columns
            judgements.setdefault(qid, {})[docid] = int(grade)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: not a judgement", got=f"{line:.60}", allowed="qid iteration docid grade"
            ) from error
    if not judgements:
        raise InputError(f"{path} holds no judgement", allowed="qid iteration docid grade, a line each")
    return judgements


def measure_quality(scores: Scores, judgements: Judgements, *, min_relevance: int = 1) -> Quality:
    """Measure a scored run; queries without a judgement are left out, and at least one must have some.

    Args:
        scores: The run.
        judgements: The grades.
        min_relevance: The lowest grade that counts as relevant for MRR and recall (nDCG uses the grades themselves).

    Raises:
        InputError: No query is judged.
        MissingPackageError: ir-measures is not installed.
    """
    try:
        import ir_measures
        from ir_measures import RR, R, nDCG
    except ImportError as error:
        raise MissingPackageError("ir-measures", extra="evaluate", purpose="Evaluating") from error
    ndcg, mrr, recall = nDCG @ 10, RR(rel=min_relevance) @ 10, R(rel=min_relevance) @ 100
    judged = {qid: dict(judgements[qid]) for qid in scores if qid in judgements}
    if not judged:
        raise InputError(
            "no query is judged",
            got=f"query ids {', '.join(list(scores)[:3])}...",
            allowed=f"such as {', '.join(list(judgements)[:3])}",
        )
    run = {qid: dict(scores[qid]) for qid in judged}
    values: dict[object, dict[str, float]] = {ndcg: {}, mrr: {}, recall: {}}
    for metric in ir_measures.iter_calc([ndcg, mrr, recall], judged, run):
        values[metric.measure][metric.query_id] = float(metric.value)
    return Quality(
        ndcg_at_10=_mean(values[ndcg]),
        mrr_at_10=_mean(values[mrr]),
        recall_at_100=_mean(values[recall]),
        ndcg_by_query={qid: values[ndcg][qid] for qid in judged},
    )


def compare_quality(variant: Quality, reference: Quality) -> Difference:
    """Test whether two rankings of the same queries differ by more than chance.

    The test is the paired randomization test that Smucker, Allan and Carterette (CIKM 2007) recommend for ranking; the
    interval is a bootstrap over queries. Both resample with a fixed seed, so a repeated call gives the same figures.
    """
    pairs = [(value, reference.ndcg_by_query[qid]) for qid, value in variant.ndcg_by_query.items()]
    change = np.asarray([ours - theirs for ours, theirs in pairs])
    generator = np.random.default_rng(_SEED)
    flipped, samples = [], []
    for resamples in _chunks(len(change)):
        signs = generator.choice((-1.0, 1.0), size=(resamples, len(change)))
        flipped.append(np.abs((signs * change).mean(axis=1)))
        samples.append(change[generator.integers(0, len(change), size=(resamples, len(change)))].mean(axis=1))
    low, high = np.percentile(np.concatenate(samples), (2.5, 97.5))
    # The order that was seen counts among the random ones, so that p is never 0; ties with it count as far.
    extreme = int((np.concatenate(flipped) >= abs(change.mean()) - 1e-12).sum())
    return Difference(
        mean=float(change.mean()),
        interval_95=(float(low), float(high)),
        p_value=(extreme + 1) / (_RESAMPLES + 1),
        better=int((change > 0).sum()),
        worse=int((change < 0).sum()),
    )


def _chunks(queries: int) -> Iterator[int]:
    """The resamples, as many at a time as a few dozen megabytes hold."""
    left, most = _RESAMPLES, max(1, _VALUES_AT_ONCE // queries)
    while left:
        yield min(most, left)
        left -= min(most, left)


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))
