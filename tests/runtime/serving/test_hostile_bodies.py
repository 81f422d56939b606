"""Bodies that no client would send by accident: each is a 4xx in the dialect's own words, and the service goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from support.serving import RunningService, fake_service

DEEP = b"[" * 100_000
MANY = 300_000


@dataclass(frozen=True)
class Path:
    """A path, the least body that it takes, and where its texts are."""

    path: str
    body: dict[str, Any]
    texts: str
    error_keys: frozenset[str]
    wrap: bool = False
    """Each text is an object."""

    def with_texts(self, texts: list[Any]) -> dict[str, Any]:
        return {**self.body, self.texts: [{"text": text} for text in texts] if self.wrap else texts}


PATHS = (
    Path("/rerank", {"query": "city", "texts": ["berlin"]}, "texts", frozenset({"error", "error_type"})),
    Path("/v1/rerank", {"query": "city", "documents": ["berlin"]}, "documents", frozenset({"id", "message"})),
    Path(
        "/v2/rerank", {"model": "tiny", "query": "city", "documents": ["berlin"]}, "documents", frozenset({"id", "message"})
    ),
    Path("/jina/v1/rerank", {"query": "city", "documents": ["berlin"]}, "documents", frozenset({"detail"})),
    Path("/score", {"text_1": "city", "text_2": ["berlin"]}, "text_2", frozenset({"error"})),
    Path(
        "/v1/ranking",
        {"query": {"text": "city"}, "passages": [{"text": "berlin"}]},
        "passages",
        frozenset({"object", "message", "detail", "type"}),
        wrap=True,
    ),
)
every_path = pytest.mark.parametrize("path", PATHS, ids=[path.path for path in PATHS])

NOT_JSON = {
    "nothing": b"",
    "half": b'{"query": "ci',
    "deep lists": DEEP,
    "deep objects": b'{"a":' * 100_000,
    "deep inside": b'{"query": "city", "x": ' + DEEP + b"}",
    "invalid UTF-8": b'{"query": "\xff\xfe"}',
    "overlong UTF-8": b'{"query": "\xc0\xaf"}',
    "UTF-16": '{"query": "city"}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "a NUL byte": b'{"query": "ci\x00ty"}',
    "NUL bytes": b"\x00" * 10_000,
    "a lone surrogate": b'{"query": "\\ud800"}',
    "surrogates in the wrong order": b'{"query": "\\udc00\\ud800"}',
    "a number of 5,000 digits": b'{"query": "city", "x": ' + b"9" * 5_000 + b"}",
    "two documents": b"{}{}",
}


@pytest.fixture(scope="module")
def served() -> Iterator[RunningService]:
    """One service for all of them; at the end it is as it was."""
    with fake_service() as service:
        yield service
        assert service.get("/health").status_code == 200
        assert "crossforge_worker_restarts_total{" in (metrics := service.get("/metrics").text)
        assert 'crossforge_worker_restarts_total{model="tiny"} 0.0' in metrics
        assert 'crossforge_queue_tokens{model="tiny"} 0.0' in metrics


def send(service: RunningService, path: Path, raw: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """Post bytes; afterwards a proper request is answered on the same connection."""
    answer = service.client.post(path.path, content=raw, headers={"content-type": "application/json", **headers})
    assert service.post(path.path, path.body).status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused(served: RunningService, raw: bytes) -> None:
    for path in PATHS:
        status, error = send(served, path, raw)

        assert status == 400
        assert set(error) == path.error_keys
        assert "the body is not JSON" in json.dumps(error)


@pytest.mark.parametrize(
    "value", [None, True, 0, -1, 10**400, 1e308, 1.5, "", [], [[]], {}, [None], [1], [True], [{}], {"text": 1}], ids=repr
)
def test_a_wrong_type_in_any_field_is_refused_or_answered(served: RunningService, value: object) -> None:
    for path in PATHS:
        for field in (*path.body, "top_n", "truncate", "truncate_prompt_tokens", "max_tokens_per_doc", "priority"):
            answer = served.post(path.path, {**path.body, field: value})
            # A value may be right for a field, or the field one that a dialect does not know and ignores.
            assert answer.status_code == 200 or (
                400 <= answer.status_code < 500 and set(answer.json()) == path.error_keys
            ), (path.path, field, answer.text)


@every_path
def test_json_that_is_no_request_is_refused(served: RunningService, path: Path) -> None:
    for raw in (b"null", b"[]", b"0", b'"text"', b"{}", b"true"):
        status, error = send(served, path, raw)

        assert status in (400, 422)
        assert set(error) == path.error_keys


@every_path
def test_what_is_not_said_to_be_json_is_not_read(served: RunningService, path: Path) -> None:
    """A browser sends some of these across origins without asking first."""
    for media in (b"text/plain", b"application/xml", b"multipart/form-data; boundary=a", b"", b"\xff"):
        headers = {"content-type": media}
        answer = served.client.post(path.path, content=json.dumps(path.body).encode(), headers=headers)  # type: ignore[arg-type]

        assert answer.status_code == 415
        assert set(answer.json()) == path.error_keys


@every_path
def test_ten_thousand_passages_are_too_many(served: RunningService, path: Path) -> None:
    status, error = send(served, path, json.dumps(path.with_texts(["berlin"] * 10_000)).encode())

    assert status == 413
    assert "too many passages; got 10,000; allowed: up to 1,000 a request" in json.dumps(error)


@every_path
def test_no_passages_are_refused(served: RunningService, path: Path) -> None:
    status, error = send(served, path, json.dumps(path.with_texts([])).encode())

    assert status == 400
    assert "there is nothing to rank" in json.dumps(error)


@every_path
def test_empty_passages_are_ranked(served: RunningService, path: Path) -> None:
    assert send(served, path, json.dumps(path.with_texts(["", " ", "\n"])).encode())[0] == 200


@every_path
def test_odd_characters_are_text(served: RunningService, path: Path) -> None:
    texts = ["\x00", "\u202e\ufeff", "\U0010ffff" * 5, "e\u0301" * 5]

    assert send(served, path, json.dumps(path.with_texts(texts)).encode())[0] == 200


@every_path
def test_the_last_of_two_keys_counts(served: RunningService, path: Path) -> None:
    """As Python, JavaScript and Rust read JSON: RFC 8259 leaves it open."""
    once = json.dumps(path.body)
    twice = f'{{"{path.texts}": "nonsense", {once[1:]}'

    assert send(served, path, twice.encode())[0] == 200


@every_path
@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"0," * MANY + b"0", id="numbers"),
        pytest.param(b"[]," * MANY + b"0", id="lists"),
        pytest.param(b'{"text":0},' * (MANY // 2) + b"0", id="objects"),
    ],
)
def test_many_wrong_items_are_counted_and_not_listed(served: RunningService, path: Path, raw: bytes) -> None:
    """Listing what is wrong with each of three million took half a minute and gigabytes."""
    body = json.dumps(path.with_texts([])).encode()
    status, error = send(served, path, body.replace(b"[]", b"[" + raw + b"]"))

    assert status == 413
    assert len(json.dumps(error)) < 2_000


def test_a_hundred_thousand_unknown_fields_are_not_listed(served: RunningService) -> None:
    path = PATHS[-1]
    status, error = send(served, path, json.dumps({**path.body, **{str(i): 0 for i in range(100_000)}}).encode())

    assert status == 422
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    ("extra", "status"),
    [("NaN", 422), ("-Infinity", 422), ("1e999", 422), ("[[{}, 1e999]]", 422), ("9" * 4_000, 200), ("1e-999", 200)],
)
def test_what_comes_back_with_a_document_is_json(served: RunningService, extra: str, status: int) -> None:
    raw = f'{{"query": "city", "documents": [{{"text": "berlin", "x": {extra}}}], "return_documents": true}}'
    for path in PATHS[1], PATHS[3]:
        assert send(served, path, raw.encode())[0] == status


@pytest.mark.parametrize("number", ["9" * 40, "-" + "9" * 40, "1" + "0" * 4_000])
def test_whole_numbers_of_any_size_are_numbers(served: RunningService, number: str) -> None:
    raw = f'{{"model": "tiny", "query": "city", "documents": ["berlin"], "top_n": {number}, "max_tokens_per_doc": {number}}}'
    status, _ = send(served, PATHS[2], raw.encode())

    assert status == (422 if number.startswith("-") else 200)


@pytest.mark.parametrize("name", ["nobody", "../tiny", "tiny\n", "\x1b[31m", "a" * 100_000, "tiny\x00"], ids=ascii)
def test_names_of_models_that_are_not_served_are_no_new_metrics(served: RunningService, name: str) -> None:
    """Or a client could fill the memory with them."""
    status, error = send(served, PATHS[2], json.dumps({**PATHS[2].body, "model": name}).encode())

    assert status == 404
    assert len(error["message"]) < 1_000
    assert {line.partition("}")[0].partition('model="')[2].partition('"')[0] for line in requests_of(served)} <= {"", "tiny"}


def requests_of(service: RunningService) -> list[str]:
    lines = service.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("crossforge_requests_total{")]
