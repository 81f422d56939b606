"""schemathesis makes requests of the service's own OpenAPI document, valid and not: none may be a 5xx, or undescribed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode

from support.serving import RunningService, fake_service

EXAMPLES = 10
"""For each path. `schemathesis run URL/openapi.json` asks as many as there is time for."""


@pytest.fixture(scope="module")
def served() -> Iterator[RunningService]:
    with fake_service() as service:
        yield service
        assert service.get("/health").status_code == 200
        assert 'crossforge_worker_restarts_total{model="tiny"} 0.0' in service.get("/metrics").text


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_no_request_of_the_schema_or_against_it_is_a_server_error(served: RunningService, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    asked: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method.upper() == "GET":
            continue  # a request without a body cannot be against its schema

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=[not_a_server_error])

        ask()
        asked.add(operation.label)

    assert {"POST /rerank", "POST /v2/rerank", "POST /v1/ranking", "POST /score", "POST /jina/v1/rerank"} <= asked
