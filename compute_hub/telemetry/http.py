"""Requests of the API as they are answered: counted, timed, and given an id that logs, answers and exemplars share.

The id is the trace id of the caller's `traceparent` header (W3C Trace Context) or a fresh one; the answer carries it
as `X-Request-Id`.
"""

import re
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compute_hub.telemetry.instruments import IN_FLIGHT, REQUEST_SECONDS, REQUESTS
from kernel.clock import boottime_ns
from kernel.ids import new_id

_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_UNMATCHED: Final = "other"
"""The route of a request that matched none, so that a stranger's paths are no labels."""

_log = structlog.get_logger(__name__)


class Measured:
    """ASGI middleware around everything else; costs a few microseconds a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; count it when its answer has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _trace_id(scope)
        status, began_ns = 500, boottime_ns()

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id), IN_FLIGHT.track_inprogress():
            try:
                await self._app(scope, receive, marked)
            finally:
                _count(scope, status, (boottime_ns() - began_ns) / 1e9, request_id)


def _count(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    method = scope["method"] if scope["method"] in _METHODS else _UNMATCHED
    route = _template(scope)
    REQUESTS.labels(method, route, str(status)).inc()
    REQUEST_SECONDS.labels(method, route).observe(seconds, {"trace_id": request_id})
    if route.startswith("/v1") and method != "GET":
        _log.info("request", method=method, route=route, status=status, seconds=round(seconds, 6))


def _template(scope: Scope) -> str:
    route: Any = scope.get("route")
    return str(getattr(route, "path", _UNMATCHED))


def _trace_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            if found is not None and int(found[1], 16):
                return str(found[1].decode())
    return new_id().hex
