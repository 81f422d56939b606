"""Bodies to request models, and a message that says where they are wrong.

Parsing runs on the event loop: pydantic holds the interpreter's lock while it parses, so a thread would gain nothing. What
bounds it is ``max_body_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from crossforge.runtime.serving.errors import Dialect, Kind, ProblemError
from crossforge.runtime.serving.facts import facts_of

Model = TypeVar("Model", bound=BaseModel)
_MOST_FAULTS = 5


async def read_body(request: Request, model: type[Model]) -> Model:
    """Parse a body as a request model.

    Raises:
        ProblemError: Not said to be JSON, not JSON, or not such a request.
    """
    _check_media(request)
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise _problem(error) from None


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
    _check_media(request)
    try:
        parsed = from_json(await request.body())
    except ValueError as error:
        raise ProblemError(Kind.BODY, f"the body is not JSON: {error}") from None
    fields = parsed if isinstance(parsed, dict) else {}
    shape = next((shape for shape in shapes if shape.field in fields), shapes[0])
    facts_of(request.scope).dialect = shape.dialect
    try:
        return shape.model.model_validate(parsed)
    except ValidationError as error:
        raise _problem(error) from None


def _check_media(request: Request) -> None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ProblemError(Kind.MEDIA, f"the content type is {media[:50] or 'missing'}; allowed: application/json")


def _problem(fault: ValidationError) -> ProblemError:
    errors = fault.errors(include_url=False, include_input=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return ProblemError(Kind.BODY, f"the body is not JSON: {errors[0]['msg'].removeprefix('Invalid JSON: ')}")
    told = [f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}"[:200] for error in errors[:_MOST_FAULTS]]
    more = len(errors) - len(told)
    return ProblemError(Kind.SCHEMA, "; ".join(told) + (f"; and {more} more" if more else ""))
