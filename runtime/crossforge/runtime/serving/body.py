"""Bodies to request models, and a message that says where they are wrong.

Parsing runs on the event loop: pydantic holds the interpreter's lock while it parses, so a thread would gain nothing. What
bounds it is ``max_body_bytes``, and a look at the sizes before a model sees them: pydantic tells every fault that it finds,
and a body of a few megabytes has room for a million of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from crossforge.runtime.serving.errors import Dialect, Kind, ProblemError
from crossforge.runtime.serving.facts import facts_of
from crossforge.runtime.serving.service import service_of

Model = TypeVar("Model", bound=BaseModel)
_MOST_FIELDS = 64
_MOST_FAULTS = 5


async def read_body(request: Request, model: type[Model]) -> Model:
    """Parse a body as a request model.

    Raises:
        ProblemError: Not said to be JSON, not JSON, not such a request, or too much of one.
    """
    return _validate(model, await _parse(request))


@dataclass(frozen=True, kw_only=True)
class Shape(Generic[Model]):
    """One of the kinds of body that a path takes."""

    field: str
    """Tells it from the others."""
    model: type[Model]
    dialect: Dialect
    """In which it is answered."""


async def read_shape(request: Request, *shapes: Shape[Model]) -> Model:
    """Parse a body as the first shape whose telling field it has, or as the first of all; see :func:`read_body`."""
    parsed = await _parse(request)
    fields = parsed if isinstance(parsed, dict) else {}
    shape = next((shape for shape in shapes if shape.field in fields), shapes[0])
    facts_of(request.scope).dialect = shape.dialect
    return _validate(shape.model, parsed)


async def _parse(request: Request) -> object:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ProblemError(Kind.MEDIA, f"the content type is {media[:50] or 'missing'}; allowed: application/json")
    try:
        # The stream and not body(), which would keep the bytes until the request ends.
        parsed: object = from_json(b"".join([part async for part in request.stream()]))
    except ValueError as error:
        raise ProblemError(Kind.BODY, f"the body is not JSON: {error}") from None
    if isinstance(parsed, dict):
        _check_fields(parsed)
        for value in parsed.values():
            if isinstance(value, dict):
                _check_fields(value)
            elif isinstance(value, list):
                _check_count(len(value), service_of(request).settings.max_passages)
                for item in value:
                    if isinstance(item, dict):
                        _check_fields(item)
    return parsed


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise ProblemError(Kind.TOO_LARGE, f"too many passages; got {count:,}; allowed: up to {most:,} a request")


def _check_fields(value: dict[str, object]) -> None:
    if len(value) > _MOST_FIELDS:
        raise ProblemError(Kind.SCHEMA, f"an object has too many fields; got {len(value):,}; allowed: up to {_MOST_FIELDS}")


def _validate(model: type[Model], parsed: object) -> Model:
    if isinstance(parsed, dict) and parsed.get("chunk") is not None and "chunk" not in model.model_fields:
        # Some dialects ignore what they do not know: a long passage would be cut, and its client think that it was split.
        raise ProblemError(
            Kind.OPTION, "chunk is not offered in this shape; send it to /rerank with texts, to /v1/rerank or /v2/rerank"
        )
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, fault['loc']))[:100] or 'body'}: {fault['msg'][:200]}" for fault in faults[:_MOST_FAULTS]]
    more = len(faults) - len(told)
    raise ProblemError(Kind.SCHEMA, "; ".join(told) + (f"; and {more:,} more" if more else ""))
