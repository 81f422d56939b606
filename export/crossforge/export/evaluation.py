"""Ranking quality of a bundle's variants on judged queries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossforge.export.parity import kendall_tau
from crossforge.export.requirements import require_extras
from crossforge.profiles import InputError, MissingPackageError, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.records import QueryRecord, read_run
from crossforge.runtime.reranker import Reranker

Scores = dict[str, dict[str, float]]
"""Score by passage id, by query id."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the judged queries."""

    ndcg_at_10: float
    mrr_at_10: float
    recall_at_100: float


@dataclass(frozen=True, kw_only=True)
class VariantEvaluation:
    """One variant's ranking."""

    quality: Quality
    kendall_tau: float | None
    """Mean tau-b with the first variant's order; 1 for the first itself, None where it cannot be had."""
    pairs_per_s: float
    """Scoring rate of this one pass, tokenization included; a rough figure, not a benchmark."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All variants on the same queries."""

    queries: int
    unjudged_queries: int
    """Queries of the run without a judgement, which were left out."""
    pairs: int
    first_stage: Quality
    """The order in which the run lists the passages."""
    variants: dict[Precision, VariantEvaluation]


def evaluate_bundle(
    bundle: str | Path,
    run: str | Path,
    qrels: str | Path,
    *,
    precisions: Sequence[Precision] | None = None,
    min_relevance: int = 1,
    provider: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Rerank a run with a bundle's variants and measure nDCG@10, MRR@10 and recall@100 (through ir-measures).

    Args:
        bundle: The bundle's folder.
        run: JSON lines of ``{"qid", "query", "passages": [{"id", "text"}]}``, best first-stage rank first.
        qrels: Judgements in TREC format.
        precisions: The variants; None takes all.
        min_relevance: The lowest grade that counts as relevant for MRR and recall (nDCG uses the grades themselves).
        provider: As in :meth:`Reranker.load`.
        progress: Told of each stage.

    Raises:
        InputError: A file cannot be used, or no query of the run is judged.
        MissingPackageError: ir-measures is not installed.
        BundleError: The bundle cannot be used.
    """
    require_extras("evaluate", purpose="Evaluating")
    progress = progress or Silent()
    opened = Bundle.open(bundle)
    records = read_run(run)
    judgements = read_qrels(qrels)
    judged = [record for record in records if record.qid in judgements and record.passages]
    if not judged:
        raise InputError(
            f"no query of {run} is judged in {qrels}",
            got=f"query ids {', '.join(record.qid for record in records[:3])}...",
            allowed=f"such as {', '.join(list(judgements)[:3])}",
        )
    first_stage = {r.qid: {p.id: float(-rank) for rank, p in enumerate(r.passages)} for r in judged}
    variants: dict[Precision, VariantEvaluation] = {}
    reference: Scores | None = None
    for precision in precisions or tuple(opened.manifest.variants):
        with progress.stage(f"rerank with {precision}") as stage:
            with Reranker.load(opened, precision=precision, provider=provider) as reranker:
                start = time.perf_counter()
                scores: Scores = {}
                for done, record in enumerate(judged, start=1):
                    scores[record.qid] = _score(reranker, record)
                    stage.advance(done, len(judged))
                seconds = time.perf_counter() - start
            reference = reference or scores
            variants[precision] = VariantEvaluation(
                quality=measure(scores, judgements, min_relevance=min_relevance),
                kendall_tau=_mean_tau(reference, scores),
                pairs_per_s=sum(len(record.passages) for record in judged) / seconds,
            )
            stage.note = f"nDCG@10 {variants[precision].quality.ndcg_at_10:.4f}"
    return Evaluation(
        queries=len(judged),
        unjudged_queries=len(records) - len(judged),
        pairs=sum(len(record.passages) for record in judged),
        first_stage=measure(first_stage, judgements, min_relevance=min_relevance),
        variants=variants,
    )


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


def measure(scores: Scores, judgements: dict[str, dict[str, int]], *, min_relevance: int = 1) -> Quality:
    """Measure a scored run over its own queries, all of which must be judged."""
    try:
        import ir_measures
        from ir_measures import RR, R, nDCG
    except ImportError as error:
        raise MissingPackageError("ir-measures", extra="evaluate", purpose="Evaluating") from error
    ndcg, mrr, recall = nDCG @ 10, RR(rel=min_relevance) @ 10, R(rel=min_relevance) @ 100
    judged = {qid: judgements[qid] for qid in scores}
    means = ir_measures.calc_aggregate([ndcg, mrr, recall], judged, scores)
    return Quality(ndcg_at_10=float(means[ndcg]), mrr_at_10=float(means[mrr]), recall_at_100=float(means[recall]))


def _score(reranker: Reranker, record: QueryRecord) -> dict[str, float]:
    scored = reranker.score_pairs([(record.query, passage.text) for passage in record.passages])
    return dict(zip((p.id for p in record.passages), reranker.relevance(scored.logits).tolist(), strict=True))


def _mean_tau(reference: Scores, scores: Scores) -> float | None:
    taus = [kendall_tau(np.asarray(list(reference[qid].values())), np.asarray(list(scores[qid].values()))) for qid in scores]
    known = [tau for tau in taus if tau is not None]
    return float(np.mean(known)) if known else None
