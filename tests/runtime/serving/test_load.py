"""Many clients at once: right scores, an answer for each, and no more lost to a fault than was in the worker's hand."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from crossforge.profiles import Precision
from crossforge.runtime import FakeSession, Reranker
from crossforge.runtime.serving.models import ModelSpec, ServedModel, load_models
from crossforge.runtime.serving.settings import ServiceSettings
from support.builders import fake_reranker
from support.serving import WARM_UP_BATCHES, fake_service, gated_service, running
from support.sessions import WAIT_S

QUERY = "where is the city"
WORDS = ("the", "city", "berlin", "query", "passage", "people", "live", "where", "is", "a", "b", "c")


class DyingSession(FakeSession):
    """Dies of some of its batches, after the warm-up."""

    def __init__(self, deaths: Mapping[int, BaseException]) -> None:
        super().__init__()
        self._deaths = deaths
        self._runs = 0
        self._lock = Lock()
        self.pairs_lost = 0

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        with self._lock:
            death = self._deaths.get(self._runs - WARM_UP_BATCHES)
            self._runs += 1
            if death is not None:
                self.pairs_lost += len(batch["input_ids"])
        if death is not None:
            raise death
        return super().run(batch)


class BusySession(FakeSession):
    """Takes a fixed time for each pair."""

    def __init__(self, pair_s: float) -> None:
        super().__init__()
        self._pair_s = pair_s

    def run(self, batch: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        time.sleep(self._pair_s * len(batch["input_ids"]))
        return super().run(batch)


def requests(count: int, seed: int = 0, most_passages: int = 6) -> list[list[str]]:
    """Passages of so many requests, of unequal numbers and lengths."""
    random = np.random.default_rng(seed)
    return [
        [" ".join(random.choice(WORDS, random.integers(0, 30))) for _ in range(random.integers(1, most_passages))]
        for _ in range(count)
    ]


def ask_all(url: str, bodies: Sequence[object], *, at_once: int, path: str = "/rerank") -> list[httpx.Response]:
    """The answers to all bodies, so many at a time."""

    async def ask() -> list[httpx.Response]:
        turn = asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=at_once)
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=limits) as client:

            async def one(body: object) -> httpx.Response:
                async with turn:
                    return await client.post(path, json=body)

            return await asyncio.gather(*map(one, bodies))

    return asyncio.run(ask())


def body_of(texts: Sequence[str]) -> dict[str, object]:
    return {"query": QUERY, "texts": texts, "raw_scores": True, "truncate": True}


def scores_of(answer: httpx.Response) -> list[float]:
    return [row["score"] for row in sorted(answer.json(), key=lambda row: row["index"])]


@pytest.mark.parametrize("micro_batching", [True, False])
def test_scores_under_concurrency_are_the_scores_alone(micro_batching: bool) -> None:
    asked = requests(200)
    with fake_reranker() as reranker:
        alone = [reranker.score(QUERY, texts).tolist() for texts in asked]
    with fake_service(micro_batching=micro_batching) as service:
        answers = ask_all(service.url, [body_of(texts) for texts in asked], at_once=32)

    assert [scores_of(answer) for answer in answers] == alone


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [(Precision.FP32, 1e-5), (Precision.INT8, 1e-5)])
def test_a_real_models_scores_under_concurrency_are_its_scores_alone(
    demo_bundle: Path, precision: Precision, tolerance: float
) -> None:
    asked = requests(40)
    with Reranker.load(demo_bundle, precision=precision) as reranker:
        alone = [reranker.score(QUERY, texts).tolist() for texts in asked]
    settings = ServiceSettings(port=0)
    models = load_models([ModelSpec(name="demo", bundle=demo_bundle)], settings, precision=precision)
    with running(models, settings) as service:
        answers = ask_all(service.url, [body_of(texts) for texts in asked], at_once=16)

    for answer, expected in zip(answers, alone, strict=True):
        assert scores_of(answer) == pytest.approx(expected, abs=tolerance)


DEATHS = (SystemExit(1), KeyboardInterrupt(), MemoryError("no more"), RuntimeError("a bug"), BaseException("a panic"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("path", ["/rerank", "/score"])
def test_workers_that_die_under_load_lose_what_they_held_and_nothing_else(path: str) -> None:
    session = DyingSession({7 * (i + 1): death for i, death in enumerate(DEATHS)})
    asked = requests(300)
    with fake_service(session) as service:
        bodies = [
            body_of(texts) if path == "/rerank" else {"text_1": QUERY, "text_2": texts, "truncate_prompt_tokens": -1}
            for texts in asked
        ]
        answers = ask_all(service.url, bodies, at_once=32, path=path)
        metrics = service.get("/metrics").text
        well = service.post("/rerank", body_of(["berlin"]))
    lost = [answer for answer in answers if answer.status_code != 200]

    assert {answer.status_code for answer in lost} == {424 if path == "/rerank" else 500}
    assert all("a worker of the micro-batcher died" in answer.text for answer in lost)
    assert len(DEATHS) <= len(lost) <= session.pairs_lost
    assert f'crossforge_worker_restarts_total{{model="tiny"}} {float(len(DEATHS))}' in metrics
    assert 'crossforge_queue_tokens{model="tiny"} 0.0' in metrics
    assert well.status_code == 200


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
def test_without_micro_batching_a_death_is_its_own_requests_alone(death: BaseException) -> None:
    """SystemExit, handed on to the event loop, would end the service."""
    with fake_service(DyingSession({0: death}), micro_batching=False) as service:
        died, well = service.post("/rerank", body_of(["berlin"])), service.post("/rerank", body_of(["berlin"]))

    assert died.status_code in (424, 500)
    assert died.json()["error_type"] == "Backend"
    assert well.status_code == 200


@pytest.mark.parametrize("micro_batching", [True, False])
def test_a_tokenizer_that_panics_fails_its_request_at_once(micro_batching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic of Rust code is no Exception to Python; nobody may wait for its request until the deadline."""

    def panic(*_: object, **__: object) -> None:
        raise BaseException("index out of bounds")

    with fake_service(micro_batching=micro_batching) as service:
        with monkeypatch.context() as patch:
            patch.setattr(service.models["tiny"].reranker.tokenizer, "encode", panic)
            died = service.post("/rerank", body_of(["berlin"]))
        well = service.post("/rerank", body_of(["berlin"]))
        metrics = service.get("/metrics").text

    assert (died.status_code, well.status_code) == (424, 200)
    assert "index out of bounds" in died.json()["error"]
    if micro_batching:
        assert 'crossforge_queue_tokens{model="tiny"} 0.0' in metrics


