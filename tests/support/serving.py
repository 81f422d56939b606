"""A service that runs: real uvicorn, real sockets, in a thread of this process or as a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from crossforge.runtime import FakeSession
from crossforge.runtime.serving.app import create_app
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.server import Server, bind, make_server, url_of
from crossforge.runtime.serving.settings import ServiceSettings
from support.builders import fake_reranker
from support.sessions import GatedSession

WARM_UP_BATCHES = 2
"""The shortest pair, and the longest."""


class RunningService:
    """A service under test, and a client of it."""

    def __init__(self, url: str, models: Mapping[str, ServedModel], server: Server, client: httpx.Client) -> None:
        self.url = url
        self.models = models
        self.server = server
        self.client = client

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)


@contextmanager
def running(models: Mapping[str, ServedModel], settings: ServiceSettings) -> Iterator[RunningService]:
    """Serve models on a free port of the loopback; they are closed at the end.

    ``settings`` must be the ones that the models were made with; its port is 0.
    """
    listening = bind(settings)
    server = make_server(create_app(models, settings), settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
    thread.start()
    url = url_of(listening, settings)
    try:
        with httpx.Client(base_url=url, timeout=30, verify=False) as client:
            # The socket listens already: the first answer comes when the server has started.
            while client.get("/ready").status_code == 503 and thread.is_alive():
                pass
            yield RunningService(url, models, server, client)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def fake_service(
    session: FakeSession | None = None, *, reranker: dict[str, Any] | None = None, **settings: Any
) -> Iterator[RunningService]:
    """A service of one model, ``tiny``, whose session needs no model."""
    chosen = ServiceSettings(port=0, **settings)
    model = ServedModel("tiny", fake_reranker(session, **(reranker or {})), chosen)
    with running({"tiny": model}, chosen) as service:
        yield service


@contextmanager
def gated_service(session: GatedSession | None = None, **settings: Any) -> Iterator[tuple[RunningService, GatedSession]]:
    """A service whose batches wait until the test lets them through, once it is warm."""
    session = session or GatedSession()
    session.let_through(WARM_UP_BATCHES)
    with fake_service(session, **settings) as service:
        for _ in range(WARM_UP_BATCHES):
            session.wait_for_a_batch()
        try:
            yield service, session
        finally:
            session.let_through()
