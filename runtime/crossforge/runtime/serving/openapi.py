"""The OpenAPI document: request models that FastAPI does not see, because bodies are parsed in one pass of our own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from crossforge.runtime.serving.errors import Dialect, Kind, Problem
from crossforge.runtime.serving.facts import DIALECT_OF_PATH

_REF = "#/components/schemas/{model}"
_BODIES: set[type[BaseModel]] = set()


def takes(*models: type[BaseModel]) -> dict[str, Any]:
    """Say, as ``openapi_extra`` of a route, which bodies it takes: any of them, as one that fits two is taken too."""
    _BODIES.update(models)
    refs = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> None:
    """Make ``/openapi.json`` complete."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, bodies = models_json_schema([(model, "validation") for model in _sorted(_BODIES)], ref_template=_REF)
            document.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["responses"] |= {status: _error_response(path) for status in ("4XX", "5XX")}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _error_response(path: str) -> dict[str, Any]:
    """How a path tells its errors, read off one."""
    dialects = [DIALECT_OF_PATH.get(path, Dialect.OWN)]
    if path == "/rerank":
        dialects.append(Dialect.VLLM)
    problem = Problem(kind=Kind.SCHEMA, message="what is wrong")
    schemas = [_schema_of(problem.body(dialect, "id")) for dialect in dialects]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"description": "What is wrong, and what to do.", "content": {"application/json": {"schema": schema}}}


def _schema_of(example: object) -> dict[str, Any]:
    if isinstance(example, dict):
        properties = {name: _schema_of(value) for name, value in example.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": {str: "string", int: "integer", type(None): "null"}[type(example)]}


def _sorted(models: set[type[BaseModel]]) -> list[type[BaseModel]]:
    return sorted(models, key=lambda model: model.__name__)
