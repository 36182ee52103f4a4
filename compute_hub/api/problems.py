"""Refusals as RFC 9457 problem documents; the only place that knows HTTP status codes."""

from collections.abc import Mapping
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from starlette.exceptions import HTTPException

from kernel.errors import Conflict, Forbidden, HubError, Invalid, NotFound, Unauthenticated, Unfunded

_STATUS: Final[dict[type[HubError], int]] = {
    Invalid: 422,
    NotFound: 404,
    Conflict: 409,
    Forbidden: 403,
    Unauthenticated: 401,
    Unfunded: 402,
}
_log = structlog.get_logger(__name__)
_HTTP: Final = {
    400: ("malformed_request", "The body cannot be read; send one JSON object in UTF-8."),
    404: ("no_such_path", "There is nothing at this path; /v1/openapi.json lists what there is."),
    405: ("method_not_allowed", "This path does not take this method; the header Allow names those it takes."),
    413: ("body_too_large", "The body is larger than this path takes (1 MiB but for uploads). Send less."),
}
_AWAY: Final = ("08", "57P", "53300")
"""SQLSTATEs of a server that goes or comes, or takes no more connections; one that never answered has none."""
_MEDIA_TYPE: Final = "application/problem+json"


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **more: Any,  # noqa: ANN401 - any JSON value
) -> JSONResponse:
    """One problem document: `code` is stable, `detail` says what to change."""
    body = {
        "type": f"urn:compute-hub:problem:{code}",
        "title": code.replace("_", " "),
        "status": status,
        "code": code,
        "detail": detail,
        **more,
    }
    if status == 401:  # noqa: PLR2004 - HTTP's own number
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse(body, status_code=status, media_type=_MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Make every refusal of this application a problem document."""
    app.add_exception_handler(HubError, _refusal)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(NoConnectionFree, _database)
    app.add_exception_handler(Exception, _defect)


def _refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HubError)  # noqa: S101 - registered for nothing else
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    facts = {
        name: value if isinstance(value, (int, bool, str)) else str(value)
        for name, value in error.facts.items()
    }
    return problem(status, error.code, str(error), facts=facts)


def _malformed(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    faults = [
        {
            "field": ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0]),
            "code": fault["type"],
            "message": fault["msg"],
        }
        for fault in error.errors()
    ]
    unknown = [fault["field"] for fault in faults if fault["code"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(unknown)
        return problem(
            422, "unknown_field", f"Unknown field: {names}. Remove it or correct its name.", errors=faults
        )
    detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
    return problem(422, "malformed_request", f"{detail}.", errors=faults)


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    return http_problem(error)


def http_problem(error: HTTPException) -> JSONResponse:
    """What HTTP itself refuses, in our words."""
    code, sentence = _HTTP.get(error.status_code, ("http_error", f"{error.detail}."))
    return problem(error.status_code, code, sentence, headers=error.headers)


def database_away() -> JSONResponse:
    """Nobody can say whether what was asked for was done: the connection may have broken at the commit."""
    return problem(
        503,
        "database_unreachable",
        "The database does not answer, or ended the connection. Try again shortly; under the same Idempotency-Key "
        "it is done once, whether or not it was done now.",
        headers={"Retry-After": "1"},
    )


def _database(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, DBAPIError) and not (error.connection_invalidated or _is_away(error)):
        raise error
    _log.warning("database_unreachable", path=request.url.path, reason=str(error))
    return database_away()


def _is_away(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    return isinstance(error, OperationalError) and (state is None or state.startswith(_AWAY))


def _defect(_request: Request, _error: Exception) -> JSONResponse:
    return problem(
        500, "internal_error", "The hub failed to answer; nothing was written. Try again, then report it."
    )
