"""Our errors as each dialect tells them: its own status and its own body."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus

from crossforge.profiles import (
    ClosedError,
    CrossforgeError,
    DeadlineError,
    InputError,
    OverloadedError,
    RequestTooLargeError,
)


class Kind(StrEnum):
    """What went wrong with a request."""

    BODY = "body"
    """Not JSON."""
    MEDIA = "media"
    """Said to be something else than JSON."""
    SCHEMA = "schema"
    """JSON, but not a request."""
    EMPTY = "empty"
    """Nothing to rank."""
    OPTION = "option"
    """Asks for what this service does not do."""
    TEXT = "text"
    """A text that cannot be used."""
    TOO_LARGE = "too_large"
    """More than a limit of the service allows."""
    TOO_LONG = "too_long"
    """A pair that the model cannot read whole, and must not be cut."""
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD = "method"
    SLOW = "slow"
    """The client took too long to send it."""
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    ENGINE = "engine"
    CROWDED = "crowded"
    """As many connections are open as may be, each with a request."""
    UNAVAILABLE = "unavailable"
    """The service is starting, or stopping."""
    INTERNAL = "internal"


class Dialect(StrEnum):
    """Whose protocol a path speaks."""

    TEI = "tei"
    COHERE = "cohere"
    JINA = "jina"
    VLLM = "vllm"
    NIM = "nim"
    OWN = "own"


STATUS = {
    Kind.BODY: 400,
    Kind.MEDIA: 415,
    Kind.SCHEMA: 422,
    Kind.EMPTY: 400,
    Kind.OPTION: 422,
    Kind.TEXT: 422,
    Kind.TOO_LARGE: 413,
    Kind.TOO_LONG: 422,
    Kind.UNAUTHORIZED: 401,
    Kind.NOT_FOUND: 404,
    Kind.METHOD: 405,
    Kind.SLOW: 408,
    Kind.OVERLOADED: 429,
    Kind.DEADLINE: 504,
    Kind.ENGINE: 500,
    Kind.CROWDED: 503,
    Kind.UNAVAILABLE: 503,
    Kind.INTERNAL: 500,
}
_STATUS_OF: dict[Dialect, dict[Kind, int]] = {
    Dialect.TEI: {Kind.ENGINE: 424, Kind.TOO_LONG: 413},
    Dialect.COHERE: {Kind.TEXT: 400},
    Dialect.VLLM: {Kind.SCHEMA: 400, Kind.TEXT: 400, Kind.TOO_LONG: 400},
    Dialect.NIM: {Kind.TOO_LONG: 400},
}
"""Where an owner's documents or source say otherwise than STATUS."""
_TEI_TYPES = {
    Kind.EMPTY: "Empty",
    Kind.TEXT: "Tokenizer",
    Kind.OVERLOADED: "Overloaded",
    Kind.ENGINE: "Backend",
    Kind.INTERNAL: "Backend",
    Kind.DEADLINE: "Overloaded",
    Kind.CROWDED: "Overloaded",
    Kind.UNAVAILABLE: "Unhealthy",
}
DEFAULT_RETRY_S = 1
"""Where nothing was measured yet."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A request that cannot be answered, before a dialect puts it into its words."""

    kind: Kind
    message: str
    retry_after_s: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def status(self, dialect: Dialect) -> int:
        """The HTTP status by which a dialect tells it."""
        return _STATUS_OF.get(dialect, {}).get(self.kind, STATUS[self.kind])

    def all_headers(self) -> dict[str, str]:
        """Its headers, ``Retry-After`` among them where there is one."""
        retry = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**self.headers, **retry}

    def body(self, dialect: Dialect, request_id: str) -> dict[str, object]:
        """The JSON document by which a dialect tells it."""
        status = self.status(dialect)
        if dialect is Dialect.TEI:
            return {"error": self.message, "error_type": _TEI_TYPES.get(self.kind, "Validation")}
        if dialect is Dialect.COHERE:
            return {"id": request_id, "message": self.message}
        if dialect is Dialect.JINA:
            return {"detail": self.message}
        if dialect is Dialect.NIM:
            type_ = "invalid_request_error" if status < 500 else "internal_server_error"
            return {"object": "error", "message": self.message, "detail": {}, "type": type_}
        if dialect is Dialect.VLLM:
            name = HTTPStatus(status).phrase.replace(" ", "").removesuffix("Error") + "Error"
            return {"error": {"message": self.message, "type": name, "param": None, "code": status}}
        return {"error": self.message}


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(self, kind: Kind, message: str, *, retry_after_s: int | None = None) -> None:
        self.problem = Problem(kind=kind, message=message, retry_after_s=retry_after_s)
        super().__init__(message)


def problem_of(error: CrossforgeError, *, wait_s: float | None = None) -> Problem:
    """What an error of ours is to a client.

    Args:
        error: Raised while a request was answered.
        wait_s: Seconds in which the queued work will be done, where the error itself does not say.
    """
    if isinstance(error, OverloadedError):
        wait_s = wait_s if error.wait_s is None else error.wait_s
        return Problem(kind=Kind.OVERLOADED, message=str(error), retry_after_s=retry_after_s(wait_s))
    if isinstance(error, DeadlineError):
        return Problem(kind=Kind.DEADLINE, message=str(error), retry_after_s=retry_after_s(wait_s))
    if isinstance(error, RequestTooLargeError):
        return Problem(kind=Kind.TOO_LARGE, message=str(error))
    if isinstance(error, InputError):
        return Problem(kind=Kind.TEXT, message=str(error))
    if isinstance(error, ClosedError):
        return Problem(kind=Kind.UNAVAILABLE, message="the service is stopping", retry_after_s=DEFAULT_RETRY_S)
    return Problem(kind=Kind.ENGINE, message=str(error))


def retry_after_s(wait_s: float | None) -> int:
    """Whole seconds for ``Retry-After``: rounded up, never 0."""
    return DEFAULT_RETRY_S if wait_s is None else max(1, math.ceil(wait_s))
