from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossforge.profiles import (
    Activation,
    ClosedError,
    CostModel,
    EngineError,
    InputError,
    NonFiniteLogitsError,
    Truncation,
    TruncationSide,
    TruncationWarning,
    UnknownTokensWarning,
)
from crossforge.runtime import FakeSession, RankedPassage
from crossforge.runtime.timing import StageName, untimed
from support.builders import fake_reranker, make_manifest, make_scoring
from support.families import make_tokenizer
from support.strategies import no_deadline, words

QUERY = "where is the city"
PASSAGES = ["berlin", "people live in berlin", "", "the city", "a passage", "where people live"]
ROOMY = make_manifest(truncation=Truncation(max_length=512, query_max_length=64, side=TruncationSide.RIGHT))


def third_of_length(ids: NDArray[np.int64]) -> float:
    """A score with many ties."""
    return float(len(ids) // 3)


@given(
    passages=st.lists(words, max_size=12),
    budget_tokens=st.integers(min_value=1, max_value=2000),
    workers=st.integers(min_value=1, max_value=4),
    random=st.randoms(use_true_random=False),
)
@no_deadline
def test_scores_depend_on_nothing_but_the_pair(passages: list[str], budget_tokens: int, workers: int, random: Any) -> None:
    order = random.sample(range(len(passages)), len(passages))
    with fake_reranker(manifest=ROOMY) as alone:
        expected = [alone.score(QUERY, [passages[i]])[0] for i in order]
    with fake_reranker(manifest=ROOMY, budget_tokens=budget_tokens, workers=workers) as reranker:
        scores = reranker.score(QUERY, [passages[i] for i in order])

    assert scores.tolist() == expected


@given(passages=st.lists(words, max_size=12), top_k=st.none() | st.integers(min_value=1, max_value=15))
@no_deadline
def test_a_ranking_is_best_first_and_ties_go_to_the_first(passages: list[str], top_k: int | None) -> None:
    with fake_reranker(FakeSession(third_of_length), manifest=ROOMY) as reranker:
        scores = reranker.score(QUERY, passages).tolist()
        ranking = reranker.rank(QUERY, passages, top_k=top_k)

    best_first = sorted(range(len(passages)), key=lambda i: (-scores[i], i))[:top_k]
    assert ranking == [RankedPassage(corpus_id=i, score=scores[i], text=passages[i], truncated=False) for i in best_first]


@pytest.mark.parametrize("labels", [1, 3])
def test_prediction_scores_each_pair_as_if_it_were_alone(labels: int) -> None:
    pairs = [(query, passage) for passage in PASSAGES for query in (QUERY, "query")]
    manifest = make_manifest(scoring=make_scoring(labels))
    with fake_reranker(FakeSession(labels=labels), manifest=manifest, budget_tokens=20) as reranker:
        together = reranker.predict(pairs)
        alone = np.concatenate([reranker.predict([pair]) for pair in pairs])

    assert together.shape == ((12,) if labels == 1 else (12, 3))
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, scipy.special.expit),
        ("identity", lambda logits: logits),
        (Activation.SIGMOID, scipy.special.expit),
        ("softmax", np.ones_like),
    ],
)
def test_prediction_applies_the_manifests_activation_or_the_given(activation: Any, expected: Any) -> None:
    with fake_reranker() as reranker:
        pairs = [(QUERY, passage) for passage in PASSAGES]
        scores, raw = reranker.predict(pairs, activation=activation), reranker.score(QUERY, PASSAGES)

    np.testing.assert_allclose(scores, expected(raw), rtol=1e-6)


def test_the_score_is_the_logit_unless_an_activation_is_given() -> None:
    session = FakeSession(lambda ids: float(len(ids)))
    with fake_reranker(session) as reranker:
        raw = reranker.score(QUERY, ["berlin", ""])
        activated = reranker.score(QUERY, ["berlin", ""], activation="sigmoid")

    assert raw.tolist() == [8.0, 7.0]
    np.testing.assert_allclose(activated, scipy.special.expit([8.0, 7.0]), rtol=1e-6)


def test_several_labels_score_by_log_probability() -> None:
    manifest = make_manifest(scoring=make_scoring(3, ranking_label=2))
    with fake_reranker(FakeSession(labels=3), manifest=manifest) as reranker:
        raw = reranker.score(QUERY, PASSAGES)
        share = reranker.score(QUERY, PASSAGES, activation=Activation.SOFTMAX)

    np.testing.assert_allclose(raw, [scipy.special.log_softmax([0, 1, 2])[2]] * 6, rtol=1e-5)
    np.testing.assert_allclose(share, [scipy.special.softmax([0, 1, 2])[2]] * 6, rtol=1e-5)


