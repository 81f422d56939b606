"""Bodies to request models, and a message that says where they are wrong.

Parsing runs on the event loop: pydantic holds the interpreter's lock while it parses, so a thread would gain nothing. What
bounds it is ``max_body_bytes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from crossforge.runtime.serving.errors import Kind, ProblemError

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


async def read_shape(request: Request, models: Mapping[str, type[Model]]) -> Model:
    """Parse a body as the model whose telling field it has; see :func:`read_body`.

    Args:
        request: Its body may be of several shapes.
        models: Each by the field that tells it from the others. The first is for bodies that have none of the fields.
    """
    _check_media(request)
    try:
        parsed = from_json(await request.body())
    except ValueError as error:
        raise ProblemError(Kind.BODY, f"the body is not JSON: {error}") from None
    fields = parsed if isinstance(parsed, dict) else {}
    chosen = next((model for field, model in models.items() if field in fields), next(iter(models.values())))
    try:
        return chosen.model_validate(parsed)
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