def test_beyond_its_capacity_every_request_is_answered_or_told_when_to_come_back() -> None:
    asked = requests(400, most_passages=4)
    with fake_service(BusySession(0.001), max_queue_tokens=600) as service:
        answers = ask_all(service.url, [body_of(texts) for texts in asked], at_once=64)
        stats = service.models["tiny"].scorer.stats()  # type: ignore[attr-defined]
        well = service.post("/rerank", body_of(["berlin"]))
    counts = Counter(answer.status_code for answer in answers)
    refused = [answer for answer in answers if answer.status_code == 429]

    assert counts.total() == len(asked)
    assert set(counts) == {200, 429}
    # The queue holds 600 tokens, less than 200 pairs of 1 ms: whoever is told to wait is told so, in whole seconds.
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert all(answer.json()["error_type"] == "Overloaded" for answer in refused)
    assert (stats.pending_requests, stats.pending_tokens, stats.failed) == (0, 0, 0)
    assert stats.rejected == len(refused)
    assert well.status_code == 200


def test_the_wait_that_is_told_is_pending_work_over_measured_speed() -> None:
    with gated_service(max_queue_tokens=400, reranker={"budget_tokens": 32, "workers": 1}) as (service, session):
        scorer = service.models["tiny"].scorer
        with ThreadPoolExecutor(8) as callers:
            taken = [callers.submit(service.post, "/rerank", body_of(["city " * 40])) for _ in range(8)]
            session.wait_for_a_batch()
            while scorer.stats().pending_requests < 8:  # type: ignore[attr-defined]
                time.sleep(0.001)
            refused = service.post("/rerank", body_of(["city " * 40] * 2))
            wait_s = scorer.estimate_wait_s()
            session.let_through()
            answers = [future.result(WAIT_S) for future in taken]

    assert refused.status_code == 429
    assert wait_s is not None
    assert int(refused.headers["retry-after"]) == max(1, int(np.ceil(wait_s)))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(("max_queue_tokens", "turn"), [(262_144, 4_096), (100, 100)])
def test_a_turn_holds_a_usual_request_whole(max_queue_tokens: int, turn: int) -> None:
    """In turns of one CPU batch, it would stand in line again and again, behind those that came after it."""
    settings = ServiceSettings(max_queue_tokens=max_queue_tokens)
    model = ServedModel("tiny", fake_reranker(), settings)
    try:
        assert model.scorer.config.slice_tokens == turn  # type: ignore[attr-defined]
    finally:
        model.close()
