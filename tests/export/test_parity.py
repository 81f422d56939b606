"""Whether a variant ranks like its reference: the figures, the thresholds and the reference itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kendalltau

from crossforge.export.gates import GATES, OPEN_GATE, Gate
from crossforge.export.pairs import digest_pairs, flatten, verification_pairs
from crossforge.export.parity import compare_logits, compare_queries, describe_moved, kendall_tau
from crossforge.export.quality import Judgements
from crossforge.export.reference import reference_logits
from crossforge.export.source import LoadedSource, SourceOptions, load_source
from crossforge.profiles import ParityReport, Precision
from crossforge.runtime.batching import collate, plan_batches
from crossforge.runtime.records import Passage, QueryRecord
from crossforge.runtime.templates import derive_pair_template
from crossforge.runtime.tokenization import PairTokenizer
from support.tiny_models import MAX_LENGTH, edit_json, save_tiny_model

Floats = NDArray[np.float32]


def records(*passage_counts: int) -> list[QueryRecord]:
    """Queries with so many passages each."""
    return [
        QueryRecord(
            qid=str(q), query=f"query {q}", passages=tuple(Passage(id=str(p), text=f"passage {q}.{p}") for p in range(count))
        )
        for q, count in enumerate(passage_counts)
    ]


def column(*values: float) -> Floats:
    return np.asarray(values, np.float32)[:, None]


def compare(
    reference: Floats,
    variant: Floats,
    *passage_counts: int,
    ranking_label: int | None = 0,
    gate: Gate = OPEN_GATE,
    judgements: Judgements | None = None,
) -> ParityReport:
    return compare_logits(
        reference,
        variant,
        records(*passage_counts),
        ranking_label=ranking_label,
        name="reference",
        gate=gate,
        judgements=judgements,
    )


def counted_tau_b(a: Sequence[int], b: Sequence[int]) -> float:
    """Tau-b by its definition (Kendall 1945): concordant minus discordant pairs, over the pairs that are not ties."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(len(a)), 2)]
    agreement = sum(x * y for x, y in signs)
    return float(agreement / np.sqrt(sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)))


# Kendall's tau


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_tau_counts_pairs_and_discounts_ties(scores: list[tuple[int, int]]) -> None:
    a, b = [x for x, _ in scores], [y for _, y in scores]
    tau = kendall_tau(np.asarray(a, np.float32), np.asarray(b, np.float32))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert tau is None
    else:
        assert tau == pytest.approx(counted_tau_b(a, b))
        assert tau == pytest.approx(kendalltau(a, b).statistic)


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0, 2.0]])
def test_scores_that_order_nothing_have_no_tau(scores: list[float]) -> None:
    assert kendall_tau(np.asarray(scores), np.asarray(scores)) is None


# The report


def test_equal_logits_agree_in_everything() -> None:
    logits = column(3, 1, 2, 0, 5)
    report = compare(logits, logits, 3, 2)
    assert (report.max_abs_diff, report.mean_abs_diff) == (0, 0)
    assert (report.kendall_tau, report.top1_agreement, report.top10_overlap) == (1, 1, 1)
    assert report.passed


def test_the_report_says_what_was_compared() -> None:
    report = compare(column(1, 2, 3), column(1, 2, 3), 2, 1)
    assert (report.reference, report.queries, report.pairs) == ("reference", 2, 3)
    assert report.pairs_sha256 == digest_pairs(records(2, 1))


def test_differences_of_logits_are_measured_over_all_labels() -> None:
    reference = np.asarray([[0, 0], [0, 0]], np.float32)
    variant = np.asarray([[0, 1], [0, -3]], np.float32)
    report = compare(reference, variant, 2, ranking_label=None)
    assert (report.max_abs_diff, report.mean_abs_diff) == (3, 1)


def test_a_reversed_order_has_a_tau_of_minus_one() -> None:
    report = compare(column(1, 2, 3, 4), column(4, 3, 2, 1), 4)
    assert (report.kendall_tau, report.top1_agreement, report.top10_overlap) == (-1, 0, 1)


def test_figures_are_means_over_queries() -> None:
    reference, variant = column(1, 2, 3, 1, 2, 3), column(1, 2, 3, 3, 2, 1)
    report = compare(reference, variant, 3, 3)
    assert (report.kendall_tau, report.top1_agreement) == (0, 0.5)


def test_a_shift_of_all_scores_of_a_query_leaves_its_order() -> None:
    report = compare(column(1, 2, 3, 4), column(11, 12, -7, -6), 2, 2)
    assert report.kendall_tau == 1
    assert report.max_abs_diff == 10


