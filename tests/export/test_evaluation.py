from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crossforge.export.demo import materialize_demo_model
from crossforge.export.evaluation import evaluate_bundle
from crossforge.export.quality import Quality, compare_quality, measure_quality, read_qrels
from crossforge.profiles import InputError, Precision
from crossforge.runtime import Embedder, Reranker
from crossforge.runtime.records import QueryRecord, read_run


def test_measures_equal_a_calculation_by_hand() -> None:
    judgements = {"q": {"a": 3, "b": 0, "c": 1}}
    quality = measure_quality({"q": {"b": 3.0, "c": 2.0, "a": 1.0}}, judgements)
    gain = 1 / math.log2(3) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert quality.ndcg_at_10 == pytest.approx(gain / ideal, abs=1e-4)
    assert quality.mrr_at_10 == pytest.approx(1 / 2)
    assert quality.recall_at_100 == pytest.approx(1.0)


def test_min_relevance_moves_mrr() -> None:
    judgements = {"q": {"a": 3, "c": 1}}
    quality = measure_quality({"q": {"b": 3.0, "c": 2.0, "a": 1.0}}, judgements, min_relevance=2)
    assert quality.mrr_at_10 == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [("q 0 d\n", "line 1"), ("q 0 d 1\nq 0 e many\n", "line 2"), ("\n\n", "holds no judgement")],
)
def test_a_broken_judgement_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_qrels(path)


def test_a_run_that_nobody_judged_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    run, qrels = tmp_path / "run.jsonl", tmp_path / "qrels.txt"
    run.write_text(json.dumps({"qid": "1", "query": "a", "passages": [{"id": "x", "text": "b"}]}))
    qrels.write_text("2 0 x 1\n")
    with pytest.raises(InputError, match="no query of"):
        evaluate_bundle(demo_bundle, run, qrels)


@pytest.mark.slow
def test_fp32_ranks_trec_dl19_as_sentence_transformers_does(demo_bundle: Path, shared_data: Path) -> None:
    """Three queries of real passages; benchmarks/fidelity.py does all 43."""
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder(
        str(materialize_demo_model()), device="cpu", max_length=512
    )
    records = read_run(shared_data / "trec-dl19" / "bm25-top100.jsonl")[:3]
    judgements = read_qrels(shared_data / "trec-dl19" / "qrels.txt")
    pairs = [(record.query, passage.text) for record in records for passage in record.passages]
    expected = cross_encoder.predict(pairs, batch_size=32, show_progress_bar=False)
    with Reranker.load(demo_bundle, precision=Precision.FP32) as reranker:
        logits = reranker.score_pairs(pairs).logits[:, 0]
    assert np.abs(logits - expected).max() < 1e-4
    ours, theirs = (measure_quality(_by_query(scores, records), judgements) for scores in (logits, expected))
    assert ours.ndcg_at_10 == pytest.approx(theirs.ndcg_at_10, abs=1e-3)


def _by_query(scores: np.ndarray, records: list[QueryRecord]) -> dict[str, dict[str, float]]:
    parts = np.split(scores, np.cumsum([len(record.passages) for record in records])[:-1])
    return {
        record.qid: dict(zip((p.id for p in record.passages), part.tolist(), strict=True))
        for record, part in zip(records, parts, strict=True)
    }


# Whether a difference is more than chance


def quality_of(*values: float) -> Quality:
    return Quality(
        ndcg_at_10=float(np.mean(values)),
        mrr_at_10=0,
        recall_at_100=0,
        ndcg_by_query={str(i): value for i, value in enumerate(values)},
    )


def test_equal_rankings_do_not_differ() -> None:
    quality = quality_of(*np.linspace(0, 1, 40))
    difference = compare_quality(quality, quality)
    assert (difference.mean, difference.interval_95, difference.p_value) == (0, (0, 0), 1)
    assert (difference.better, difference.worse) == (0, 0)


