"""Bodies to request models: one pass over the bytes, and a message that says where they are wrong."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from crossforge.runtime.serving.errors import Kind, ProblemError

Model = TypeVar("Model", bound=BaseModel)
_MOST_FAULTS = 5


async def read_body(request: Request, *models: type[Model]) -> Model:
    """Parse a body as the first model whose fields it has.

    Parsing runs on the event loop: pydantic holds the interpreter's lock while it parses, so a thread would gain nothing.
    What bounds it is ``max_body_bytes``.

    Args:
        request: Its body is read already.
        models: Request models; with several, the first that declares one of the body's ``SHAPE`` fields.

    Raises:
        ProblemError: Not JSON, or not a request.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ProblemError(Kind.MEDIA, f"the content type is {media[:50] or 'missing'}; allowed: application/json")
    body = await request.body()
    faults: list[ValidationError] = []
    for model in models:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            faults.append(error)
    raise _problem(faults)


def _problem(faults: list[ValidationError]) -> ProblemError:
    """Told by the model that came nearest."""
    nearest = min(faults, key=lambda fault: fault.error_count())
    errors = nearest.errors(include_url=False, include_input=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return ProblemError(Kind.BODY, f"the body is not JSON: {errors[0]['msg'].removeprefix('Invalid JSON: ')}")
    told = [f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}"[:200] for error in errors[:_MOST_FAULTS]]
    more = len(errors) - len(told)
    return ProblemError(Kind.SCHEMA, "; ".join(told) + (f"; and {more} more" if more else ""))
