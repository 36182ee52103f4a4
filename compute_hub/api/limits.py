"""A bound on request bodies, kept while they arrive, so that nobody can fill the memory of the API."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compute_hub.api.problems import http_problem

BODY_BYTES_MAX: Final = 2**20
"""Of any body but an upload, which has its own bound."""

DRAINED_BYTES_MAX: Final = 16 * 2**20
"""How much of a refused body is read and forgotten, so that its sender gets to read the refusal."""

UPLOAD_PATH: Final = "/v1/uploads"


class BodyLimit:
    """ASGI middleware: 413 for a body that says or shows that it is too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body counted."""
        if scope["type"] != "http" or scope["path"] == UPLOAD_PATH:
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > BODY_BYTES_MAX:
            await _drain(receive)
            await http_problem(HTTPException(413))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES_MAX:
                if message.get("more_body", False):
                    await _drain(receive)
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)


async def _drain(receive: Receive) -> None:
    """Read the rest of a body, up to a bound, and forget it."""
    seen = 0
    while seen <= DRAINED_BYTES_MAX:
        message = await receive()
        seen += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
