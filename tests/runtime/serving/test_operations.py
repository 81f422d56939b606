"""Keys, health, metrics, logs and the OpenAPI document."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from crossforge.profiles import EngineError
from crossforge.runtime import FakeSession
from crossforge.runtime.microbatch import MicroBatcher
from crossforge.runtime.serving import health
from crossforge.runtime.serving.logs import JsonFormatter
from support.serving import WARM_UP_BATCHES, RunningService, fake_service, gated_service

BODY = {"query": "where is the city", "texts": ["berlin", "a passage"]}
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningService]:
    with fake_service(api_keys=KEYS) as service:
        yield service


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"x-api-key": "second-key"},
    ],
)
def test_any_key_opens_by_either_header(locked: RunningService, headers: dict[str, str]) -> None:
    assert locked.post("/rerank", BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Basic first-key"},
        {"x-api-key": "first-key "[:-2]},
        {"x-api-key": "é".encode("latin-1")},
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/nothing"])
def test_anything_else_is_refused(locked: RunningService, path: str, headers: dict[str, Any]) -> None:
    answer = locked.post(path, BODY, headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_probes_need_no_key_and_metrics_do(locked: RunningService) -> None:
    assert [locked.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
    assert [locked.get(path).status_code for path in ("/metrics", "/openapi.json", "/info")] == [401, 401, 401]


def test_a_key_shows_neither_in_settings_nor_in_logs(locked: RunningService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        locked.post("/rerank", BODY, headers={"x-api-key": KEYS[0]})
        locked.post("/rerank", BODY, headers={"x-api-key": "a-wrong-key"})
        locked.get("/ready")  # a request is logged behind its answer, and before the next one
    logged = "\n".join(JsonFormatter().format(record) for record in caplog.records)

    assert "no valid API key" in logged
    for secret in (*KEYS, "a-wrong-key"):
        assert secret not in logged
        assert secret not in repr(locked.server.config.app.state.service.settings)  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_may_ask_for_the_head_alone(service: RunningService, path: str) -> None:
    answer = service.client.head(path)

    assert (answer.status_code, answer.content) == (200, b"")


def test_health_is_cheap_while_batches_complete_and_a_forward_pass_when_none_did() -> None:
    session = FakeSession()
    with fake_service(session) as service:
        assert service.get("/health").status_code == 200
        assert len(session.batches) == WARM_UP_BATCHES
        service.models["tiny"].session.last_batch_at = None
        assert service.get("/health").status_code == 200
        assert len(session.batches) == WARM_UP_BATCHES + 1


def test_a_model_that_fails_is_not_healthy() -> None:
    with gated_service() as (service, session):
        session.failures = [EngineError("the engine broke")]
        session.let_through()
        service.models["tiny"].session.last_batch_at = None
        sick = service.get("/health")
        well = service.get("/health")

    assert (sick.status_code, sick.json()["error_type"]) == (503, "Unhealthy")
    assert well.status_code == 200


def test_all_who_ask_a_model_that_hangs_wait_for_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns of one whole timeout each, the last of many would be answered long after its prober gave up."""
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.3)
    with gated_service() as (service, session), ThreadPoolExecutor(6) as probers:
        model = service.models["tiny"]
        assert isinstance(model.scorer, MicroBatcher)
        model.session.last_batch_at = None
        asked = [probers.submit(service.get, "/health") for _ in range(6)]
        statuses = {probe.result().status_code for probe in asked}
        stats = model.scorer.stats()
        session.let_through()

    assert statuses == {503}
    assert stats.pending_requests + stats.cancelled < 6


def test_a_model_that_hangs_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", 0.05)
    with gated_service() as (service, session):
        service.models["tiny"].session.last_batch_at = None
        sick = service.get("/health")
        session.let_through()

    assert sick.status_code == 503


