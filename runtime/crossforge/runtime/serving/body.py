"""Bodies to request models, and a message that says where they are wrong.

Parsing runs on the event loop: pydantic holds the interpreter's lock while it parses, so a thread would gain nothing. What
bounds it is ``max_body_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, FailFast, ValidationError

from crossforge.runtime.serving.errors import Dialect, Kind, ProblemError
from crossforge.runtime.serving.facts import facts_of

Model = TypeVar("Model", bound=BaseModel)
_MOST_FAULTS = 5
"""Told to the client."""
_MANY_FAULTS = 100
"""Not even looked at."""

Items = TypeVar("Items")


class _FailFast(FailFast):
    """pydantic's, which cannot stand in a union because it has no hash."""

    __hash__ = object.__hash__


FirstFault = Annotated[Items, _FailFast()]
"""A list that is refused at its first wrong item: a body has room for millions, and each fault costs memory."""


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
    raw, facts = await request.body(), facts_of(request.scope)
    problem: ProblemError | None = None
    for shape in shapes:
        facts.dialect = shape.dialect
        # Not parsed into objects first, to look for the field: eight megabytes of empty lists would take a second.
        try:
            return shape.model.model_validate_json(raw)
        except ValidationError as error:
            if not _lacks(error, shape.field):
                raise _problem(error) from None
            problem = problem or _problem(error)
    facts.dialect = shapes[0].dialect
    raise problem or ProblemError(Kind.INTERNAL, "this path takes no body")


def _check_media(request: Request) -> None:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ProblemError(Kind.MEDIA, f"the content type is {media[:50] or 'missing'}; allowed: application/json")


def _lacks(fault: ValidationError, field: str) -> bool:
    return fault.error_count() <= _MANY_FAULTS and any(
        error["type"] == "missing" and error["loc"] == (field,) for error in fault.errors(include_input=False)
    )


def _problem(fault: ValidationError) -> ProblemError:
    count = fault.error_count()
    if count > _MANY_FAULTS:  # to list a million takes seconds and a gigabyte
        return ProblemError(Kind.SCHEMA, f"the body is wrong in {count:,} places")
    errors = fault.errors(include_url=False, include_input=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return ProblemError(Kind.BODY, f"the body is not JSON: {errors[0]['msg'].removeprefix('Invalid JSON: ')}")
    told = [f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}"[:200] for error in errors[:_MOST_FAULTS]]
    more = count - len(told)
    return ProblemError(Kind.SCHEMA, "; ".join(told) + (f"; and {more} more" if more else ""))
