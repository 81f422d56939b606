"""A real Triton server over what ``crossforge triton`` wrote, asked over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from crossforge.export.triton import TritonOptions, write_model_repository
from crossforge.runtime import Reranker
from support.builders import write_bundle
from support.triton_server import TritonServer, run_triton

pytestmark = pytest.mark.slow

QUERY = "where is the city"
PASSAGES = ["berlin is the city", "a passage", "people live where", "the city " * 60]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("triton") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    workspace = tmp_path_factory.mktemp("server")
    repository = workspace / "repository"
    write_model_repository(bundle, repository)
    # A second model waits for company, so that its requests are merged however fast they are answered.
    patient = write_model_repository(bundle, repository, TritonOptions(name="patient", provider="cpu", workers=1))
    config = patient / "config.pbtxt"
    config.write_text(
        config.read_text().replace("dynamic_batching { }", "dynamic_batching { max_queue_delay_microseconds: 500000 }")
    )
    with run_triton(repository, workspace) as running:
        yield running


@pytest.fixture(scope="module")
def reranker(bundle: Path) -> Iterator[Reranker]:
    with Reranker.load(bundle) as loaded:
        yield loaded


def outputs(answer: tuple[int, Any]) -> dict[str, Any]:
    status, document = answer
    assert status == 200, document
    return {output["name"]: (output["datatype"], output["shape"], output["data"]) for output in document["outputs"]}


def test_a_query_with_its_passages_scores_as_the_reranker_does(server: TritonServer, reranker: Reranker) -> None:
    answer = outputs(server.infer("reranker", [QUERY], [PASSAGES]))
    scored = reranker.score_pairs([(QUERY, passage) for passage in PASSAGES])
    assert answer["SCORE"] == ("FP32", [1, 4], pytest.approx(reranker.relevance(scored.logits).tolist(), abs=1e-5))
    assert answer["TRUNCATED"] == ("BOOL", [1, 4], [False, False, False, True])


def test_pairs_of_several_queries_are_rows(server: TritonServer, reranker: Reranker) -> None:
    pairs = [(QUERY, "a passage"), ("query", "berlin"), ("Où est la ville ?", "Berlin \N{CITYSCAPE}")]
    answer = outputs(server.infer("reranker", [query for query, _ in pairs], [[passage] for _, passage in pairs]))
    expected = reranker.relevance(reranker.score_pairs(pairs).logits).tolist()
    assert answer["SCORE"] == ("FP32", [3, 1], pytest.approx(expected, abs=1e-5))


def test_requests_of_different_sizes_are_merged_and_answered_apart(server: TritonServer, reranker: Reranker) -> None:
    sizes = [1, 2, 3, 4, 1, 2, 3, 4]
    with ThreadPoolExecutor(len(sizes)) as pool:
        answers = list(pool.map(lambda n: outputs(server.infer("patient", [QUERY], [PASSAGES[:n]])), sizes))
    expected = reranker.score_pairs([(QUERY, passage) for passage in PASSAGES])
    for size, answer in zip(sizes, answers, strict=True):
        assert answer["SCORE"][2] == pytest.approx(reranker.relevance(expected.logits)[:size].tolist(), abs=1e-5)
    [statistics] = server.get("/v2/models/patient/stats")[1]["model_stats"]
    assert statistics["inference_count"] == len(sizes)
    assert statistics["execution_count"] < len(sizes)


def test_a_bad_request_is_told_why_and_the_others_are_answered(server: TritonServer) -> None:
    queries = [QUERY, " ", QUERY]
    with ThreadPoolExecutor(len(queries)) as pool:
        good, bad, other = pool.map(lambda query: server.infer("patient", [query], [PASSAGES]), queries)
    assert outputs(good) == outputs(other)
    status, document = bad
    assert status == 400
    assert "the query of pair 0 is empty" in document["error"]
