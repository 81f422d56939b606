"""The embedder on sessions without a model, and how embeddings are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossforge.profiles import (
    ClosedError,
    Embedding,
    InputError,
    Manifest,
    NonFiniteLogitsError,
    Pooling,
    Similarity,
    TruncationWarning,
    UnknownTokensWarning,
)
from crossforge.runtime import Embedder, FakeSession, PairTokenizer, Reranker
from crossforge.runtime.kinds import load_pair_scorer
from crossforge.runtime.similarity import compare_all, compare_pairwise
from crossforge.runtime.templates import derive_text_template
from support.builders import make_manifest, write_bundle
from support.families import FAMILIES, different_passages, make_tokenizer
from support.mean_model import MeanModel

DIMENSION = 3


def make_embedding(**overrides: object) -> Embedding:
    facts: dict[str, object] = {
        "dimension": DIMENSION,
        "pooling": (Pooling.MEAN,),
        "dense": (),
        "normalize": False,
        "similarity": Similarity.COSINE,
        "prompts": {"query": "where ", "document": "the "},
        "default_prompt": None,
    }
    return Embedding(**facts | overrides)  # type: ignore[arg-type]


def make_embedding_manifest(**overrides: object) -> Manifest:
    return make_manifest(embedding=make_embedding(**overrides), pair_template=derive_text_template(make_tokenizer()))


def fake_embedder(session: FakeSession | None = None, *, manifest: Manifest | None = None, **options: int) -> Embedder:
    manifest = manifest or make_embedding_manifest()
    tokenizer = PairTokenizer(make_tokenizer(), manifest.pair_template, manifest.truncation)
    return Embedder(session or FakeSession(labels=DIMENSION), tokenizer, manifest, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_encoded_as_the_tokenizer_itself_encodes_them(family: str) -> None:
    tokenizer, ours = make_tokenizer(family), make_tokenizer(family)
    template = derive_text_template(ours)
    session = FakeSession(labels=DIMENSION)
    manifest = make_manifest(embedding=make_embedding(), pair_template=template)
    texts = ["where is the city", "", "berlin, people live"]
    embedder = Embedder(session, PairTokenizer(ours, template, manifest.truncation), manifest, budget_tokens=1)
    embedder.encode(texts)
    expected = {tuple(tokenizer.encode(text).ids) for text in texts}
    assert {tuple(batch["input_ids"][0].tolist()) for batch in session.batches} == expected
    assert all((batch["token_type_ids"] == 0).all() for batch in session.batches)


def test_a_vector_depends_on_its_text_alone_and_stands_in_its_place() -> None:
    texts = [*different_passages(20), *different_passages(7, words=9), ""]
    alone = np.concatenate([fake_embedder().encode([text]) for text in texts])
    order = np.random.default_rng(0).permutation(len(texts))
    together = fake_embedder(budget_tokens=48, workers=2).encode([texts[i] for i in order])
    assert together.shape == (len(texts), DIMENSION)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, alone[order])


def test_no_batch_exceeds_the_budget_and_equal_texts_are_computed_once() -> None:
    session = FakeSession(labels=DIMENSION)
    embedded = fake_embedder(session, budget_tokens=40).embed([*different_passages(30, words=4)] * 2)
    assert max(batch["input_ids"].size for batch in session.batches) <= 40
    assert sum(len(batch["input_ids"]) for batch in session.batches) == 30
    assert embedded.batches == len(session.batches)
    np.testing.assert_array_equal(embedded.vectors[:30], embedded.vectors[30:])


def test_no_texts_give_no_vectors() -> None:
    assert fake_embedder().encode([]).shape == (0, DIMENSION)


def test_prompts_are_put_before_texts_by_name() -> None:
    embedder = fake_embedder()
    prompted = embedder.encode(["where is the city"])
    assert not np.array_equal(embedder.encode(["is the city"]), prompted)
    for vectors in (
        embedder.encode(["is the city"], prompt_name="query"),
        embedder.encode(["is the city"], prompt="where "),
        embedder.encode_queries(["is the city"]),
    ):
        np.testing.assert_array_equal(vectors, prompted)
    np.testing.assert_array_equal(embedder.encode_passages(["city"]), embedder.encode(["the city"]))


def test_a_default_prompt_is_put_before_texts_that_name_none() -> None:
    manifest = make_embedding_manifest(prompts={"city": "the "}, default_prompt="city")
    embedder = fake_embedder(manifest=manifest)
    expected = embedder.encode(["the query"], prompt="")
    for vectors in (embedder.encode(["query"]), embedder.encode_queries(["query"]), embedder.encode_passages(["query"])):
        np.testing.assert_array_equal(vectors, expected)


def test_a_blank_prompt_beside_a_named_one_is_passed_over() -> None:
    embedding = make_embedding(prompts={"query": "", "document": "", "passage": "passage: "})
    assert (embedding.query_prompt, embedding.passage_prompt) == ("", "passage: ")


def test_an_unknown_prompt_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="no such prompt; got 'title'; allowed: query, document"):
        fake_embedder().encode(["city"], prompt_name="title")
    with pytest.raises(InputError, match="two prompts are named"):
        fake_embedder().encode(["city"], prompt_name="query", prompt="x")


def test_a_text_that_was_cut_is_told() -> None:
    embedder = fake_embedder()
    texts = ["city", "city " * 100]
    with pytest.warns(TruncationWarning, match="1 of 2 texts") as caught:
        embedder.encode(texts)
    assert caught[0].filename == __file__
    embedded = embedder.embed(texts)
    assert embedded.truncated.tolist() == [False, True]
    assert embedded.token_counts.tolist() == [3, embedder.manifest.truncation.max_length]


def test_a_text_of_unknown_characters_is_told() -> None:
    with pytest.warns(UnknownTokensWarning, match="1 of 2 texts"):
        fake_embedder().encode(["ベルリン の 人口", "city"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [("a lone string", "texts must be a list"), (["city", 3], "text 1 is not a string"), (["\ud800"], "not valid Unicode")],
)
def test_what_is_no_list_of_texts_is_refused(texts: object, message: str) -> None:
    for prompt in (None, "the "):
        with pytest.raises(InputError, match=message):
            fake_embedder().encode(texts, prompt=prompt)  # type: ignore[arg-type]


def test_a_vector_that_is_not_finite_is_an_error() -> None:
    session = FakeSession(lambda ids: np.nan if len(ids) == 3 else 1.0, labels=DIMENSION)
    with pytest.raises(NonFiniteLogitsError, match="1 of 2 texts; got text 1 first"):
        fake_embedder(session).encode(["the city", "city"])


def test_a_closed_embedder_embeds_nothing() -> None:
    with fake_embedder() as embedder:
        pass
    with pytest.raises(ClosedError):
        embedder.encode(["city"])


def test_pairs_are_scored_by_the_similarity_of_prompted_texts_and_each_text_is_embedded_once() -> None:
    session = FakeSession(labels=DIMENSION)
    embedder = fake_embedder(session)
    pairs = [("city", "berlin"), ("city", "people live"), ("where", "berlin")]
    scored = embedder.score_pairs(pairs)
    assert sum(len(batch["input_ids"]) for batch in session.batches) == 4
    for (query, passage), logit in zip(pairs, scored.logits[:, 0], strict=True):
        a, b = embedder.encode([query], prompt_name="query"), embedder.encode([passage], prompt_name="document")
        assert logit == pytest.approx(embedder.similarity(a, b)[0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("city", "pairs must be a list"),
        (["city"], "pair 0 is not a pair; got str 'city'"),
        ([("city", "berlin"), (["city"], "berlin")], r"the query of pair 1 is not a string; got list"),
        ([("city", "berlin"), ("city", 3)], "passage 1 is not a string; got int 3"),
    ],
)
def test_what_is_no_pair_of_texts_is_refused(pairs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fake_embedder().score_pairs(pairs)


def by_hand(a: NDArray[np.float64], b: NDArray[np.float64], similarity: Similarity) -> float:
    match similarity:
        case Similarity.COSINE:
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        case Similarity.DOT:
            return float(a @ b)
        case Similarity.EUCLIDEAN:
            return -float(np.linalg.norm(a - b))
        case Similarity.MANHATTAN:
            return -float(np.abs(a - b).sum())


@pytest.mark.parametrize("similarity", Similarity)
def test_similarities_are_those_of_the_definition(similarity: Similarity) -> None:
    random = np.random.default_rng(1)
    a, b = random.standard_normal((20, DIMENSION)), random.standard_normal((17, DIMENSION))
    expected = [[by_hand(x, y, similarity) for y in b] for x in a]
    embedder = fake_embedder(manifest=make_embedding_manifest(similarity=similarity))
    found = embedder.similarity(a.astype(np.float32), b.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    pairwise = compare_pairwise(a[:17].astype(np.float32), b.astype(np.float32), similarity)
    np.testing.assert_allclose(pairwise, np.diagonal(np.asarray(expected)), atol=2e-6)


def test_equal_vectors_have_no_distance_and_an_empty_vector_has_no_direction() -> None:
    a = np.asarray([[300.0, 400.0, 0.001]], dtype=np.float32)
    assert compare_all(a, a, Similarity.EUCLIDEAN)[0, 0] == 0
    assert compare_all(a, np.zeros_like(a), Similarity.COSINE)[0, 0] == 0


def test_arrays_that_are_no_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match=r"b does not hold embeddings; got \[3\]; allowed: \[n, 3\]"):
        fake_embedder().similarity(np.zeros((1, 3), np.float32), np.zeros(3, np.float32))


@pytest.fixture
def embedding_bundle(tmp_path: Path) -> Path:
    """Its graph answers three columns, which may as well be an embedding."""
    template = derive_text_template(make_tokenizer())
    return write_bundle(
        tmp_path / "bundle",
        model=MeanModel(labels=DIMENSION),
        pair_template=template,
        embedding=make_embedding(prompts={}),
        scoring=make_manifest().scoring,
        golden=(),
    )


def test_each_bundle_is_loaded_by_its_own_class_alone(embedding_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds a bi-encoder.*Use crossforge\.runtime\.Embedder"):
        Reranker.load(embedding_bundle)
    of_pairs = write_bundle(tmp_path / "pairs")
    with pytest.raises(InputError, match=r"of a cross-encoder.*Use crossforge\.runtime\.Reranker"):
        Embedder.load(of_pairs)
    with load_pair_scorer(embedding_bundle) as embedder, load_pair_scorer(of_pairs) as reranker:
        assert isinstance(embedder, Embedder)
        assert isinstance(reranker, Reranker)


def test_a_loaded_embedder_answers_what_its_graph_computes(embedding_bundle: Path) -> None:
    texts = ["berlin is the city", "where", "people live in berlin, the city"]
    tokenizer = make_tokenizer()
    expected = MeanModel(labels=DIMENSION).logits([tokenizer.encode(text) for text in texts])
    with Embedder.load(embedding_bundle) as embedder:
        np.testing.assert_allclose(embedder.encode(texts), expected, atol=1e-5)
        assert embedder.dimension == DIMENSION