def test_the_overlap_counts_the_ten_best_of_twenty() -> None:
    reference = column(*range(20))
    variant = reference.copy()
    variant[[10, 0]] = variant[[0, 10]]  # the tenth best changes places with the worst
    assert compare(reference, variant, 20).top10_overlap == pytest.approx(0.9)


def test_queries_that_order_nothing_are_left_out_of_tau() -> None:
    report = compare(column(7, 1, 2), column(7, 1, 2), 1, 0, 2)
    assert (report.kendall_tau, report.top1_agreement, report.queries) == (1, 1, 3)


def test_a_variant_that_ties_what_the_reference_orders_agrees_with_nothing() -> None:
    reference, collapsed = column(*range(20)), column(*[0.5] * 20)
    for precision in Precision:
        report = compare(reference, collapsed, 20, gate=GATES[precision])
        assert (report.kendall_tau, report.ties_created) == (0, 190)
        assert not report.passed
    half = compare(column(*range(20), *range(20)), column(*range(20), *[0.5] * 20), 20, 20)
    assert half.kendall_tau == 0.5


def test_a_classifier_has_no_ranking_to_compare() -> None:
    logits = np.eye(3, dtype=np.float32)
    report = compare(logits, logits, 3, ranking_label=None, gate=GATES[Precision.INT8])
    assert (report.kendall_tau, report.top1_agreement, report.top10_overlap) == (None, None, None)
    assert report.passed


def test_of_several_labels_the_probability_of_one_ranks() -> None:
    reference = np.asarray([[0, 1], [0, 2], [0, 3]], np.float32)
    shifted = reference + np.asarray([[30], [20], [10]], np.float32)  # the same probabilities, another order of logits
    assert compare(reference, shifted, 3, ranking_label=1).kendall_tau == 1
    assert compare(reference, -reference, 3, ranking_label=1).kendall_tau == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("labels", [1, 2])
def test_a_variant_that_is_not_finite_passes_no_gate(bad: float, labels: int) -> None:
    reference = np.arange(4 * labels, dtype=np.float32).reshape(4, labels)
    variant = reference.copy()
    variant[2, 0] = bad
    report = compare(reference, variant, 4, ranking_label=labels - 1)
    assert not np.isfinite(report.max_abs_diff)
    assert not report.passed


def test_a_tie_that_the_reference_does_not_have_is_counted() -> None:
    reference, variant = column(5, 4, 3, 2, 2), column(5, 4, 4, 4, 2)
    assert compare(reference, variant, 5).ties_created == 3
    assert compare(variant, reference, 5).ties_created == 1
    assert compare(reference, variant, 2, 3).ties_created == 1  # pairs of one query only


def test_logits_that_are_not_finite_are_counted() -> None:
    assert compare(column(1, 2, 3), column(np.nan, 2, np.inf), 3).non_finite == 2


def test_judgements_give_the_quality_of_both_rankings() -> None:
    judgements = {"0": {"1": 1}}  # the second passage is the one
    reference, variant = column(1, 2, 0), column(2, 1, 0)
    report = compare(reference, variant, 3, judgements=judgements)
    assert report.quality is not None
    assert (report.quality.mrr_at_10, report.quality.reference_mrr_at_10) == (0.5, 1)
    assert report.mrr_loss == pytest.approx(0.5)
    assert report.ndcg_loss == pytest.approx(1 - 1 / np.log2(3))
    assert compare(reference, variant, 3).quality is None
    assert compare(reference, column(np.nan, 1, 0), 3, judgements=judgements).quality is None


# Query by query


def test_each_query_says_what_moved() -> None:
    reference, variant = column(4, 3, 2, 1, 9, 8), column(1, 3, 2, 4, 9, 8)
    moved, same = compare_queries(reference, variant, records(4, 2), ranking_label=0)
    assert (moved.qid, moved.query, moved.same_top1, moved.max_abs_diff) == ("0", "query 0", False, 3)
    assert [(move.id, move.reference_rank, move.variant_rank) for move in moved.moves] == [("0", 1, 4), ("3", 4, 1)]
    assert (same.kendall_tau, same.same_top1, same.moves) == (1, True, ())


def test_the_queries_that_moved_most_are_named_first() -> None:
    reference, variant = column(1, 2, 3, 1, 2, 3, 1, 2, 3), column(1, 3, 2, 3, 2, 1, 1, 2, 3)
    queries = compare_queries(reference, variant, records(3, 3, 3), ranking_label=0)
    assert describe_moved(queries) == "; most moved: 'query 1' (-1.00), 'query 0' (0.33)"
    assert describe_moved(queries[2:]) == ""


