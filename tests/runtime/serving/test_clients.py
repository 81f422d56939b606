"""Clients that others wrote, told nothing but the address."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cohere
import httpx
import pytest
from cohere.core.request_options import RequestOptions

from support.builders import fake_reranker
from support.serving import RunningService, fake_service

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = Path(os.environ.get("CROSSFORGE_CLIENTS_VENV", ROOT / ".venv-clients"))
"""The virtual environment that holds the frameworks; `make test` makes it."""
QUERY = "where is the city"
TEXTS = ["a passage", "berlin is the city", "people", "the city of berlin where people live"]
KEY = "a-key"
FRAMEWORKS = (
    "LangChain's CohereRerank",
    "LlamaIndex's CohereRerank",
    "LlamaIndex's TextEmbeddingInference",
    "LlamaIndex's JinaRerank",
)
NO_RETRIES = RequestOptions(max_retries=0)


@pytest.fixture(scope="module")
def best_first() -> list[int]:
    with fake_reranker() as reranker:
        return [row.corpus_id for row in reranker.rank(QUERY, TEXTS)]


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningService]:
    with fake_service(api_keys=(KEY,)) as service:
        yield service


@pytest.fixture
def transport() -> Iterator[httpx.Client]:
    """Cohere's client leaves its own open."""
    with httpx.Client(timeout=30) as client:
        yield client


def test_coheres_client_ranks(locked: RunningService, transport: httpx.Client, best_first: list[int]) -> None:
    client = cohere.Client(api_key=KEY, base_url=locked.url, httpx_client=transport)
    answer = client.rerank(model="tiny", query=QUERY, documents=TEXTS, top_n=2, return_documents=True)

    assert [row.index for row in answer.results] == best_first[:2]
    assert [row.document.text for row in answer.results if row.document] == [TEXTS[i] for i in best_first[:2]]
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "1"


def test_coheres_second_client_ranks(locked: RunningService, transport: httpx.Client, best_first: list[int]) -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=locked.url, httpx_client=transport)
    answer = client.rerank(model="tiny", query=QUERY, documents=TEXTS, max_tokens_per_doc=4096)

    assert [row.index for row in answer.results] == best_first
    scores = [row.relevance_score for row in answer.results]
    assert scores == sorted(scores, reverse=True)


def test_coheres_client_raises_its_own_errors(locked: RunningService, transport: httpx.Client) -> None:
    client = cohere.ClientV2(api_key=KEY, base_url=locked.url, httpx_client=transport)
    stranger = cohere.ClientV2(api_key="another", base_url=locked.url, httpx_client=transport)

    with pytest.raises(cohere.NotFoundError, match="served: tiny"):
        client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, request_options=NO_RETRIES)
    with pytest.raises(cohere.BadRequestError, match="nothing to rank"):
        client.rerank(model="tiny", query=QUERY, documents=[], request_options=NO_RETRIES)
    with pytest.raises(cohere.UnauthorizedError, match="no valid API key"):
        stranger.rerank(model="tiny", query=QUERY, documents=TEXTS, request_options=NO_RETRIES)


@pytest.fixture(scope="module")
def framework_answers(service: RunningService) -> dict[str, list[tuple[str, float]]]:
    python = ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no frameworks in {ENVIRONMENT}; see tests/clients_requirements.txt")
    script = ROOT / "tests" / "support" / "framework_clients.py"
    done = subprocess.run(
        [python, script, service.url, "tiny", QUERY, *TEXTS],
        env={"PATH": os.defpath, "HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[tuple[str, float]]] = json.loads(done.stdout)
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_frameworks_reranker_ranks(
    framework_answers: dict[str, list[tuple[str, float]]], name: str, best_first: list[int]
) -> None:
    ranked = framework_answers[name]

    assert [text for text, _ in ranked] == [TEXTS[i] for i in best_first]
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
