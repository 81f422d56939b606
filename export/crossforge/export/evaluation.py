"""Ranking quality of a bundle's variants on judged queries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossforge.export.parity import rank_agreement
from crossforge.export.quality import Difference, Quality, Scores, compare_quality, measure_quality, read_qrels
from crossforge.export.requirements import require_extras
from crossforge.profiles import DeploymentProfile, InputError, Manifest, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.progress import Progress, Silent
from crossforge.runtime.records import QueryRecord, read_run
from crossforge.runtime.reranker import Reranker


@dataclass(frozen=True, kw_only=True)
class VariantEvaluation:
    """One variant's ranking."""

    quality: Quality
    kendall_tau: float | None
    """Mean tau-b with the reference's order; 1 for the reference itself, None where it cannot be had."""
    difference: Difference | None
    """nDCG@10 against the reference, with its test; None for the reference itself."""
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
    reference: Precision
    """The variant that the others are compared with: fp32, or the first one where that was not evaluated."""
    variants: dict[Precision, VariantEvaluation]


def evaluate_bundle(
    bundle: str | Path,
    run: str | Path,
    qrels: str | Path,
    *,
    precisions: Sequence[Precision] | None = None,
    min_relevance: int = 1,
    provider: str = "auto",
    deployment: DeploymentProfile | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rerank a run with a bundle's variants and measure nDCG@10, MRR@10 and recall@100 (through ir-measures).

    Args:
        bundle: The bundle's folder.
        run: JSON lines of ``{"qid", "query", "passages": [{"id", "text"}]}``, best first-stage rank first.
        qrels: Judgements in TREC format.
        precisions: The variants; None takes all, or the one that ``deployment`` names and fp32 to compare it with.
        min_relevance: The lowest grade that counts as relevant for MRR and recall (nDCG uses the grades themselves).
        provider: As in :meth:`Reranker.load`.
        deployment: How to run them. A variant that it does not name runs by the defaults where it names another.
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
    pairs = sum(len(record.passages) for record in judged)
    first_stage = {r.qid: {p.id: float(-rank) for rank, p in enumerate(r.passages)} for r in judged}
    chosen = tuple(precisions or choose_variants(opened.manifest, deployment))
    reference = Precision.FP32 if Precision.FP32 in chosen else chosen[0]
    scores: dict[Precision, Scores] = {}
    qualities: dict[Precision, Quality] = {}
    rates: dict[Precision, float] = {}
    for precision in chosen:
        with progress.stage(f"rerank with {precision}") as stage:
            own = deployment if deployment is not None and deployment.precision in (None, precision) else None
            with Reranker.load(opened, precision=precision, provider=provider, deployment=own) as reranker:
                start = time.perf_counter()
                scored: dict[str, dict[str, float]] = {}
                for done, record in enumerate(judged, start=1):
                    scored[record.qid] = _score(reranker, record)
                    stage.advance(done, len(judged))
                rates[precision] = pairs / (time.perf_counter() - start)
            scores[precision] = scored
            qualities[precision] = measure_quality(scored, judgements, min_relevance=min_relevance)
            stage.note = f"nDCG@10 {qualities[precision].ndcg_at_10:.4f}"
    return Evaluation(
        queries=len(judged),
        unjudged_queries=len(records) - len(judged),
        pairs=pairs,
        first_stage=measure_quality(first_stage, judgements, min_relevance=min_relevance),
        reference=reference,
        variants={
            precision: VariantEvaluation(
                quality=quality,
                kendall_tau=_mean_tau(scores[reference], scores[precision]),
                difference=None if precision is reference else compare_quality(quality, qualities[reference]),
                pairs_per_s=rates[precision],
            )
            for precision, quality in qualities.items()
        },
    )


def choose_variants(manifest: Manifest, deployment: DeploymentProfile | None) -> list[Precision]:
    """The variants to evaluate: all, or the one that a deployment profile names beside fp32."""
    if deployment is None or deployment.precision is None:
        return list(manifest.variants)
    reference = [Precision.FP32] if Precision.FP32 in manifest.variants else []
    return list(dict.fromkeys([*reference, deployment.precision]))


def _score(reranker: Reranker, record: QueryRecord) -> dict[str, float]:
    scored = reranker.score_pairs([(record.query, passage.text) for passage in record.passages])
    return dict(zip((p.id for p in record.passages), reranker.relevance(scored.logits).tolist(), strict=True))


def _mean_tau(reference: Scores, scores: Scores) -> float | None:
    taus = [
        rank_agreement(np.asarray(list(reference[qid].values())), np.asarray(list(scores[qid].values()))) for qid in scores
    ]
    known = [tau for tau in taus if tau is not None]
    return float(np.mean(known)) if known else None