def test_no_passages_give_empty_answers() -> None:
    with fake_reranker() as reranker:
        for scores in (reranker.score(QUERY, []), reranker.predict([])):
            assert (scores.shape, scores.dtype) == ((0,), np.dtype(np.float32))
        assert reranker.rank(QUERY, []) == []
    with fake_reranker(FakeSession(labels=3), manifest=make_manifest(scoring=make_scoring(3))) as reranker:
        assert reranker.predict([]).shape == (0, 3)


def test_everything_about_pairs_is_told() -> None:
    with fake_reranker(budget_tokens=8) as reranker:
        scored = reranker.score_pairs([(QUERY, "the city"), (QUERY, ""), ("query", "\N{CITYSCAPE}")])

    assert scored.token_counts.tolist() == [9, 7, 5]
    assert scored.unknown_tokens.tolist() == [0, 0, 1]
    assert scored.batches == 3
    assert scored.padding_waste == 0.0
    assert scored.logits.shape == (3, 1)
    assert not scored.truncated.any()
    assert not scored.query_truncated.any()


def test_text_that_the_model_cannot_read_is_warned_of() -> None:
    passages = ["the city", "ж жж", "the \N{CITYSCAPE} \N{CITYSCAPE} \N{CITYSCAPE}"]
    words = r"^1 of 3 pairs are mostly text that the model has no token for"
    with fake_reranker() as reranker:
        with pytest.warns(UnknownTokensWarning, match=words) as of_rank:
            reranker.rank(QUERY, passages)
        with pytest.warns(UnknownTokensWarning, match=words) as of_score:
            reranker.score(QUERY, passages)
        with pytest.warns(UnknownTokensWarning, match=words) as of_predict:
            reranker.predict([(QUERY, passage) for passage in passages])
        with pytest.warns(UnknownTokensWarning, match="^2 of 2"):
            reranker.rank("ж жж", passages[::2])
        scored = reranker.score_pairs([(QUERY, passage) for passage in passages])

    assert {warning.filename for caught in (of_rank, of_score, of_predict) for warning in caught} == {__file__}
    assert scored.mostly_unknown.tolist() == [False, True, False]


def test_emoji_are_no_reason_to_warn() -> None:
    with fake_reranker() as reranker:  # a warning would fail the test
        reranker.rank("where is the city \N{CITYSCAPE}", ["the city", "\N{CITYSCAPE}", "\N{CITYSCAPE} \N{CITYSCAPE} city"])


@pytest.mark.parametrize(("workers", "batches"), [(1, 1), (2, 2), (4, 4), (9, 6)])
def test_work_is_spread_over_the_workers(workers: int, batches: int) -> None:
    with fake_reranker(workers=workers) as reranker:
        assert reranker.score_pairs([(QUERY, passage) for passage in PASSAGES]).batches == batches


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_not_finite_is_an_error(bad: float) -> None:
    session = FakeSession(lambda ids: bad if len(ids) > 8 else 0.0)
    with fake_reranker(session) as reranker:
        assert reranker.score(QUERY, ["berlin"]).tolist() == [0.0]
        with pytest.raises(NonFiniteLogitsError, match=r"for 2 of 3 pairs; got pair 1 first\. Use the fp32 variant"):
            reranker.score(QUERY, ["berlin", "the city", "the city"])


@pytest.mark.parametrize("workers", [1, 2])
def test_an_answer_in_another_shape_is_an_error(workers: int) -> None:
    with (
        fake_reranker(FakeSession(labels=2), budget_tokens=1, workers=workers) as reranker,
        pytest.raises(EngineError, match=r"unexpected shape; got \[1, 2\]; allowed: \[1, 1\]"),
    ):
        reranker.score(QUERY, PASSAGES)


def test_a_classifier_of_pairs_predicts_but_does_not_rank() -> None:
    scoring = make_scoring(3, labels=("entails", "contradicts", "neither"), ranking_label=None)
    with fake_reranker(FakeSession(labels=3), manifest=make_manifest(scoring=scoring)) as reranker:
        np.testing.assert_allclose(reranker.predict([(QUERY, "berlin")]), [scipy.special.softmax([0, 1, 2])], rtol=1e-5)
        for ask in (reranker.score, reranker.rank):
            with pytest.raises(InputError, match=r"no label that ranks; got entails, contradicts, neither\. Use predict"):
                ask(QUERY, ["berlin"])


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_one_is_refused(top_k: int) -> None:
    with (
        fake_reranker() as reranker,
        pytest.raises(InputError, match=f"top_k is too small; got {top_k}; allowed: 1 or more"),
    ):
        reranker.rank(QUERY, PASSAGES, top_k=top_k)


