"""Ranking quality of a bundle's variants on judged queries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from crossforge.export.parity import rank_agreement
from crossforge.export.quality import Difference, Quality, Scores, compare_quality, measure_quality, read_qrels
from crossforge.export.requirements import require_extras
from crossforge.profiles import DeploymentProfile, InputError, Manifest, Precision
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.embedder import Embedder
from crossforge.runtime.kinds import load_pair_scorer
from crossforge.runtime.pair_scorer import PairScorer
from crossforge.runtime.progress import Progress, Silent, Stage
from crossforge.runtime.records import QueryRecord, read_run


@dataclass(frozen=True, kw_only=True)
class RankingEvaluation:
    """A ranking of the candidates, against the reference's."""

    quality: Quality
    kendall_tau: float | None
    """Mean tau-b with the reference's order; 1 for the reference itself, None where it cannot be had."""
    difference: Difference | None
    """nDCG@10 against the reference, with its test; None for the reference itself."""


@dataclass(frozen=True, kw_only=True)
class VariantEvaluation(RankingEvaluation):
    """One variant's ranking."""

    precision: Precision
    pairs_per_s: float
    """Scoring rate of this one pass, tokenization included; a rough figure, not a benchmark."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All variants on the same queries and candidates, beside what a reranker has to beat."""

    queries: int
    unjudged_queries: int
    """Queries of the run without a judgement, which were left out."""
    pairs: int
    first_stage: RankingEvaluation
    """The order in which the run lists the passages."""
    embedders: dict[str, VariantEvaluation]
    """Bi-encoders that order the same candidates by similarity, by the bundle's path as it was given."""
    reference: Precision
    """The variant that the others are compared with: fp32, or the first one where that was not evaluated."""
    variants: dict[Precision, VariantEvaluation]


@dataclass(frozen=True, kw_only=True)
class _Ranking:
    """What one pass gave."""

    precision: Precision
    scores: Scores
    quality: Quality
    pairs_per_s: float


def evaluate_bundle(
    bundle: str | Path,
    run: str | Path,
    qrels: str | Path,
    *,
    precisions: Sequence[Precision] | None = None,
    embedders: Sequence[str | Path] = (),
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
        embedders: Bundles of bi-encoders that order the same candidates by similarity, each with the variant that ``auto``
            takes.
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
    if min_relevance < 1:
        raise InputError("min_relevance is too small", got=min_relevance, allowed="1 or more")
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
    measure = partial(measure_quality, judgements=judgements, min_relevance=min_relevance)

    def rank(scorer: PairScorer, stage: Stage) -> _Ranking:
        start = time.perf_counter()
        scores = _rerank(scorer, judged, stage)
        rate, quality = pairs / (time.perf_counter() - start), measure(scores)
        stage.note = f"nDCG@10 {quality.ndcg_at_10:.4f}"
        return _Ranking(precision=scorer.precision, scores=scores, quality=quality, pairs_per_s=rate)

    pairs = sum(len(record.passages) for record in judged)
    others = {str(path): _open_embedder(path) for path in embedders}
    chosen = tuple(precisions or choose_variants(opened.manifest, deployment))
    embedded, ranked = {}, {}
    for path, other in others.items():
        with progress.stage(f"rank with {other.path.name}") as stage, Embedder.load(other, provider=provider) as embedder:
            embedded[path] = rank(embedder, stage)
    for precision in chosen:
        own = deployment if deployment is not None and deployment.precision in (None, precision) else None
        with (
            progress.stage(f"rerank with {precision}") as stage,
            load_pair_scorer(opened, precision=precision, provider=provider, deployment=own) as scorer,
        ):
            ranked[precision] = rank(scorer, stage)
    reference = ranked[Precision.FP32 if Precision.FP32 in chosen else chosen[0]]
    first_stage = {r.qid: {p.id: float(-rank) for rank, p in enumerate(r.passages)} for r in judged}
    return Evaluation(
        queries=len(judged),
        unjudged_queries=len(records) - len(judged),
        pairs=pairs,
        first_stage=_compare(first_stage, measure(first_stage), reference),
        embedders={path: _judge(ranking, reference) for path, ranking in embedded.items()},
        reference=reference.precision,
        variants={precision: _judge(ranking, reference) for precision, ranking in ranked.items()},
    )


def choose_variants(manifest: Manifest, deployment: DeploymentProfile | None) -> list[Precision]:
    """The variants to evaluate: all, or the one that a deployment profile names beside fp32."""
    if deployment is None or deployment.precision is None:
        return list(manifest.variants)
    reference = [Precision.FP32] if Precision.FP32 in manifest.variants else []
    return list(dict.fromkeys([*reference, deployment.precision]))


def _compare(scores: Scores, quality: Quality, reference: _Ranking) -> RankingEvaluation:
    return RankingEvaluation(
        quality=quality,
        kendall_tau=_mean_tau(reference.scores, scores),
        difference=None if scores is reference.scores else compare_quality(quality, reference.quality),
    )


def _judge(ranking: _Ranking, reference: _Ranking) -> VariantEvaluation:
    compared = _compare(ranking.scores, ranking.quality, reference)
    return VariantEvaluation(**vars(compared), precision=ranking.precision, pairs_per_s=ranking.pairs_per_s)


def _open_embedder(path: str | Path) -> Bundle:
    bundle = Bundle.open(path)
    if bundle.manifest.embedding is None:
        raise InputError(f"{path} is not the bundle of a bi-encoder", got=bundle.manifest.architecture)
    return bundle


def _rerank(scorer: PairScorer, records: Sequence[QueryRecord], stage: Stage) -> dict[str, dict[str, float]]:
    scores = {}
    for done, record in enumerate(records, start=1):
        scores[record.qid] = _score(scorer, record)
        stage.advance(done, len(records))
    return scores


def _score(scorer: PairScorer, record: QueryRecord) -> dict[str, float]:
    scored = scorer.score_pairs([(record.query, passage.text) for passage in record.passages])
    return dict(zip((p.id for p in record.passages), scorer.relevance(scored.logits).tolist(), strict=True))


def _mean_tau(reference: Scores, scores: Scores) -> float | None:
    taus = [
        rank_agreement(np.asarray(list(reference[qid].values())), np.asarray(list(scores[qid].values()))) for qid in scores
    ]
    known = [tau for tau in taus if tau is not None]
    return float(np.mean(known)) if known else None
