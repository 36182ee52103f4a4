"""The jobs a hub has while faults strike it: each writes down when it ran, by the host's own clock.

Every submission has a key, and is repeated under it until somebody answers: so each is one job, whatever was killed.
"""

import gzip
import hashlib
import io
import random
import tarfile
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from benchmarks.peers.ours import Hub
from compute_hub.sdk import HubClient, Refused, Unreachable
from kernel.clock import boottime_ms
from kernel.ids import new_id

_T = TypeVar("_T")

PATIENCE_S: Final = 180
_LOOK_S: Final = 0.5
_JOBS_PER_POINT: Final = 4
_GANGS: Final = 0.15
"""Of so many jobs two ranks run on two nodes."""

BEATS: Final = "beats"
"""The file a program writes to, in its working directory."""
BEGAN: Final = "began"
"""Its first line; one that ran twice has written it twice."""
_BEATS_PER_S: Final = 5
_BEAT: Final = (
    f"echo {BEGAN} >> /job/{BEATS}; mkfifo /job/never; exec 3<> /job/never; "
    'for ((n = 0; n < $1; n++)); do read -r up _ < /proc/uptime; echo "$up" >> '
    f"/job/{BEATS}; read -r -t {1 / _BEATS_PER_S} -u 3 _; done; exit 0"
)
_CHECK: Final = 'test "$(sha256sum < payload)" = "$1  -"'


def submit_some(hub: Hub, chance: random.Random) -> None:
    """A few jobs of up to eight seconds; some may be tried again when the centre loses them, and some are gangs."""
    with hub.client() as client:
        for _ in range(_JOBS_PER_POINT):
            beats = chance.randint(1, 8 * _BEATS_PER_S)
            _submit(
                hub,
                client,
                *("/bin/bash", "-c", _BEAT, mark(hub), str(beats)),
                max_retries=chance.choice((0, 20)),
                nodes=2 if chance.random() < _GANGS else 1,
                time_limit_s=120,
            )


def submit_upload(hub: Hub, chance: random.Random, size: int) -> None:
    """A job that succeeds if every byte of its working directory came through."""
    payload = chance.randbytes(size)
    with hub.client() as client:
        sha256 = answered(partial(client.upload_packed, _packed(payload)))
        digest = hashlib.sha256(payload).hexdigest()
        argv = ("/bin/bash", "-c", _CHECK, mark(hub), digest)
        _submit(hub, client, *argv, max_retries=20, upload_sha256=sha256)


def mark(hub: Hub) -> str:
    """A word on the command line of every program of a hub, by which one that remains is found."""
    return str(hub.stack.settings.state_directory.resolve())


def answered(ask: Callable[[], _T]) -> _T:
    """What the API answers as soon as it can: it may just have been killed, or its database. Raises Unreachable."""
    deadline, never = boottime_ms() + PATIENCE_S * 1000, threading.Event()
    while True:
        try:
            return ask()
        except (Unreachable, Refused) as error:
            if boottime_ms() > deadline or not (isinstance(error, Unreachable) or _is_ill(error)):
                raise
            never.wait(_LOOK_S)


def _is_ill(refused: Refused) -> bool:
    """Whether it is the server that failed, and not the caller."""
    problem = refused.facts["problem"]
    return isinstance(problem, dict) and int(problem.get("status", 500)) >= 500  # noqa: PLR2004 - HTTP


def _submit(hub: Hub, client: HubClient, *argv: str, **changes: object) -> None:
    key = str(new_id())
    answered(lambda: hub.submit(client, *argv, key=key, **changes))


def _packed(payload: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("payload")
        entry.size = len(payload)
        archive.addfile(entry, io.BytesIO(payload))
    return gzip.compress(buffer.getvalue(), compresslevel=0)
