"""What becomes known of a request on its way: told to the log and the metrics when it ends."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from crossforge.runtime.serving.errors import Dialect, Kind
from crossforge.runtime.timing import RequestTimes

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "crossforge"

DIALECT_OF_PATH: Mapping[str, Dialect] = {
    "/rerank": Dialect.TEI,
    "/info": Dialect.TEI,
    "/health": Dialect.TEI,
    "/v1/rerank": Dialect.COHERE,
    "/v2/rerank": Dialect.COHERE,
    "/jina/v1/rerank": Dialect.JINA,
    "/score": Dialect.VLLM,
    "/v1/score": Dialect.VLLM,
    "/v1/models": Dialect.VLLM,
    "/v1/ranking": Dialect.NIM,
}
"""Whose protocol a path speaks; every other path is our own."""


@dataclass(kw_only=True)
class RequestFacts:
    """One request; filled in by whoever learns something."""

    request_id: str
    dialect: Dialect
    problem: Kind | None = None
    detail: str | None = None
    """Why it failed: never a text that was sent, never a key."""
    model: str | None = None
    passages: int = 0
    tokens: int = 0
    truncated: int = 0
    times: RequestTimes | None = None


def begin(scope: MutableMapping[str, Any]) -> RequestFacts:
    """Start the facts of a request: takes the client's ``X-Request-Id`` if it is sane, and makes one otherwise."""
    sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    facts = RequestFacts(
        request_id=sent if _SANE_ID.fullmatch(sent) else uuid.uuid4().hex,
        dialect=DIALECT_OF_PATH.get(scope["path"], Dialect.OWN),
    )
    scope[_KEY] = facts
    return facts


def facts_of(scope: Mapping[str, Any]) -> RequestFacts:
    """The facts of a request that is being answered."""
    facts: RequestFacts = scope[_KEY]
    return facts