def test_p_is_the_share_of_sign_flips_that_go_as_far() -> None:
    """Five queries, all worse by different amounts: of 32 ways to flip the signs two are as extreme."""
    difference = compare_quality(quality_of(0.5, 0.4, 0.3, 0.2, 0.1), quality_of(0.6, 0.6, 0.6, 0.6, 0.6))
    assert difference.p_value == pytest.approx(2 / 32, abs=0.01)
    assert difference.mean == pytest.approx(-0.3)
    assert difference.interval_95[0] < -0.3 < difference.interval_95[1] < 0
    assert (difference.better, difference.worse) == (0, 5)


def test_a_steady_loss_is_told_from_noise() -> None:
    generator = np.random.default_rng(1)
    reference = generator.uniform(0.3, 0.9, 200)
    noise = generator.normal(0, 0.05, 200)
    assert compare_quality(quality_of(*(reference + noise - noise.mean())), quality_of(*reference)).p_value > 0.9
    assert compare_quality(quality_of(*(reference + noise - 0.03)), quality_of(*reference)).p_value < 0.001


def test_a_repeated_test_gives_the_same_figures() -> None:
    ours, theirs = quality_of(0.1, 0.5, 0.9, 0.2), quality_of(0.2, 0.5, 0.7, 0.1)
    assert compare_quality(ours, theirs) == compare_quality(ours, theirs)


@pytest.fixture
def run_and_qrels(shared_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two real queries with 20 passages each."""
    run, qrels = tmp_path / "run.jsonl", shared_data / "trec-dl19" / "qrels.txt"
    lines = (shared_data / "trec-dl19" / "bm25-top100.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    records = [json.loads(line) for line in lines]
    run.write_text("\n".join(json.dumps({**r, "passages": r["passages"][:20]}) for r in records))
    return run, qrels


def test_variants_are_compared_with_fp32(demo_bundle: Path, run_and_qrels: tuple[Path, Path]) -> None:
    run, qrels = run_and_qrels
    evaluation = evaluate_bundle(demo_bundle, run, qrels, precisions=[Precision.INT8, Precision.FP32])
    assert evaluation.reference is Precision.FP32
    assert evaluation.variants[Precision.FP32].difference is None
    assert evaluation.variants[Precision.FP32].kendall_tau == 1
    difference = evaluation.variants[Precision.INT8].difference
    assert difference is not None
    change = evaluation.variants[Precision.INT8].quality.ndcg_at_10 - evaluation.variants[Precision.FP32].quality.ndcg_at_10
    assert difference.mean == pytest.approx(change)


def test_the_first_stage_and_a_bi_encoder_stand_beside_the_variants(
    demo_bundle: Path, demo_embedder_bundle: Path, run_and_qrels: tuple[Path, Path]
) -> None:
    run, qrels = run_and_qrels
    evaluation = evaluate_bundle(demo_bundle, run, qrels, precisions=[Precision.FP32], embedders=[demo_embedder_bundle])
    ours = evaluation.variants[Precision.FP32].quality.ndcg_at_10
    ((path, bi_encoder),) = evaluation.embedders.items()
    assert (path, bi_encoder.precision) == (str(demo_embedder_bundle), Precision.FP32)
    with Embedder.load(demo_embedder_bundle) as embedder:
        by_hand = {
            record.qid: dict(
                zip(
                    (passage.id for passage in record.passages),
                    embedder.similarity(
                        embedder.embed([record.query]).vectors,
                        embedder.embed([passage.text for passage in record.passages]).vectors,
                    )[0].tolist(),
                    strict=True,
                )
            )
            for record in read_run(run)
        }
    assert bi_encoder.quality == measure_quality(by_hand, read_qrels(qrels))
    in_order = {r.qid: {p.id: -i for i, p in enumerate(r.passages)} for r in read_run(run)}
    assert evaluation.first_stage.quality == measure_quality(in_order, read_qrels(qrels))
    for ranking in (evaluation.first_stage, bi_encoder):
        assert ranking.difference is not None
        assert ranking.difference.mean == pytest.approx(ranking.quality.ndcg_at_10 - ours)
        assert ranking.kendall_tau is not None
        assert -0.9 < ranking.kendall_tau < 0.9


def test_a_cross_encoder_is_no_embedder(demo_bundle: Path, run_and_qrels: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="is not the bundle of a bi-encoder"):
        evaluate_bundle(demo_bundle, *run_and_qrels, embedders=[demo_bundle])
