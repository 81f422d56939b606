"""The way from a path to its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.routing import APIRoute


class BareRoute(APIRoute):
    """A route whose function takes the request and returns the response, with nothing of FastAPI's between the two.

    Bodies are parsed and answers made by functions of our own; what FastAPI would look for in each request, it never finds.
    """

    def get_route_handler(self) -> Callable[..., Any]:
        """The function itself."""
        return self.endpoint
