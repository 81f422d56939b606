"""A model that prefers long passages, as the adapters are given one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossforge.runtime import FakeSession, Reranker
from support.builders import fake_reranker, write_bundle

QUERY = "where is the city"
TEXTS = ["berlin", "the city berlin", "", "people live"]
BEST_FIRST = [1, 3, 0, 2]
"""Positions in ``TEXTS`` by their numbers of tokens."""
SCORES = [9.0, 8.0, 7.0, 6.0]
"""Four tokens of the query, three special ones, and those of the passage, less one."""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework that reports home, or fetches something, fails its test."""
    for name in ("HAYSTACK_TELEMETRY_ENABLED", "LANGSMITH_TRACING"):
        monkeypatch.setenv(name, "False")

    def refuse(_: socket.socket, address: Any) -> None:
        raise AssertionError(f"an adapter wants to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession(lambda ids: float(len(ids)) - 1)


@pytest.fixture
def reranker(session: FakeSession) -> Iterator[Reranker]:
    with fake_reranker(session) as opened:
        yield opened


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("adapters") / "bundle")


@pytest.fixture(scope="session")
def bundle_order(bundle: Path) -> list[int]:
    """Positions in ``TEXTS``, best first, as the bundle's reranker has them."""
    with Reranker.load(bundle) as loaded:
        return [row.corpus_id for row in loaded.rank(QUERY, TEXTS)]


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)
