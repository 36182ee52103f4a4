"""What every node should be running, computed from the database alone.

A node is told of a run whole until it reports it, and by its id from then on: so nothing starts again by being asked
for again, and a request does not grow with what runs. What is new is told in portions.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final
from uuid import UUID

from sqlalchemy import and_, bindparam, select, text
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.changes import Loose
from kernel.prepared import Prepared
from scheduler.node.codec import to_json
from scheduler.node.protocol import (
    FRAME_BYTES_MAX,
    PIDS,
    Bundle,
    DeviceShare,
    Gang,
    Network,
    RunSpec,
)
from scheduler.ray import private
from scheduler.secrets import opened_secrets
from scheduler.store import Store
from scheduler.tables import JobRow, NodeRow, RunRow

PORTION_BYTES: Final = FRAME_BYTES_MAX // 2
"""Of new runs told to a node at once, as JSON; a node takes no longer message than a frame."""

_LIVE: Final = Prepared(
    select(
        NodeRow.name,
        NodeRow.state,
        NodeRow.host_id,
        RunRow.id,
        RunRow.state,
        JobRow.notice,
        JobRow.stop_reason,
    )
    .outerjoin(RunRow, and_(RunRow.node == NodeRow.name, text("runs.state <> 'ended'")))
    .outerjoin(JobRow, JobRow.id == RunRow.job_id)
    .where(among(NodeRow.name, bindparam("nodes")))
    .order_by(NodeRow.name, RunRow.id)
)
_RUN: Final = Loose(RunRow, "id", "attempt", "rank", "devices")
_JOB: Final = Loose(
    JobRow,
    *("id", "tenant_id", "kind", "argv", "env", "environment", "upload_sha256", "node_count", "cpu_milli"),
    *("memory_mib", "time_limit_ms", "grace_ms", "network", "secrets", "traceparent", "notice_signal"),
    *("array_id", "array_index", "array_size"),
)
_NEW: Final = Prepared(
    select(*_RUN.columns, *_JOB.columns)
    .join(JobRow, JobRow.id == RunRow.job_id)
    .where(among(RunRow.id, bindparam("runs")))
    .order_by(RunRow.id)
)
_MASTER_PORT = 29_500
_WANTED: Final = frozenset({"placed", "running"})


@dataclass
class Wanted:
    """What one node should be running, and by run what its program is to be told.

    Attributes:
        runs: not seen there yet.
        going_on: ids of those that were.
        states: by id, how far every run is that has not ended there, whether it is wanted or not.
        later: ids of runs that did not fit into this portion.
        notices: by run id.
        host: on which its runs are: another one that says its name has to wait; None of one that was given up.
    """

    runs: list[RunSpec] = field(default_factory=list)
    going_on: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    later: list[str] = field(default_factory=list)
    notices: dict[str, str] = field(default_factory=dict)
    host: str | None = None

    @property
    def asked(self) -> frozenset[str]:
        """Ids of all of them: a run that is not among them need not be there."""
        return frozenset((*(spec.run_id for spec in self.runs), *self.going_on, *self.later))


def desired_runs(
    session: Session, store: Store, names: Collection[str], reported: Mapping[str, AbstractSet[str]]
) -> dict[str, Wanted]:
    """By node, every run that should exist there now; a run whose job is to stop is left out, which stops it.

    Args:
        session: to read with.
        store: where the jobs' files lie.
        names: the nodes to look at.
        reported: by node, ids of the runs its last report named.
    """
    found = {name: Wanted() for name in names}
    new: list[tuple[str, UUID]] = []
    for node, stands, host, run_id, state, notice, stop_reason in _LIVE(session, nodes=sorted(names)):
        wanted, name = found[node], str(run_id)
        wanted.host = None if stands == "down" else host
        if run_id is None:
            continue
        wanted.states[name] = state
        if state not in _WANTED or stop_reason is not None:
            continue
        if notice:
            wanted.notices[name] = notice
        if state == "running" or name in reported.get(node, ()):
            wanted.going_on.append(name)
        else:
            new.append((node, run_id))
    specs = _specs(session, store, [run_id for _, run_id in new])
    left = dict.fromkeys(names, PORTION_BYTES)
    for node, run_id in new:
        left[node] -= len(to_json(specs[run_id]))
        if left[node] >= 0 or not found[node].runs:
            found[node].runs.append(specs[run_id])
        else:
            found[node].later.append(str(run_id))
    return found


def _specs(session: Session, store: Store, run_ids: Sequence[UUID]) -> dict[UUID, RunSpec]:
    if not run_ids:
        return {}
    found = _NEW(session, runs=list(run_ids))
    jobs = _JOB.rows(row[len(_RUN.columns) :] for row in found)
    live = list(zip(_RUN.rows(found), jobs, strict=True))
    gangs = _gangs(session, {job.id for _, job in live if job.network == Network.JOB})
    secrets = opened_secrets(session, store.vault, jobs)
    return {run.id: _spec(run, job, store, gangs.get(job.id), secrets.get(job.id, {})) for run, job in live}


def _gangs(session: Session, job_ids: AbstractSet[UUID]) -> dict[UUID, Gang]:
    """By job whose ranks talk, how those of its latest attempt find each other."""
    if not job_ids:
        return {}
    ranks = session.execute(
        select(RunRow.job_id, RunRow.attempt, NodeRow.host_id, NodeRow.spanning)
        .join(JobRow, (JobRow.id == RunRow.job_id) & (JobRow.attempt == RunRow.attempt))
        .join(NodeRow, NodeRow.name == RunRow.node)
        .where(RunRow.job_id.in_(job_ids))
        .order_by(RunRow.job_id, RunRow.rank)
    ).all()
    return {
        job_id: _gang(
            job_id, attempt, [(host, str(spanning.get("address", ""))) for _, _, host, spanning in of_job]
        )
        for (job_id, attempt), of_job in groupby(ranks, key=lambda row: (row[0], row[1]))
    }


def _gang(job_id: UUID, attempt: int, ranks: Sequence[tuple[str, str]]) -> Gang:
    """Of an attempt, whose ranks in their order are on these hosts, which others reach at these addresses."""
    spans = len({host for host, _ in ranks}) > 1
    peers = tuple(address for _, address in ranks) if spans else ()
    return Gang(id=f"{job_id}-{attempt}", master_port=_MASTER_PORT, peers=peers)


def _spec(run: RunRow, job: JobRow, store: Store, gang: Gang | None, secrets: dict[str, str]) -> RunSpec:
    folder = store.attempt(job, run.attempt)
    bundle = None
    if job.upload_sha256 is not None:
        path = store.uploads / str(job.tenant_id) / f"{job.upload_sha256}.tar.gz"
        bundle = Bundle(path=str(path), sha256=job.upload_sha256)
    return RunSpec(
        run_id=str(run.id),
        job_id=str(job.id),
        tenant_id=str(job.tenant_id),
        attempt=run.attempt,
        argv=_argv(job),
        workspace=str(folder / f"rank-{run.rank}"),
        log=str(folder / f"rank-{run.rank}.log"),
        checkpoints=str(store.checkpoints(job, run.rank)),
        rank=run.rank,
        node_rank=run.rank,
        world_size=job.node_count,
        env={**job.env, **_array_variables(job)},
        environment=job.environment,
        bundle=bundle,
        devices=tuple(DeviceShare(*piece) for piece in run.devices),
        cpu_milli=job.cpu_milli,
        memory_mib=job.memory_mib,
        pids=private.PIDS if job.kind == private.KIND else PIDS,
        time_limit_ms=job.time_limit_ms,
        grace_ms=job.grace_ms,
        traceparent=job.traceparent,
        secrets=secrets,
        notice_signal=job.notice_signal,
        network=Network(job.network),
        gang=gang,
    )


def _argv(job: JobRow) -> tuple[str, ...]:
    if job.kind == private.KIND:
        return private.rank_argv(job.argv, cpu_milli=job.cpu_milli, memory_mib=job.memory_mib)
    return tuple(job.argv)


def _array_variables(job: JobRow) -> dict[str, str]:
    if job.array_id is None:
        return {}
    return {
        "HUB_ARRAY_ID": str(job.array_id),
        "HUB_ARRAY_INDEX": str(job.array_index),
        "HUB_ARRAY_SIZE": str(job.array_size),
    }
