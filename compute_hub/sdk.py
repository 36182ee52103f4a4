"""The hub's HTTP API for Python programs: the command line and the demo use it, and so may anybody.

Requests that have an effect carry an Idempotency-Key and are repeated under it when the connection breaks, so nothing
happens twice.
"""

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import httpx

from kernel.errors import HubError
from kernel.ids import new_id

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
_TRIES: Final = 4
_PAGE: Final = 200
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Before a followed log is asked for again: a hub that is started anew needs a few seconds …"""
_PAUSES_BUSY_S: Final = (*_PAUSES_S, *12 * (4.0,))
"""… or a minute, with its database on a busy machine; so long one that was there is waited for."""
_AWAY: Final = 503
"""What the hub answers while its database is away."""


class Refused(HubError):
    """The hub refused; `problem` among the facts is its whole answer."""

    sentence = "{detail}"

    @property
    def problem_code(self) -> str:
        """The stable code of the refusal."""
        problem = self.facts["problem"]
        return str(problem.get("code", "")) if isinstance(problem, dict) else ""


class Unreachable(HubError):
    """There is no hub at the address."""

    sentence = "No hub answers at {url} ({reason}). Start one with `hub up`, or set HUB_URL."


class Away(Unreachable):
    """There is a hub, but not its database: whether what was asked for was done cannot be said."""

    sentence = "The hub at {url} cannot answer now: {reason}"


class HubClient:
    """One caller of one hub.

    Args:
        url: of the hub, without `/v1`.
        key: the caller's API key.
    """

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30)
        self._url = url
        self._never = threading.Event()

    def __enter__(self) -> Self:
        """Leave the connection open until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, **parameters: object) -> Any:  # noqa: ANN401 - JSON
        """The JSON at a path. Raises Refused, Unreachable."""
        named = {name: str(value) for name, value in parameters.items() if value is not None}
        return self._json(self._send("GET", path, params=named))

    def post(self, path: str, body: object = None, *, key: str | None = None) -> Any:  # noqa: ANN401 - JSON
        """Do something once and return its JSON answer. Raises Refused, Unreachable.

        Whoever found nobody there does not know whether it was done: with the `key` of the first time, asking again
        does it once. Without one each call is a new one.
        """
        headers = {"Idempotency-Key": key or str(new_id())}
        return self._json(self._send("POST", path, json=body, headers=headers))

    def put(self, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        """Store something under a name, in place of what was there. Raises Refused, Unreachable."""
        return self._json(self._send("PUT", path, json=body))

    def delete(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Forget something; returns what it was. Raises Refused, Unreachable."""
        return self._json(self._send("DELETE", path))

    def upload(self, folder: Path) -> str:
        """Store a directory as a job's working directory; returns its SHA-256. Raises Refused, Unreachable."""
        return self.upload_packed(pack(folder))

    def upload_packed(self, archive: bytes) -> str:
        """Store what is packed already, a .tar.gz. Raises Refused, Unreachable."""
        answer = self._send("POST", "/v1/uploads", content=archive)
        return str(self._json(answer)["sha256"])

    def log(self, job_id: str, rank: int = 0, offset: int = 0, attempt: int | None = None) -> bytes:
        """What a rank has printed so far in an attempt (the latest, if left out), from a byte offset on."""
        named = {"rank": str(rank), "offset": str(offset)}
        if attempt is not None:
            named["attempt"] = str(attempt)
        return self._checked(self._send("GET", f"/v1/jobs/{job_id}/logs", params=named)).content

    def follow(self, job_id: str, rank: int = 0, attempt: int | None = None) -> Iterator[tuple[str, Any]]:
        """A job's log as it grows: events (`log`, `state`, last `end`) with their data, until the job has ended.

        A broken connection goes on after the last event that arrived, also when the hub or its database is started
        anew meanwhile.

        Raises:
            Refused, Unreachable.
        """
        named = {"rank": str(rank), "follow": "true"} | ({} if attempt is None else {"attempt": str(attempt)})
        place, failed = "", 0
        while True:
            headers = {"Last-Event-ID": place} if place else {}
            try:
                with self._http.stream(
                    "GET", f"/v1/jobs/{job_id}/logs", params=named, headers=headers
                ) as answer:
                    if not answer.is_success:
                        answer.read()
                        self._checked(answer)
                    for kind, at, data in _events(answer.iter_lines()):
                        place, failed = at, 0
                        yield kind, json.loads(data)
                        if kind == "end":
                            return
                reason = "the stream ended early"
            except (httpx.TransportError, Away) as error:
                reason = str(error) or type(error).__name__
            pauses_s = _PAUSES_BUSY_S if place else _PAUSES_S
            if failed == len(pauses_s):
                raise Unreachable(url=self._url, reason=reason)
            self._never.wait(pauses_s[failed])
            failed += 1

    def download(
        self,
        job_id: str,
        path: str,
        target: Path,
        rank: int = 0,
        attempt: int | None = None,
        *,
        checkpoints: bool = False,
    ) -> int:
        """Store a file a job left under `target`, which appears when it is whole; its size in bytes.

        With `checkpoints` it is one that the job keeps for its next attempt.
        """
        named = {"path": path, "rank": str(rank), "checkpoints": str(checkpoints)}
        named |= {} if attempt is None else {"attempt": str(attempt)}
        partial = target.with_name(f".{target.name}.partial")
        size = 0
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/artifacts:download", params=named) as answer:
                if not answer.is_success:
                    answer.read()
                    self._checked(answer)
                with partial.open("wb") as file:
                    for chunk in answer.iter_bytes():
                        size += file.write(chunk)
            partial.replace(target)
        except httpx.TransportError as error:
            raise Unreachable(url=self._url, reason=str(error) or type(error).__name__) from error
        finally:
            partial.unlink(missing_ok=True)
        return size

    def file(self, path: str, **parameters: str) -> bytes:
        """The bytes of a document."""
        return self._checked(self._send("GET", path, params=parameters)).content

    def pages(self, path: str, **parameters: object) -> Iterator[dict[str, Any]]:
        """All items of a paged listing."""
        after = None
        while True:
            page = self.get(path, after=after, limit=_PAGE, **parameters)
            yield from page["items"]
            after = page["next"]
            if after is None:
                return

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        for last in range(_TRIES):
            try:
                return self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if last == _TRIES - 1:
                    raise Unreachable(url=self._url, reason=str(error) or type(error).__name__) from error
        raise AssertionError(_TRIES)

    def _json(self, answer: httpx.Response) -> Any:  # noqa: ANN401 - JSON
        return self._checked(answer).json()

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
        except ValueError:
            problem = {"detail": f"{answer.status_code} {answer.reason_phrase}: {answer.text[:200]}"}
        if answer.status_code == _AWAY:
            raise Away(url=self._url, reason=problem.get("detail", problem))
        raise Refused(detail=problem.get("detail", problem), problem=problem)


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Server-Sent Events as (event, id, data); each of ours has one line of data."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield fields.get("event", ""), fields.get("id", ""), fields["data"]
            fields = {}
            continue
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")


def pack(folder: Path) -> bytes:
    """A directory as a .tar.gz whose bytes depend on names and contents only."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if "__pycache__" in path.parts:
                continue
            archive.add(path, arcname=str(path.relative_to(folder)), recursive=False, filter=_plain)
    packed = bytearray(buffer.getvalue())
    packed[4:8] = bytes(4)  # gzip's own time stamp
    return bytes(packed)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry
