"""The scheduler's tables.

The database keeps by itself that no slice of a device is sold twice: an allocation's slots and its time span may
not both overlap another's, whatever the code above does. A device's slots are numbered centre-wide: device number n
owns `[1000·n, 1000·n + 1000)`.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT8RANGE, TSTZRANGE, ExcludeConstraint, Range
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class LeaderRow(Table):
    """The one lease of leadership; every write of a controller checks that its epoch is still the lease's.

    It lapses when `renewals` has not grown for `lease_ms` by the clock of whoever wants it, or when it is no longer
    `held`. `expires_at` is for people: nothing is decided by it, because wall clocks step.
    """

    __tablename__ = "scheduler_leader"
    __table_args__ = (CheckConstraint("id = 1", name="single_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str] = mapped_column(Text)
    epoch: Mapped[int]
    held: Mapped[bool]
    lease_ms: Mapped[int]
    renewals: Mapped[int]
    expires_at: Mapped[datetime]


class NodeRow(Table):
    """A machine of the centre, as its supervisor last described it, and what its operator ordered.

    `admits` says whether it takes new jobs, by the operator's order; of a draining one those that still run at
    `drain_by` are stopped. `own_labels` are the operator's, over those the node states of itself.
    """

    __tablename__ = "nodes"
    __table_args__ = (
        CheckConstraint("state IN ('up', 'down')", name="state"),
        CheckConstraint("admits IN ('open', 'cordoned', 'draining')", name="admits"),
        CheckConstraint("drain_by IS NULL OR admits = 'draining'", name="drain_by"),
    )

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    host_id: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, Any]]
    cpu_milli: Mapped[int]
    memory_mib: Mapped[int]
    isolation: Mapped[dict[str, Any]]
    spanning: Mapped[dict[str, Any]] = mapped_column(default=dict)
    joined_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    admits: Mapped[str] = mapped_column(Text, default="open")
    drain_by: Mapped[datetime | None]
    own_labels: Mapped[dict[str, Any]] = mapped_column(default=dict)

    @property
    def known_labels(self) -> dict[str, Any]:
        """What the node is known by."""
        return {**self.labels, **self.own_labels}


class DeviceRow(Table):
    """One accelerator of one node. `number` is its centre-wide identity in allocation slot ranges.

    `freed_at` is the latest end of an allocation on it, before which none may begin, however clocks are set. An
    unhealthy or cordoned device takes no new jobs; what runs on one that has `failed` is stopped.
    """

    __tablename__ = "devices"

    node: Mapped[str] = mapped_column(ForeignKey("nodes.name"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    model: Mapped[str] = mapped_column(Text)
    vendor: Mapped[str] = mapped_column(Text)
    healthy: Mapped[bool]
    freed_at: Mapped[datetime | None]
    failed: Mapped[bool] = mapped_column(default=False)
    health_reason: Mapped[str] = mapped_column(Text, default="")
    cordoned: Mapped[bool] = mapped_column(default=False)


class ReservationRow(Table):
    """Devices kept for a tenant for a span, or for nobody: a maintenance window."""

    __tablename__ = "reservations"
    __table_args__ = (
        CheckConstraint("begins_at < ends_at", name="span"),
        CheckConstraint("(cancelled_at IS NULL) = (cancelled_by IS NULL)", name="cancelled"),
        Index("ix_reservations_ends_at", "ends_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None]
    begins_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    reason: Mapped[str] = mapped_column(Text)
    made_by: Mapped[UUID]
    made_at: Mapped[datetime]
    cancelled_at: Mapped[datetime | None]
    cancelled_by: Mapped[UUID | None]


class ReservedDeviceRow(Table):
    """One device of a reservation; no two reservations have the same device at the same time.

    `slots` are the device's in allocations, which is what the constraint compares. The span of one that was cancelled
    ends then, or is empty.
    """

    __tablename__ = "reserved_devices"
    __table_args__ = (
        ExcludeConstraint(("slots", "&&"), ("span", "&&"), using="gist", name="ex_reserved_devices_slots_span"),
        ForeignKeyConstraint(["node", "device_index"], ["devices.node", "devices.index"]),
    )

    reservation_id: Mapped[UUID] = mapped_column(ForeignKey("reservations.id"), primary_key=True)
    node: Mapped[str] = mapped_column(Text, primary_key=True)
    device_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    slots: Mapped[Range[int]] = mapped_column(INT8RANGE)
    span: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)


class NodeEventRow(Table):
    """What happened to a node or to a device of it, and by whose order; nobody's when the node said it or was lost."""

    __tablename__ = "node_events"
    __table_args__ = (Index("ix_node_events_node_number", "node", "number"),)

    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    node: Mapped[str] = mapped_column(ForeignKey("nodes.name"))
    device_index: Mapped[int | None]
    kind: Mapped[str] = mapped_column(Text)
    sentence: Mapped[str] = mapped_column(Text)
    by: Mapped[UUID | None]
    at: Mapped[datetime]


