"""Waiting for a job's state through the API, bounded."""

import threading
from typing import Any

from compute_hub.sdk import ENDED, HubClient
from kernel.clock import boottime_ms

PATIENCE_MS = 180_000


def wait_until(client: HubClient, job_id: object, *states: str) -> dict[str, Any]:
    """The job once it is in one of the states; fails when it ends otherwise or takes too long."""
    never = threading.Event()
    deadline = boottime_ms() + PATIENCE_MS
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}")
        if job["state"] in states:
            return job
        assert job["state"] not in ENDED, job
        assert boottime_ms() < deadline, job
        never.wait(0.1)
