"""Waiting for jobs from outside, by asking at a bounded rate, and what their end means to a script.

Exit status: 0 when all succeeded, else that of the first that did not, in the order in which they were named: the
program's own where it ended by itself (as the shell says it, 128 + signal), 1 where it has none or was cancelled,
`TIMED_OUT` when the waiting took too long.
"""

import threading
from collections.abc import Sequence
from typing import Any, Final

from compute_hub.sdk import ENDED, HubClient, Unreachable
from kernel.clock import boottime_ms

TIMED_OUT: Final = 124
"""As of `timeout`, which scripts know."""

_LOOK_S: Final = 0.3
_AWAY_MS: Final = 60_000
"""So long the hub may be away before whoever waits gives up: it may be being started anew."""

_STATUS_MAX: Final = 255
_SIGNAL_BASE: Final = 128


def wait_for_end(hub: HubClient, job_id: str, *, seconds: float | None = None) -> dict[str, Any]:
    """The job once it has ended, or as it is after so many seconds. Raises Refused, Unreachable."""
    never = threading.Event()
    until = None if seconds is None else boottime_ms() + seconds * 1000
    heard_ms = boottime_ms()
    while True:
        try:
            job: dict[str, Any] = hub.get(f"/v1/jobs/{job_id}")
        except Unreachable:
            if boottime_ms() - heard_ms > _AWAY_MS:
                raise
        else:
            heard_ms = boottime_ms()
            if job["state"] in ENDED or (until is not None and heard_ms >= until):
                return job
        never.wait(_LOOK_S)


def exit_status(jobs: Sequence[dict[str, Any]]) -> int:
    """What a script is told of jobs that were waited for."""
    return next(filter(None, map(_status, jobs)), 0)


def _status(job: dict[str, Any]) -> int:
    if job["state"] == "succeeded":
        return 0
    if job["state"] not in ENDED:
        return TIMED_OUT
    code = job["exit_code"] or 0
    if job["state"] == "cancelled" or not code:
        return 1
    return min(code if code > 0 else _SIGNAL_BASE - code, _STATUS_MAX)
