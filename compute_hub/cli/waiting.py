"""Waiting for a job from outside, by asking at a bounded rate."""

import threading
from typing import Any, Final

from compute_hub.sdk import ENDED, HubClient
from kernel.clock import boottime_ms

_LOOK_S: Final = 0.3


def wait_for_end(hub: HubClient, job_id: str, *, seconds: float | None = None) -> dict[str, Any]:
    """The job once it has ended, or as it is after so many seconds."""
    never = threading.Event()
    until = None if seconds is None else boottime_ms() + seconds * 1000
    while True:
        job: dict[str, Any] = hub.get(f"/v1/jobs/{job_id}")
        if job["state"] in ENDED or (until is not None and boottime_ms() >= until):
            return job
        never.wait(_LOOK_S)