def test_metrics_tell_stages_batches_and_what_was_cut() -> None:
    with fake_service() as service:
        service.post("/rerank", {**BODY, "texts": ["berlin", "city " * 100], "truncate": True})
        service.post("/v1/rerank", {"query": "city", "documents": []})
        text = service.get("/metrics").text

    for stage in ("queue", "tokenize", "compute", "total"):
        assert f'crossforge_request_seconds_count{{model="tiny",stage="{stage}"}} 1.0' in text
    assert 'crossforge_requests_total{dialect="tei",model="tiny",status="200"} 1.0' in text
    assert 'crossforge_requests_total{dialect="cohere",model="tiny",status="400"} 1.0' in text
    assert 'crossforge_truncated_pairs_total{model="tiny"} 1.0' in text
    assert 'crossforge_batch_pairs_sum{model="tiny"} 4.0' in text  # two of the warm-up
    assert 'crossforge_queue_tokens{model="tiny"} 0.0' in text
    tokens, padded = (
        float(re.findall(rf'^crossforge_{name}_total{{model="tiny"}} (.*)$', text, flags=re.MULTILINE)[0])
        for name in ("tokens", "padded_tokens")
    )
    assert 0 < tokens <= padded


@pytest.mark.parametrize("sent", ["abc-123", "a" * 128])
def test_a_sane_request_id_is_kept(service: RunningService, sent: str) -> None:
    answer = service.post("/v2/rerank", {"model": "tiny", "query": "a", "documents": ["b"]}, headers={"x-request-id": sent})

    assert answer.headers["x-request-id"] == sent
    assert answer.json()["id"] == sent


@pytest.mark.parametrize("sent", ["", "a b", "a" * 129, 'a"b', "a/b"])
def test_any_other_request_id_is_replaced(service: RunningService, sent: str) -> None:
    answer = service.get("/ready", headers={"x-request-id": sent})

    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_every_answer_has_a_request_id(service: RunningService) -> None:
    for path in ("/nothing", "/health", "/rerank"):
        assert service.get(path).headers["x-request-id"]


def test_a_request_is_logged_as_one_json_line_without_its_texts(
    service: RunningService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        service.post("/rerank", {"query": "secret query", "texts": ["secret text"]}, headers={"x-request-id": "r1"})
        service.get("/ready")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "crossforge.serving"]

    (line,) = [line for line in lines if line.get("request_id") == "r1"]
    assert (line["status"], line["model"], line["dialect"], line["passages"]) == (200, "tiny", "tei", 1)
    assert {"duration_ms", "queue_ms", "tokenize_ms", "compute_ms", "tokens", "truncated"} <= set(line)
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize("char", ["\u2028", "\x85", "\x9b", "\x1b", "\n"])
def test_no_character_of_a_path_ends_a_line_or_commands_a_terminal(char: str) -> None:
    record = logging.makeLogRecord({"msg": "request", "fields": {"path": f"/a{char}b"}})
    line = JsonFormatter().format(record)

    assert char not in line
    assert json.loads(line)["path"] == f"/a{char}b"


def test_an_error_that_nobody_foresaw_is_logged_and_told_without_its_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_service() as service:

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(service.models["tiny"].scorer, "schedule_encoding", broken)
        answer = service.post("/rerank", BODY)

    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "ZeroDivisionError" in json.loads(JsonFormatter().format(record))["traceback"]


def test_the_openapi_document_describes_every_body(service: RunningService) -> None:
    document = service.get("/openapi.json").json()
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps(document))

    for path, methods in document["paths"].items():
        if "post" in methods:
            assert "requestBody" in methods["post"], path
    assert references
    for reference in references:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"texts": 3}),
        ("/rerank", {"documents": 3}),
        ("/v2/rerank", {}),
        ("/jina/v1/rerank", {}),
        ("/score", {}),
        ("/v1/ranking", {}),
        ("/playground/rank", {}),
    ],
)
def test_errors_are_what_the_openapi_document_says(service: RunningService, path: str, body: dict[str, Any]) -> None:
    answer = service.post(path, body).json()
    response = service.get("/openapi.json").json()["paths"][path]["post"]["responses"]["4XX"]
    schema = response["content"]["application/json"]["schema"]

    assert set(answer) in [set(shape["required"]) for shape in schema.get("anyOf", [schema])]


def test_there_is_no_page_that_loads_scripts_from_elsewhere(service: RunningService) -> None:
    assert [service.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_the_wrong_method_says_which_is_right(service: RunningService) -> None:
    answer = service.get("/rerank")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