@pytest.mark.parametrize("method", ["score", "predict"])
def test_an_unknown_activation_is_refused(method: str) -> None:
    arguments = {"score": (QUERY, PASSAGES), "predict": ([],)}[method]
    with (
        fake_reranker() as reranker,
        pytest.raises(InputError, match="unknown activation; got 'relu'; allowed: identity, sigmoid, softmax"),
    ):
        getattr(reranker, method)(*arguments, activation="relu")


def test_text_that_was_cut_is_warned_of_where_the_answer_cannot_say_so() -> None:
    long = "city " * 100
    with fake_reranker() as reranker:
        with pytest.warns(TruncationWarning, match=r"^1 of 2 pairs were too long") as of_score:
            reranker.score(QUERY, ["berlin", long])
        with pytest.warns(TruncationWarning, match=r"^2 of 3 pairs were too long") as of_predict:
            reranker.predict([(QUERY, long), (long, "berlin"), (QUERY, "berlin")])
        ranking = reranker.rank(QUERY, ["berlin", long])
        scored = reranker.score_pairs([(QUERY, long), (long, "berlin")])

    assert [warning.filename for warning in (*of_score, *of_predict)] == [__file__] * 2
    assert {passage.corpus_id: passage.truncated for passage in ranking} == {0: False, 1: True}
    assert scored.truncated.tolist() == [True, True]
    assert scored.query_truncated.tolist() == [False, True]


def test_the_session_is_given_the_tokens_of_the_pair() -> None:
    session = FakeSession()
    with fake_reranker(session) as reranker:
        reranker.score(QUERY, ["berlin"])
    encoding = make_tokenizer().encode(QUERY, "berlin")

    assert {name: array.tolist() for name, array in session.batches[0].items()} == {
        "input_ids": [encoding.ids],
        "attention_mask": [encoding.attention_mask],
        "token_type_ids": [encoding.type_ids],
    }


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_may_share_a_reranker(workers: int) -> None:
    with fake_reranker(budget_tokens=30, workers=workers) as reranker:
        requests = [PASSAGES[i:] + PASSAGES[:i] for i in range(len(PASSAGES))] * 10
        expected = [reranker.score(QUERY, passages).tolist() for passages in requests]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda passages: reranker.score(QUERY, passages).tolist(), requests))

    assert answers == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_reranker_scores_no_more(workers: int) -> None:
    session = FakeSession()
    with fake_reranker(session, workers=workers, budget_tokens=1) as reranker:
        reranker.score(QUERY, PASSAGES)

    with pytest.raises(EngineError, match="closed"):
        session.run(session.batches[0])
    with pytest.raises(ClosedError, match="the reranker is closed"):
        reranker.score(QUERY, PASSAGES)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("moment", [1, 2])
def test_a_call_that_meets_close_says_so(moment: int, workers: int) -> None:
    stages: list[str] = []

    def closing(stage: StageName, /) -> AbstractContextManager[object]:
        stages.append(stage)
        if stages.count("plan") == moment:
            reranker.close()
        return untimed(stage)

    reranker = fake_reranker(workers=workers, budget_tokens=1, timed=closing)
    with pytest.raises(ClosedError, match="the reranker is closed"):
        reranker.score(QUERY, PASSAGES)


def test_a_budget_of_no_tokens_is_refused() -> None:
    with fake_reranker() as reranker, pytest.raises(InputError, match="got budget_tokens 0"):
        reranker.compute_logits(reranker.tokenizer.encode(QUERY, PASSAGES), budget_tokens=0)


def test_a_cost_model_decides_the_cuts_and_no_score() -> None:
    texts = ["the city " * 20, "berlin", "people", "live"]
    plain, costly = FakeSession(), FakeSession()
    padding_is_dear = CostModel(fixed_ms=0.0, per_token_ms=1.0, per_token_squared_ms=1.0)
    with fake_reranker(plain) as default, fake_reranker(costly, cost=padding_is_dear) as tuned:
        expected, scores = default.score("query", texts), tuned.score("query", texts)

    np.testing.assert_allclose(scores, expected)
    assert [len(batch["input_ids"]) for batch in plain.batches] == [4]
    assert [len(batch["input_ids"]) for batch in costly.batches] == [1, 3]
