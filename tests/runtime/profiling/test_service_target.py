from __future__ import annotations

import json
import socket
from functools import partial

import pytest

from crossforge.profiles import InputError, OverloadedError, ServiceError
from crossforge.runtime.profiling.load import measure_load
from crossforge.runtime.profiling.load_report import Outcome, Slo
from crossforge.runtime.profiling.max_rate import measure_max_rate
from crossforge.runtime.profiling.service_target import ServiceTarget, check_answer, service_target
from crossforge.runtime.records import Passage, QueryRecord
from support.http_reranker import http_reranker
from support.sessions import WAIT_S

RECORDS = [
    QueryRecord(qid=str(i), query=f"query {i}", passages=tuple(Passage(id=str(k), text=f"text {k} ü") for k in range(i)))
    for i in (1, 3)
]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_requests_are_those_of_text_embeddings_inference() -> None:
    with http_reranker() as server:
        run = measure_load(partial(service_target, server.url, RECORDS), rate_per_s=50.0, duration_s=0.3)

    assert set(run.outcomes) == {Outcome.ANSWERED}
    assert len(server.requests) == 1 + len(run.outcomes)  # one that is no sample
    assert server.requests[:2] == [
        {"path": "/rerank", "query": "query 1", "texts": ["text 0 ü"], "raw_scores": True, "truncate": True},
        {
            "path": "/rerank",
            "query": "query 3",
            "texts": ["text 0 ü", "text 1 ü", "text 2 ü"],
            "raw_scores": True,
            "truncate": True,
        },
    ]


def test_a_connection_is_used_again() -> None:
    with http_reranker() as server, service_target(server.url, RECORDS) as target:
        for _ in range(9):
            target.submit().result(WAIT_S)

    assert len(server.requests) == 10
    assert len(server.connections) == 1


def test_a_connection_that_the_service_closed_meanwhile_is_replaced() -> None:
    with http_reranker(closes=True) as server, service_target(server.url, RECORDS) as target:
        for _ in range(5):
            target.submit().result(WAIT_S)

    assert len(server.connections) == 6


def test_latency_holds_the_queue_of_the_service() -> None:
    """20 requests of 10 ms, due within a tenth of the time that they take one after another."""
    with http_reranker(service_s=0.01) as server:
        run = measure_load(partial(service_target, server.url, RECORDS), rate_per_s=1000.0, duration_s=0.02)

    answered = len(run.outcomes)
    assert run.count(Outcome.ANSWERED) == answered > 10
    assert run.latencies_ms.max() >= answered * 10 - 20
    assert run.latencies_ms.min() >= 10


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_told_from_a_failure(status: int) -> None:
    with http_reranker(statuses=(200, status, 500)) as server:
        run = measure_load(partial(service_target, server.url, RECORDS), rate_per_s=100.0, duration_s=0.3)

    assert run.count(Outcome.REJECTED) > 0
    assert run.count(Outcome.FAILED) > 0
    assert run.errors == {"OverloadedError": run.count(Outcome.REJECTED), "HTTP 500": run.count(Outcome.FAILED)}


def test_a_service_that_goes_away_fails_its_requests() -> None:
    with http_reranker() as server:
        target = ServiceTarget(server.url, RECORDS)
        target.submit().result(WAIT_S)
    with pytest.raises(ServiceError, match="does not answer") as caught:
        target.submit().result(WAIT_S)
    target.close()

    assert caught.value.kind == "ConnectionRefusedError"


def test_a_service_that_is_silent_fails_its_requests() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = ServiceTarget(f"http://127.0.0.1:{silent.getsockname()[1]}", RECORDS, timeout_s=0.05)
        with pytest.raises(ServiceError, match="timed out") as caught:
            target.submit().result(WAIT_S)
        target.close()

    assert caught.value.kind == "TimeoutError"


def test_a_service_that_is_not_there_is_told_before_any_load() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError, match=r"the service at 127\.0\.0\.1:\d+ does not answer; got .*refused"):
        measure_load(partial(service_target, url, RECORDS), rate_per_s=1.0, duration_s=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statuses": (404,)}, r"POST /rerank failed; got HTTP 404: .*told to.*; allowed: 200"),
        ({"answer": b"<html>Welcome</html>"}, "did not answer with a ranking; got <html>Welcome</html>"),
        ({"answer": b"[]"}, r"did not answer with a ranking; got \[\]"),
        ({"answer": b"x" * 1000}, r"got x{200}\.\.\.;"),
    ],
)
def test_what_is_no_reranker_is_told_before_any_load(options: dict[str, object], message: str) -> None:
    with http_reranker(**options) as server, pytest.raises(ServiceError, match=message), service_target(server.url, RECORDS):
        pass


def test_a_service_that_refuses_the_first_request_is_told() -> None:
    with (
        http_reranker(statuses=(503,)) as server,
        pytest.raises(OverloadedError, match="HTTP 503"),
        service_target(server.url, RECORDS),
    ):
        pass


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ([{"index": 1, "score": 0.5}, {"index": 0, "score": -3}], True),
        ([{"index": 0, "score": 0.5, "text": "more"}, {"index": 1, "score": 1}], True),
        ([{"index": 0, "score": 0.5}], False),
        ([{"index": 0, "score": 0.5}, {"index": 0, "score": 0.5}], False),
        ([{"index": 0, "score": None}, {"index": 1, "score": 0.5}], False),
        ([{"index": 0, "score": float("nan")}, {"index": 1, "score": 0.5}], False),
        ([{"index": "0", "score": 1}, {"index": 1, "score": 1}], False),
        ({"results": []}, False),
        ([[0, 1], [1, 1]], False),
        (None, False),
    ],
)
def test_an_answer_is_a_ranking_of_all_passages_or_a_failure(answer: object, good: bool) -> None:
    text = json.dumps(answer).encode()
    if good:
        check_answer(text, 2)
        return
    with pytest.raises(ServiceError, match="did not answer with a ranking"):
        check_answer(text, 2)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://me@host",
        "http://h/?a=1",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="this is no URL"):
        ServiceTarget(url, RECORDS)


@pytest.mark.parametrize(("below", "path"), [("/", "/rerank"), ("/v1/", "/v1/rerank"), ("/v1/rerank", "/v1/rerank")])
def test_the_path_stands_below_the_url(below: str, path: str) -> None:
    with http_reranker() as server, service_target(server.url + below, RECORDS):
        pass
    assert [request["path"] for request in server.requests] == [path]


def test_records_are_needed() -> None:
    with pytest.raises(InputError, match="there is no request to send"):
        ServiceTarget("http://localhost", [])


def test_the_highest_rate_of_a_service_that_is_always_too_slow_is_none() -> None:
    with http_reranker(service_s=0.01) as server:
        make_target = partial(service_target, server.url, RECORDS)
        found = measure_max_rate(make_target, Slo(latency_ms=1.0), duration_s=0.1, most_trials=2)

    assert found.rate_per_s == 0.0
    assert all(trial.stopped_early for trial in found.trials)
