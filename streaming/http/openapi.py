"""The document `/openapi.json`: every error of every route, as the problem+json that it is."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from streaming.http.access import Tokens

PROBLEM = "application/problem+json"
SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "the phrase of the status"},
        "status": {"type": "integer", "description": "the status of the answer"},
        "detail": {"type": "string", "description": "one sentence for people that says what to do"},
    },
}
EVERYWHERE = (400, 500, 503)  # a request that is no HTTP, a defect, too many connections
WITH_BODY = (408, 413)
FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route: these errors, beside those that every route has."""
    return {status: _response(status) for status in statuses}


def install(app: FastAPI, tokens: Tokens) -> None:
    """Makes the app's document whole; `tokens` say which routes ask for one."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _complete(schema, tokens)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _response(status: int) -> dict[str, Any]:
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def _complete(schema: dict[str, Any], tokens: Tokens) -> dict[str, Any]:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in FASTAPI_ERRORS:
        components.pop(name, None)
    components["Problem"] = SCHEMA
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
    schemes["query"] = {"type": "apiKey", "in": "query", "name": "token"}
    for path, method, operation in _operations(schema):
        responses = operation["responses"]
        # FastAPI's own, for parameters that any text fits; routes that answer it declare ours.
        if "application/json" in responses.get("422", {}).get("content", {}):
            del responses["422"]
        errors = [*EVERYWHERE, *(WITH_BODY if method in ("post", "put", "patch", "delete") else ())]
        if right := tokens.right(method.upper(), path):
            errors += (401, 403) if right.weaker else (401,)
            operation["security"] = [{"bearer": []}, *([{"query": []}] if right.query else [])]
            schema["components"]["securitySchemes"] = schemes
        for status in errors:
            responses.setdefault(str(status), _response(status))
    return schema


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield path, method, operation