def test_a_classifier_moves_no_query() -> None:
    (query,) = compare_queries(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32), records(3), ranking_label=None)
    assert (query.kendall_tau, query.same_top1, query.top10_overlap, query.moves) == (None, None, None, ())


def test_no_pairs_differ_in_nothing() -> None:
    report = compare(np.empty((0, 1), np.float32), np.empty((0, 1), np.float32))
    assert (report.pairs, report.max_abs_diff, report.mean_abs_diff, report.kendall_tau) == (0, 0, 0, None)


# Gates (tests/export/test_gates.py has the rest)


def test_every_precision_has_a_gate_that_a_reversed_ranking_fails() -> None:
    reference = column(*range(20))
    for precision in Precision:
        assert compare(reference, reference, 20, gate=GATES[precision]).passed
        assert not compare(reference, -reference, 20, gate=GATES[precision]).passed


# The reference


def test_the_reference_is_what_pytorch_answers(tiny_source: LoadedSource) -> None:
    pairs = flatten(records(2, 1))
    logits = reference_logits(tiny_source, pairs)
    assert logits.dtype == np.float32
    for row, (query, passage) in zip(logits, pairs, strict=True):
        inputs = tiny_source.tokenizer(query, passage, return_tensors="pt")
        with torch.inference_mode():
            np.testing.assert_allclose(row, tiny_source.model(**inputs).logits[0], atol=1e-5)


def test_the_reference_keeps_the_order_of_its_pairs(tiny_source: LoadedSource) -> None:
    pairs = verification_pairs()[:4]
    forwards, backwards = (reference_logits(tiny_source, flatten(order)) for order in (pairs, pairs[::-1]))
    assert forwards.shape == (80, 1)
    np.testing.assert_allclose(forwards.reshape(4, 20)[::-1], backwards.reshape(4, 20), atol=1e-5)


def long_query(text: str) -> list[tuple[str, str]]:
    return [(text, "A short passage.")]


def test_the_reference_cuts_a_query_to_its_contract(tiny_checkpoint: Path) -> None:
    source = load_source(str(tiny_checkpoint), SourceOptions(query_max_length=4))
    answer = reference_logits(source, long_query("a b c d e f"))
    np.testing.assert_array_equal(answer, reference_logits(source, long_query("a b c d")))
    uncut = replace(source, truncation=replace(source.truncation, query_max_length=40))
    assert abs(answer - reference_logits(uncut, long_query("a b c d e f"))).item() > 1e-3


def test_the_reference_keeps_the_end_of_a_query_where_the_tokenizer_cuts_on_the_left(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", truncation_side="left")
    source = load_source(str(tmp_path), SourceOptions(query_max_length=2))
    np.testing.assert_array_equal(
        reference_logits(source, long_query("a b c d")), reference_logits(source, long_query("c d"))
    )


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_reference_sees_the_tokens_that_the_runtime_sees(tmp_path: Path, architecture: str, side: str) -> None:
    """Wherever a query is cut: in a word, in a character of several bytes, or in between."""
    save_tiny_model(tmp_path, architecture)
    edit_json(tmp_path / "tokenizer_config.json", truncation_side=side)
    query, passage = "Unforgettable 富士山の高さ 🗻 naïveté", "Fujisan は 3776 m "
    loaded = load_source(str(tmp_path))
    for query_max_length in range(1, len(loaded.tokenizer.tokenize(query)) + 2):
        source = replace(loaded, truncation=replace(loaded.truncation, query_max_length=query_max_length))
        expected = logits_through_the_runtimes_tokenizer(source, query, passage * 20)
        np.testing.assert_allclose(reference_logits(source, [(query, passage * 20)]), expected, atol=1e-5)


def logits_through_the_runtimes_tokenizer(source: LoadedSource, query: str, passage: str) -> Floats:
    backend = source.tokenizer.backend_tokenizer
    template = derive_pair_template(backend)
    pairs = PairTokenizer(backend, template, source.truncation).encode(query, [passage])
    (plan,) = plan_batches(pairs.lengths, budget_tokens=MAX_LENGTH)
    names = source.tokenizer.model_input_names
    batch = collate(pairs, plan, template=template, pad_token_id=source.tokenizer.pad_token_id, input_names=names)
    with torch.inference_mode():
        return np.asarray(source.model(**{name: torch.from_numpy(ids) for name, ids in batch.items()}).logits)
