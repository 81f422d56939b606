"""What each dialect's owner documents, asked of a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crossforge.profiles import Activation
from crossforge.runtime import FakeSession
from crossforge.runtime.activation import activate
from support.builders import fake_reranker, make_manifest, make_scoring
from support.serving import RunningService, fake_service

QUERY = "where is the city"
TEXTS = ["a passage", "berlin is the city", "people", "the city of berlin where people live"]
LONG = "city " * 100
COHERE = {"model": "tiny", "query": QUERY, "documents": TEXTS}
VLLM = {"query": QUERY, "documents": TEXTS}
NIM = {"query": {"text": QUERY}, "passages": [{"text": text} for text in TEXTS]}


@pytest.fixture(scope="module")
def relevance() -> list[float]:
    with fake_reranker() as reranker:
        return [float(score) for score in reranker.score(QUERY, TEXTS)]


@pytest.fixture(scope="module")
def order(relevance: list[float]) -> list[int]:
    return sorted(range(len(relevance)), key=lambda i: -relevance[i])


def sigmoid(values: list[float]) -> list[float]:
    logits = np.asarray(values, dtype=np.float32)[:, None]
    return [float(score) for score in activate(logits, Activation.SIGMOID)[:, 0]]


class TestTei:
    def test_texts_are_ranked_by_the_sigmoid_of_their_score(
        self, service: RunningService, relevance: list[float], order: list[int]
    ) -> None:
        rows = service.post("/rerank", {"query": QUERY, "texts": TEXTS}).json()

        assert [row["index"] for row in rows] == order
        assert [row["score"] for row in rows] == [sigmoid(relevance)[i] for i in order]
        assert all(set(row) == {"index", "score"} for row in rows)

    def test_raw_scores_are_the_rerankers(self, service: RunningService, relevance: list[float], order: list[int]) -> None:
        rows = service.post("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True}).json()

        assert [row["score"] for row in rows] == [relevance[i] for i in order]

    def test_texts_come_back_when_asked_for(self, service: RunningService, order: list[int]) -> None:
        rows = service.post("/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True}).json()

        assert [row["text"] for row in rows] == [TEXTS[i] for i in order]

    @pytest.mark.parametrize("truncate", [None, False])
    def test_what_does_not_fit_is_refused_unless_it_may_be_cut(self, service: RunningService, truncate: bool | None) -> None:
        refused = service.post("/rerank", {"query": QUERY, "texts": ["berlin", LONG], "truncate": truncate})
        cut = service.post("/rerank", {"query": QUERY, "texts": ["berlin", LONG], "truncate": True})

        assert refused.status_code == 413
        assert refused.json()["error_type"] == "Validation"
        assert "pair 1" in refused.json()["error"]
        assert cut.status_code == 200

    def test_a_side_that_the_model_is_not_cut_on_is_refused(self, service: RunningService) -> None:
        body = {"query": QUERY, "texts": [LONG], "truncate": True, "truncation_direction": "left"}
        answer = service.post("/rerank", body)

        assert answer.status_code == 422
        assert "cut on the right" in answer.json()["error"]

    def test_fields_that_tei_does_not_know_are_ignored(self, service: RunningService) -> None:
        assert service.post("/rerank", {"query": QUERY, "texts": TEXTS, "is_truncated": True}).status_code == 200

    def test_no_texts_are_empty(self, service: RunningService) -> None:
        answer = service.post("/rerank", {"query": QUERY, "texts": []})

        assert (answer.status_code, answer.json()["error_type"]) == (400, "Empty")

    def test_info_describes_a_reranker(self, service: RunningService) -> None:
        info = service.get("/info").json()

        assert info["model_id"] == "tiny"
        assert info["max_input_length"] == 64
        assert info["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}

    def test_times_are_told_in_the_headers(self, service: RunningService) -> None:
        headers = service.post("/rerank", {"query": QUERY, "texts": TEXTS}).headers

        assert int(headers["x-compute-tokens"]) > 0
        for name in ("x-total-time", "x-queue-time", "x-tokenization-time", "x-inference-time"):
            assert headers[name].isdigit()


class TestCohere:
    @pytest.mark.parametrize("version", ["1", "2"])
    def test_documents_are_ranked_between_0_and_1(
        self, service: RunningService, version: str, relevance: list[float], order: list[int]
    ) -> None:
        answer = service.post(f"/v{version}/rerank", COHERE).json()

        assert [row["index"] for row in answer["results"]] == order
        assert [row["relevance_score"] for row in answer["results"]] == [sigmoid(relevance)[i] for i in order]
        assert answer["meta"]["api_version"] == {"version": version}
        assert answer["id"]
        assert all("document" not in row for row in answer["results"])

    def test_top_n_keeps_the_best(self, service: RunningService, order: list[int]) -> None:
        answer = service.post("/v2/rerank", {**COHERE, "top_n": 2}).json()

        assert [row["index"] for row in answer["results"]] == order[:2]

    def test_objects_come_back_with_all_their_fields(self, service: RunningService) -> None:
        documents = [{"text": "berlin", "page": 3}, "a passage"]
        answer = service.post("/v1/rerank", {**COHERE, "documents": documents, "return_documents": True}).json()

        assert {row["index"]: row["document"] for row in answer["results"]} == {
            0: {"text": "berlin", "page": 3},
            1: {"text": "a passage"},
        }

    def test_documents_are_cut_to_max_tokens_per_doc(self, service: RunningService) -> None:
        def score(**options: Any) -> float:
            body = {"model": "tiny", "query": QUERY, "top_n": 1, **options}
            return float(service.post("/v2/rerank", body).json()["results"][0]["relevance_score"])

        assert score(documents=["berlin people live"], max_tokens_per_doc=1) == score(documents=["berlin"])

    def test_what_was_cut_is_a_warning(self, service: RunningService) -> None:
        answer = service.post("/v2/rerank", {**COHERE, "documents": ["berlin", LONG]}).json()

        assert answer["meta"]["warnings"] == ["1 documents were read in part, as they or the query were too long: 1"]

    @pytest.mark.parametrize(
        ("path", "option"),
        [
            ("/v1/rerank", {"rank_fields": ["title"]}),
            ("/v1/rerank", {"max_chunks_per_doc": 3, "documents": [LONG]}),
            ("/v2/rerank", {"relevant_spans": {"enabled": True}}),
            ("/v2/rerank", {"priority": 3}),
            ("/v2/rerank", {"top_k": 3}),
            ("/v2/rerank", {"top_n": 0}),
        ],
    )
    def test_what_is_not_done_is_refused(self, service: RunningService, path: str, option: dict[str, Any]) -> None:
        answer = service.post(path, {**COHERE, **option})

        assert answer.status_code == 422
        assert set(answer.json()) == {"id", "message"}

    def test_chunks_are_no_matter_where_documents_fit(self, service: RunningService) -> None:
        assert service.post("/v1/rerank", {**COHERE, "max_chunks_per_doc": 10}).status_code == 200

    def test_version_2_needs_a_model(self, service: RunningService) -> None:
        answer = service.post("/v2/rerank", {"query": QUERY, "documents": TEXTS})

        assert answer.status_code == 422
        assert answer.json()["message"] == "model: Field required"


class TestJina:
    def test_documents_are_ranked(self, service: RunningService, relevance: list[float], order: list[int]) -> None:
        answer = service.post("/jina/v1/rerank", {**COHERE, "return_documents": True}).json()

        assert answer["object"] == "list"
        assert answer["model"] == "tiny"
        assert answer["usage"]["total_tokens"] > 0
        assert [row["document"]["text"] for row in answer["results"]] == [TEXTS[i] for i in order]
        assert [row["relevance_score"] for row in answer["results"]] == [sigmoid(relevance)[i] for i in order]

    def test_documents_are_left_out_by_default(self, service: RunningService) -> None:
        answer = service.post("/jina/v1/rerank", COHERE).json()

        assert all(set(row) == {"index", "relevance_score"} for row in answer["results"])

    def test_its_clients_find_what_they_read_at_v1_rerank(self, service: RunningService) -> None:
        answer = service.post("/v1/rerank", COHERE).json()

        assert answer["model"] == "tiny"
        assert answer["usage"]["total_tokens"] > 0

    @pytest.mark.parametrize("option", [{"truncation": False, "documents": [LONG]}, {"return_embeddings": True}])
    def test_what_is_not_done_is_refused(self, service: RunningService, option: dict[str, Any]) -> None:
        answer = service.post("/jina/v1/rerank", {**COHERE, **option})

        assert answer.status_code == 422
        assert isinstance(answer.json()["detail"], str)


class TestVllm:
    @pytest.mark.parametrize("path", ["/score", "/v1/score"])
    @pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items")])
    def test_one_text_is_scored_with_many(self, service: RunningService, path: str, names: tuple[str, str]) -> None:
        answer = service.post(path, dict(zip(names, (QUERY, TEXTS), strict=True))).json()

        assert [row["index"] for row in answer["data"]] == [0, 1, 2, 3]
        assert {row["object"] for row in answer["data"]} == {"score"}
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0

    def test_scores_are_those_of_the_models_own_activation(self, service: RunningService, relevance: list[float]) -> None:
        body = {"text_1": QUERY, "text_2": TEXTS}
        activated = service.post("/score", body).json()["data"]
        raw = service.post("/score", {**body, "use_activation": False}).json()["data"]

        assert [row["score"] for row in activated] == sigmoid(relevance)
        assert [row["score"] for row in raw] == relevance

    def test_many_texts_are_scored_with_as_many(self, service: RunningService, relevance: list[float]) -> None:
        answer = service.post("/score", {"text_1": [QUERY, "people", QUERY], "text_2": [TEXTS[0], "city", TEXTS[1]]}).json()
        scores = [row["score"] for row in answer["data"]]

        assert [scores[0], scores[2]] == sigmoid(relevance)[:2]

    def test_texts_that_do_not_pair_are_refused(self, service: RunningService) -> None:
        answer = service.post("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})

        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "BadRequestError"
        assert answer.json()["error"]["code"] == 400

    def test_a_rerank_body_with_documents_is_answered_as_vllm_does(self, service: RunningService, order: list[int]) -> None:
        answer = service.post("/rerank", {**VLLM, "top_n": 2}).json()

        assert [row["index"] for row in answer["results"]] == order[:2]
        assert [row["document"]["text"] for row in answer["results"]] == [TEXTS[i] for i in order[:2]]
        assert set(answer) == {"id", "model", "usage", "results"}

    def test_its_errors_are_vllms_then(self, service: RunningService) -> None:
        answer = service.post("/rerank", {"query": 3, "documents": TEXTS})

        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("query:")

    def test_what_does_not_fit_is_refused_unless_it_may_be_cut(self, service: RunningService) -> None:
        body = {"text_1": QUERY, "text_2": [LONG]}

        assert service.post("/score", body).status_code == 400
        assert service.post("/score", {**body, "truncate_prompt_tokens": -1}).status_code == 200
        assert service.post("/score", {**body, "truncate_prompt_tokens": 64}).status_code == 200

    @pytest.mark.parametrize(
        "option",
        [
            {"truncate_prompt_tokens": 32},
            {"truncate_prompt_tokens": -1, "truncation_side": "left"},
            {"priority": 1},
            {"mm_processor_kwargs": {"a": 1}},
        ],
    )
    def test_what_is_not_done_is_refused(self, service: RunningService, option: dict[str, Any]) -> None:
        assert service.post("/rerank", {**VLLM, **option}).status_code == 422

    def test_the_models_are_listed(self, service: RunningService) -> None:
        assert [row["id"] for row in service.get("/v1/models").json()["data"]] == ["tiny"]


class TestNim:
    def test_passages_are_ranked_by_their_logits(
        self, service: RunningService, relevance: list[float], order: list[int]
    ) -> None:
        answer = service.post("/v1/ranking", NIM).json()

        assert answer["rankings"] == [{"index": i, "logit": relevance[i]} for i in order]
        assert answer["usage"]["total_tokens"] > 0

    def test_what_does_not_fit_is_refused_unless_its_end_may_be_cut(self, service: RunningService) -> None:
        body = {"query": {"text": QUERY}, "passages": [{"text": LONG}]}
        refused = service.post("/v1/ranking", body)

        assert refused.status_code == 400
        assert refused.json()["object"] == "error"
        assert service.post("/v1/ranking", {**body, "truncate": "END"}).status_code == 200

    @pytest.mark.parametrize("option", [{"truncate": "START"}, {"top_n": 3}])
    def test_fields_that_nim_does_not_know_are_refused(self, service: RunningService, option: dict[str, Any]) -> None:
        assert service.post("/v1/ranking", {**NIM, **option}).status_code == 422


EVERY_PATH = {
    "/rerank": {"query": QUERY, "texts": TEXTS},
    "/v1/rerank": COHERE,
    "/v2/rerank": COHERE,
    "/jina/v1/rerank": COHERE,
    "/score": {"text_1": QUERY, "text_2": TEXTS},
    "/v1/score": {"text_1": QUERY, "text_2": TEXTS},
    "/v1/ranking": NIM,
}
WITH_MODEL = sorted(set(EVERY_PATH) - {"/rerank"})


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"query": "\xff"}',
        b'{"query": "\\ud800"}',
        b"[" * 100_000,
        b"null",
        b"3",
        b'{"query": NaN}',
        b"9" * 9_000,
    ],
    ids=["empty", "half", "not UTF-8", "surrogate", "deep", "null", "number", "NaN", "huge number"],
)
def test_what_is_no_request_is_the_clients_fault(service: RunningService, path: str, body: bytes) -> None:
    answer = service.client.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code in (400, 422)
    assert answer.json()


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda name: {name: [1] * 100_000}, 413),
        (lambda name: {name: [1] * 1_000}, (400, 422)),
        (lambda name: {name: [{str(i): i for i in range(1_000)}]}, (400, 422)),
        (lambda _: {str(i): i for i in range(1_000)}, (400, 422)),
    ],
    ids=["many wrong items", "a thousand", "an item of many fields", "many fields"],
)
def test_a_body_full_of_faults_costs_little_and_is_told_in_short(
    service: RunningService, path: str, change: Callable[[str], dict[str, Any]], status: int | tuple[int, ...]
) -> None:
    body = EVERY_PATH[path]
    name = next(name for name, value in body.items() if isinstance(value, list))
    answer = service.post(path, {**body, **change(name)})

    assert answer.status_code in (status if isinstance(status, tuple) else (status,))
    assert len(answer.content) < 2_000


@pytest.mark.parametrize("path", EVERY_PATH)
def test_only_json_is_read(service: RunningService, path: str) -> None:
    assert service.client.post(path, content=b"query=a", headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_blank_query_is_refused(service: RunningService, path: str) -> None:
    name = "text_1" if "score" in path else "query"
    blank = {"text": " "} if "ranking" in path else " "
    answer = service.post(path, {**EVERY_PATH[path], name: blank})

    assert answer.status_code in (400, 422)
    assert "is empty" in answer.text


@pytest.mark.parametrize("path", WITH_MODEL)
def test_a_model_that_is_not_served_is_not_found(service: RunningService, path: str) -> None:
    answer = service.post(path, {**EVERY_PATH[path], "model": "rerank-v3.5"})

    assert answer.status_code == 404
    assert "served: tiny" in answer.text


@pytest.mark.parametrize("path", EVERY_PATH)
def test_nul_bytes_are_text_like_any_other(service: RunningService, path: str) -> None:
    name = "text_1" if "score" in path else "query"
    query = {"text": "a\0b"} if "ranking" in path else "a\0b"

    assert service.post(path, {**EVERY_PATH[path], name: query}).status_code == 200


def test_models_with_several_labels_answer_the_probability_of_the_one_that_ranks() -> None:
    manifest = make_manifest(scoring=make_scoring(2, ranking_label=1))

    with fake_service(FakeSession(labels=2), reranker={"manifest": manifest}) as service:
        answer = service.post("/v2/rerank", COHERE).json()

    # The fake's second logit is its first plus one.
    assert [row["relevance_score"] for row in answer["results"]] == pytest.approx([1 / (1 + np.exp(-1))] * 4)
