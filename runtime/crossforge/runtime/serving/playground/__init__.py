"""A page to try the served models on: a query and passages in, a ranking out, variants side by side."""

from crossforge.runtime.serving.playground.router import make_router

__all__ = ["make_router"]
