# ruff: noqa: ARG002 - a test accounting ignores what the port hands it
"""A job whose funds will not last is told so in its sandbox, by file and signal, before it is stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from signal import SIGUSR1
from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from scheduler.tables import JobRow
from tests.scheduler.controller.cluster import Cluster, Free, log_of
from tests.scheduler.node.harness import Machine

pytestmark = pytest.mark.slow

PROGRAM = """
trap 'echo told: $(cat HUB_NOTICE)' USR1
trap 'echo stopped; exit 0' TERM
echo ready
while :; do sleep 0.05; done
"""


@dataclass
class Purse(Free):  # its arguments are the port's
    """An accounting that says of every job what the test says, as the hub's does."""

    warning: str = ""
    broke: Mapping[UUID, str] = field(default_factory=dict)

    def keep_funded(
        self, session: Session, jobs: Sequence[JobRow], elapsed_ms: Mapping[UUID, int], at: datetime
    ) -> Mapping[UUID, str]:
        for job in jobs:
            job.notice = self.warning
        return self.broke


def test_the_warning_reaches_the_program_once_and_then_it_is_stopped(engine: Engine, machine: Machine) -> None:
    purse = Purse()
    cluster = Cluster(engine, machine, purse)
    cluster.node()
    job_id = cluster.submit("/bin/sh", "-c", PROGRAM, notice_signal=SIGUSR1, grace_ms=20_000)
    cluster.until(lambda: log_of(cluster, job_id) == "ready\n")
    purse.warning = "its funds will not last"
    cluster.until(lambda: "told" in log_of(cluster, job_id))
    cluster.tick()
    cluster.tick()
    assert log_of(cluster, job_id) == "ready\ntold: its funds will not last\n"
    assert cluster.job(job_id).state == "running"
    purse.broke = {job_id: "nothing is left"}
    job = cluster.ended(job_id)
    assert (job.state, job.end_reason) == ("failed", "funds_exhausted")
    assert job.reason == "stopped (funds_exhausted): nothing is left"
    assert log_of(cluster, job_id).endswith("stopped\n")
