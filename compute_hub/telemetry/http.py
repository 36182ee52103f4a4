"""Requests of the API as they are answered: counted, timed, and given an id that logs, answers and exemplars share.

The id is the trace id of the caller's `traceparent` header (W3C Trace Context) or a fresh one; the answer carries it
as `X-Request-Id`. A request under /v1 is a span, named as its operation.
"""

from datetime import timedelta
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compute_hub.telemetry.instruments import IN_FLIGHT, REQUEST_SECONDS, REQUESTS
from compute_hub.telemetry.tracing import ABOUT, CURRENT, Spans
from kernel.clock import boottime_ns, utc_now
from kernel.traces import Trace, new_trace, parse_trace

_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_UNMATCHED: Final = "other"
"""The route of a request that matched none, so that a stranger's paths are no labels."""

_log = structlog.get_logger(__name__)


class Measured:
    """ASGI middleware around everything else; costs some ten microseconds a request."""

    def __init__(self, app: ASGIApp, spans: Spans | None = None) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; count it when its answer has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = _caller(scope)
        trace = new_trace() if caller is None else caller.child()
        facts: dict[str, str | int] = {}
        CURRENT.set(trace)  # every request is answered in a context of its own
        ABOUT.set(facts)
        status, began_ns = 500, boottime_ns()

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", trace.trace_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=trace.trace_id), IN_FLIGHT.track_inprogress():
            try:
                await self._app(scope, receive, marked)
            finally:
                took_ns = boottime_ns() - began_ns
                _count(scope, status, took_ns / 1e9, trace.trace_id, facts)
                self._tell(scope, status, took_ns, trace, caller, facts)

    def _tell(
        self,
        scope: Scope,
        status: int,
        took_ns: int,
        trace: Trace,
        caller: Trace | None,
        facts: dict[str, str | int],
    ) -> None:
        route = _template(scope)
        if self._spans is None or not route.startswith("/v1"):
            return
        until = utc_now()
        attributes: dict[str, str | int] = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
            **{f"hub.{fact}": value for fact, value in facts.items()},
        }
        parent = "" if caller is None else caller.span_id
        since = until - timedelta(microseconds=took_ns // 1000)
        self._spans.tell(scope["route"].name, trace, parent, since, until, attributes, served=True)


def _count(scope: Scope, status: int, seconds: float, request_id: str, facts: dict[str, str | int]) -> None:
    method = scope["method"] if scope["method"] in _METHODS else _UNMATCHED
    route = _template(scope)
    REQUESTS.labels(method, route, str(status)).inc()
    REQUEST_SECONDS.labels(method, route).observe(seconds, {"trace_id": request_id})
    if route.startswith("/v1") and method != "GET":
        _log.info("request", method=method, route=route, status=status, seconds=round(seconds, 6), **facts)


def _template(scope: Scope) -> str:
    route: Any = scope.get("route")
    return str(getattr(route, "path", _UNMATCHED))


def _caller(scope: Scope) -> Trace | None:
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return parse_trace(value.decode("ascii", "replace"))
    return None