class JobRow(Table):
    """What an enterprise asked for, and how far it got.

    `revision` grows when a waiting job is held, released or told what to wait for. `retry_at` is when the next
    attempt may start after one was lost; `attained_ms` is what earlier attempts ran and `evictions` how many of them
    were preempted. `traceparent` (W3C Trace Context) is what its submission belongs to. `lost_attempts` came to
    nothing through the centre's doing: lost with a node, or preempted; their time is the centre's to bear.
    `evicted_for` names the job for which this one is being stopped. `notice` is what
    its running ranks are told, with `notice_signal` where it asked for one. `files_removed_at` and `logs_removed_at`
    are when what it left was no longer kept.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(
            "state IN ('queued', 'starting', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')",
            name="state",
        ),
        CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", name="ended"
        ),
        CheckConstraint(
            "(files_removed_at IS NULL OR ended_at IS NOT NULL) AND "
            "(logs_removed_at IS NULL OR files_removed_at IS NOT NULL)",
            name="removed",
        ),
        CheckConstraint("node_count > 0 AND devices_per_node > 0", name="shape"),
        CheckConstraint("slots_milli BETWEEN 1 AND 1000", name="slots"),
        CheckConstraint("topology IN ('pack', 'same-switch', 'spread')", name="topology"),
        CheckConstraint("retry_on IN ('lost', 'failure')", name="retry_on"),
        CheckConstraint("(array_id IS NULL) = (array_index IS NULL)", name="array"),
        CheckConstraint("NOT id = ANY (depends_on)", name="own_dependency"),
        Index(
            "uq_jobs_array_id_array_index",
            "array_id",
            "array_index",
            unique=True,
            postgresql_where=text("array_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_live",
            "state",
            postgresql_where=text("state IN ('queued', 'starting', 'running', 'stopping')"),
        ),
        Index("ix_jobs_live_tenant_id", "tenant_id", postgresql_where=text("ended_at IS NULL")),
        Index(
            "ix_jobs_dependent",
            "id",
            postgresql_where=text("state = 'queued' AND cardinality(depends_on) > 0"),
        ),
        Index("ix_jobs_succeeded", "ended_at", postgresql_where=text("state = 'succeeded'")),
        Index("ix_jobs_tenant_id_queued_at_id", "tenant_id", "queued_at", "id"),
        Index("ix_jobs_ended_at", "ended_at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]
    submitted_by: Mapped[UUID]
    name: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    argv: Mapped[list[str]] = mapped_column(ARRAY(Text))
    env: Mapped[dict[str, Any]]
    environment: Mapped[str] = mapped_column(Text)
    upload_sha256: Mapped[str | None] = mapped_column(Text)
    models: Mapped[list[str]] = mapped_column(ARRAY(Text))
    node_count: Mapped[int]
    devices_per_node: Mapped[int]
    slots_milli: Mapped[int]
    cpu_milli: Mapped[int]
    memory_mib: Mapped[int]
    time_limit_ms: Mapped[int]
    grace_ms: Mapped[int]
    priority: Mapped[int]
    max_retries: Mapped[int]
    network: Mapped[str] = mapped_column(Text)
    preemptible: Mapped[bool] = mapped_column(default=False)
    topology: Mapped[str] = mapped_column(Text, default="pack")
    min_pflops_milli: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]
    depends_on: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), default=list)
    array_id: Mapped[UUID | None]
    array_index: Mapped[int | None]
    array_size: Mapped[int] = mapped_column(default=0)
    array_running_max: Mapped[int] = mapped_column(default=0)
    held: Mapped[bool] = mapped_column(default=False)
    secrets: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    retry_on: Mapped[str] = mapped_column(Text, default="lost")
    retry_at: Mapped[datetime | None]
    evictions: Mapped[int] = mapped_column(default=0)
    evicted_for: Mapped[UUID | None]
    attained_ms: Mapped[int] = mapped_column(default=0)
    lost_attempts: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), default=list)
    revision: Mapped[int] = mapped_column(default=0)
    traceparent: Mapped[str] = mapped_column(Text, default="")
    queued_at: Mapped[datetime]
    attempt: Mapped[int]
    placed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    end_reason: Mapped[str | None] = mapped_column(Text)
    stop_reason: Mapped[str | None] = mapped_column(Text)
    notice: Mapped[str] = mapped_column(Text, default="")
    notice_signal: Mapped[int] = mapped_column(default=0)
    files_removed_at: Mapped[datetime | None]
    logs_removed_at: Mapped[datetime | None]


class RunRow(Table):
    """One process of one attempt of a job on one node: rank `rank` of the attempt."""

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("job_id", "attempt", "rank"),
        CheckConstraint("state IN ('placed', 'starting', 'running', 'stopping', 'ended')", name="state"),
        Index("ix_runs_live", "node", postgresql_where=text("state <> 'ended'")),
        Index("ix_runs_ended_at", "ended_at", postgresql_using="brin"),
        Index("ix_runs_lost", "node", postgresql_where=text("end_reason = 'node_lost' AND started_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    rank: Mapped[int]
    node: Mapped[str] = mapped_column(ForeignKey("nodes.name"))
    epoch: Mapped[int]
    state: Mapped[str] = mapped_column(Text)
    devices: Mapped[list[Any]]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    end_reason: Mapped[str | None] = mapped_column(Text)
    end_detail: Mapped[str | None] = mapped_column(Text)
    acknowledged: Mapped[bool]


class AllocationRow(Table):
    """A slice of one device given to one run for an interval; open-ended until the process is known to be dead."""

    __tablename__ = "allocations"
    __table_args__ = (
        ExcludeConstraint(("slots", "&&"), ("span", "&&"), using="gist", name="ex_allocations_slots_span"),
        CheckConstraint("NOT isempty(slots) AND NOT isempty(span)", name="not_empty"),
        Index("ix_allocations_run_id", "run_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(ForeignKey("runs.id"))
    node: Mapped[str] = mapped_column(Text)
    device_index: Mapped[int]
    model: Mapped[str] = mapped_column(Text)
    slots: Mapped[Range[int]] = mapped_column(INT8RANGE)
    span: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)


class SecretRow(Table):
    """A value a tenant entrusts to its jobs, sealed; its name is the name of the file a job gets."""

    __tablename__ = "job_secrets"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    size_bytes: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class TemplateRow(Table):
    """A named beginning of a submission: an enterprise's own, or the operator's for everybody (`owner_id` nil)."""

    __tablename__ = "job_templates"

    owner_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    fields: Mapped[dict[str, Any]]
    saved_by: Mapped[UUID]
    saved_at: Mapped[datetime]
