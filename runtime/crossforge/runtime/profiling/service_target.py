"""A service under load, over HTTP: whatever answers ``POST /rerank`` as text-embeddings-inference does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from itertools import cycle
from queue import Empty, LifoQueue
from typing import Any
from urllib.parse import urlsplit

from crossforge.profiles import InputError, OverloadedError, ServiceError
from crossforge.runtime.profiling.load import Target
from crossforge.runtime.records import QueryRecord

MOST_CONNECTIONS = 512
"""Requests that may be on their way at once; what is due meanwhile waits, and its wait counts."""
_PATH = "/rerank"
_REFUSED = (429, 503)
"""Too many requests; not available now."""
_STALE = (RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""What an idle connection that the service has closed answers."""
_SHOWN_CHARS = 200


class ServiceTarget:
    """Sends records to a URL, in their order, again and again. Connections are kept and used again.

    Whoever makes one closes it.

    Args:
        url: Of the service; requests go to ``/rerank`` below it.
        records: One request each.
        timeout_s: How long the service may be silent before a request fails.

    Raises:
        InputError: The URL is none, or there are no records.
    """

    def __init__(self, url: str, records: Sequence[QueryRecord], *, timeout_s: float = 60.0) -> None:
        if not records:
            raise InputError("there is no request to send", allowed="one record or more")
        self._kind, self._host, self._port, self._path = _parse_url(url)
        self._timeout_s = timeout_s
        self._requests = cycle([(_body(record), len(record.passages)) for record in records])
        self._idle: LifoQueue[HTTPConnection] = LifoQueue()
        self._senders = ThreadPoolExecutor(MOST_CONNECTIONS, thread_name_prefix="crossforge-load")

    def submit(self) -> Future[Any]:
        """Send the next request; see :meth:`Target.submit`.

        The future ends with OverloadedError where the service refuses (status 429 or 503), and with ServiceError where
        it fails otherwise.
        """
        return self._senders.submit(self._ask, *next(self._requests))

    def close(self) -> None:
        """Wait for the answers that are under way, and close the connections."""
        self._senders.shutdown(wait=True, cancel_futures=True)
        while (connection := self._take_idle()) is not None:
            connection.close()

    def _ask(self, body: bytes, passages: int) -> None:
        try:
            status, answer = self._post(body)
        except (OSError, HTTPException) as error:
            raise ServiceError(
                f"the service at {self._host}:{self._port} does not answer",
                kind=type(error).__name__,
                got=str(error) or type(error).__name__,
            ) from error
        if status in _REFUSED:
            raise OverloadedError("the service refused a request", got=f"HTTP {status}: {_shown(answer)}")
        if status != 200:
            raise ServiceError(
                f"POST {self._path} failed", kind=f"HTTP {status}", got=f"HTTP {status}: {_shown(answer)}", allowed=200
            )
        check_answer(answer, passages)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        """Over an idle connection if there is one. If the service has closed it meanwhile, once more over a new one."""
        if (idle := self._take_idle()) is not None:
            try:
                return self._exchange(idle, body)
            except _STALE:
                pass
        return self._exchange(self._kind(self._host, self._port, timeout=self._timeout_s), body)

    def _exchange(self, connection: HTTPConnection, body: bytes) -> tuple[int, bytes]:
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                answer = response.status, response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)  # closed by now if the service asked for that; it then connects anew by itself
        return answer

    def _take_idle(self) -> HTTPConnection | None:
        try:
            return self._idle.get_nowait()
        except Empty:
            return None


@contextmanager
def service_target(url: str, records: Sequence[QueryRecord], *, timeout_s: float = 60.0) -> Iterator[Target]:
    """A service that has answered a first request, for as long as the context lasts.

    Args:
        url: Of the service; requests go to ``/rerank`` below it.
        records: The requests, sent in their order, again and again.
        timeout_s: How long the service may be silent before a request fails.

    Raises:
        InputError: The URL is none, or there are no records.
        ServiceError: Nothing answers there, or not as a reranker.
        OverloadedError: The service refuses the first request.
    """
    target = ServiceTarget(url, records, timeout_s=timeout_s)
    try:
        target.submit().result()
        yield target
    finally:
        target.close()


def check_answer(answer: bytes, passages: int) -> None:
    """Check that an answer is a ranking of so many passages: ``[{"index", "score"}, ...]`` in any order.

    Raises:
        ServiceError: It is not.
    """
    try:
        rows = json.loads(answer)
        indices = sorted(row["index"] for row in rows)
        complete = indices == list(range(passages)) and all(math.isfinite(row["score"]) for row in rows)
    except (ValueError, TypeError, KeyError, RecursionError):
        complete = False
    if not complete:
        raise ServiceError(
            "the service did not answer with a ranking",
            kind="not a ranking",
            got=_shown(answer),
            allowed=f'a list of {passages} {{"index", "score"}}, as text-embeddings-inference answers POST /rerank',
        )


def _parse_url(url: str) -> tuple[type[HTTPConnection], str, int, str]:
    """How to connect, where, and the path to post to.

    Raises:
        InputError: It is no URL of a service.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"this is no URL ({error})", got=url, allowed="such as http://127.0.0.1:8080") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise InputError("this is no URL of a service", got=url, allowed="such as http://127.0.0.1:8080")
    kind, usual_port = (HTTPSConnection, 443) if parts.scheme == "https" else (HTTPConnection, 80)
    path = parts.path.rstrip("/")
    return kind, parts.hostname, port or usual_port, path if path.endswith(_PATH) else path + _PATH


def _body(record: QueryRecord) -> bytes:
    texts = [passage.text for passage in record.passages]
    return json.dumps({"query": record.query, "texts": texts, "raw_scores": True, "truncate": True}).encode()


def _shown(answer: bytes) -> str:
    text = " ".join(answer.decode("utf-8", errors="replace").split())
    return f"{text[:_SHOWN_CHARS]}..." if len(text) > _SHOWN_CHARS else text or "nothing"
