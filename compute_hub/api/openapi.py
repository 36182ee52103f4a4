"""The API's description: what each operation may answer, who may call it, and how repeated requests are recognised."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from compute_hub.identity.duties import DUTIES

_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A refusal (RFC 9457). `code` is stable; `detail` says what to change.",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "facts": {"type": "object"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
_WORDS: Final = {
    "400": "The request is not HTTP or JSON as it should be.",
    "401": "No key, a malformed one, or one that is not known.",
    "402": "Money or quota does not suffice.",
    "403": "The key's role may not do this.",
    "404": "There is no such thing, or it is another tenant's.",
    "409": "The thing is not in a state that allows this.",
    "413": "The body is too large.",
    "422": "A value is malformed or impossible.",
    "503": "The database does not answer; try again shortly, under the same Idempotency-Key.",
}
_ALWAYS: Final = ("400", "401", "403", "404", "422", "503")
_WITH_EFFECT: Final = ("402", "409", "413")
_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "A repeated request with the same key gets the first answer; with other content it is refused.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
}
_WITHOUT_KEY: Final = frozenset({"quote_job", "store_upload", "make_key"})
"""A quote has no effect, an upload is kept under its content, and a new key's answer is a secret that is not kept."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas["Problem"] = _PROBLEM
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for methods in document["paths"].values():
            for method, operation in methods.items():
                _complete(method, operation)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(method: str, operation: dict[str, Any]) -> None:
    codes: tuple[str, ...] = _ALWAYS
    if method != "get":
        codes += _WITH_EFFECT
    if method != "get" and operation["operationId"] not in _WITHOUT_KEY:
        operation.setdefault("parameters", []).append(_KEY)
    for code in codes:
        operation["responses"][code] = {
            "description": _WORDS[code],
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    operation["x-roles"] = [role.value for role in DUTIES[operation["operationId"]]]
