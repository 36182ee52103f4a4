"""The supervisor's socket: newline-delimited JSON, one request and its answer at a time per connection.

Only root and the supervisor's own user may talk; a request that is not understood is answered, never obeyed in
part. A path longer than the kernel allows is reached through a descriptor of its folder.
"""

import asyncio
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kernel.errors import HubError
from scheduler.node.codec import MalformedMessage, decode, to_json
from scheduler.node.fleet import Fleet
from scheduler.node.lines import read
from scheduler.node.protocol import FRAME_BYTES_MAX, OverRequest, SyncRequest, WaitRequest
from scheduler.node.sockets import reachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_UCRED: Final = struct.Struct("3i")


class Server:
    """Listens on one Unix socket for one fleet."""

    def __init__(self, path: Path, fleet: Fleet) -> None:
        self._path = path
        self._fleet = fleet
        self._server: asyncio.Server | None = None
        self._talking: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[object], Awaitable[object]]] = {
            "hello": self._hello,
            "sync": self._sync,
            "wait_for_change": self._wait,
            "sync_when_over": self._sync_when_over,
        }

    async def open(self) -> None:
        """Listen. The socket appears under its name only when it answers. Raises OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        fresh = self._path.with_name(f"{self._path.name}~")
        fresh.unlink(missing_ok=True)
        with reachable(fresh) as address:
            before = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(before)
        self._server = await asyncio.start_unix_server(self._talk, sock=listener, limit=FRAME_BYTES_MAX)
        fresh.replace(self._path)

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        for task in list(self._talking):
            task.cancel()
        await asyncio.gather(*self._talking, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine run by the loop is in a task
        self._talking.add(task)
        try:
            if _may_talk(writer):
                await self._converse(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._talking.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                too_long = MalformedMessage(field="message", problem=f"is longer than {FRAME_BYTES_MAX} bytes")
                writer.write(_frame(_refusal(too_long)))
                await writer.drain()
                return
            writer.write(_frame(await self._answer(line)))
            await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            message = read(line, "message")
            method = self._methods.get(str(message.get("method")))
            if method is None:
                raise MalformedMessage(field="method", problem=f"must be one of {', '.join(self._methods)}")
            return {"ok": await method(message.get("params", {}))}
        except HubError as error:
            return _refusal(error)
        except OSError as error:
            return {"error": {"code": "io_error", "message": str(error), "field": None}}

    async def _hello(self, params: object) -> object:
        del params
        return self._fleet.hello()

    async def _sync(self, params: object) -> object:
        return self._fleet.sync(decode(SyncRequest, params, "params"))

    async def _wait(self, params: object) -> object:
        return await self._fleet.wait(decode(WaitRequest, params, "params"))

    async def _sync_when_over(self, params: object) -> object:
        return await self._fleet.sync_when_over(decode(OverRequest, params, "params"))


def _may_talk(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket")
    _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in {0, os.geteuid()}


def _refusal(error: HubError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": str(error), "field": error.facts.get("field")}}


def _frame(answer: dict[str, Any]) -> bytes:
    return to_json(answer) + b"\n"
