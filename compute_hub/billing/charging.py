"""Charging: usage of many jobs becomes rated charges, their coverage and the captures, in one transaction.

The n-th charge of a job has an id derived from job and n, and the records it takes leave the queue in the same
transaction, so a killed biller is repeated, never doubled. A capture never exceeds what is held: what usage costs
beyond that is forgone by the centre, and the charge says so. What comes after the hold was given back is paid by
whoever still can (`late`). With a job's last charge the rest of its hold is given
back. Jobs are decided one after another in memory; one that cannot be charged is set aside with its reason. The number
of statements does not depend on the number of jobs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from compute_hub.billing.charge_writing import (
    VolumeKey,
    Written,
    charge_values,
    line_values,
    ranges_of,
    write_charges,
)
from compute_hub.billing.domain.days import Span
from compute_hub.billing.domain.rate_cards import Traits
from compute_hub.billing.domain.rating import Priced, Usage, next_charge_micros, rate
from compute_hub.billing.domain.timelines import Tariff
from compute_hub.billing.late import capture_late
from compute_hub.billing.losses import restore_losses
from compute_hub.billing.rates import NoRate, tariffs_of
from compute_hub.billing.tables import JobFundingRow, TenantVolumeRow
from compute_hub.billing.uncharged import (
    LATE,
    Streak,
    Waiting,
    by_charge,
    jobs_with_all_records,
    waiting_usage,
)
from compute_hub.metering.gaps import open_gap_cases
from compute_hub.metering.tables import UsageRecordRow
from kernel.bulk import among
from kernel.clock import from_unix_ms, unix_ms
from kernel.errors import HubError
from kernel.ids import derived_id
from scheduler.tables import JobRow
from vouchers.capturing import Capture, release_rest, take_charges
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts
from vouchers.enterprises import lock_payers
from vouchers.open_holds import OpenHolds, open_holds, write_holds
from vouchers.redemption import held_facts

_WITHOUT_HOLD: Final = frozenset({"released", "pending"})
"""Whose usage, if some still comes, is paid by itself: jobs that are over, and jobs that wait to run again."""


@dataclass
class _Job:
    """A job as it is billed: how far its rating and its charges have come, and what decides about its price."""

    id: UUID
    tenant_id: UUID
    state: str
    units: int
    charges: int
    funded_at: datetime | None
    traits: Traits
    ended_at: datetime | None
    lost_attempts: Sequence[int]

    def is_late(self, at: datetime) -> bool:
        """Whether its last records are not waited for any longer."""
        return self.ended_at is not None and self.ended_at < at - LATE


@dataclass(frozen=True)
class _Stretch:
    """Usage of one attempt, model and month that becomes one charge, and whether anybody pays for it."""

    attempt: int
    model: str
    month: str
    streaks: Sequence[Streak]
    payable: bool

    @property
    def slot_ms(self) -> int:
        """All its card time."""
        return sum(streak.slot_ms for streak in self.streaks)


@dataclass(frozen=True)
class _Rated:
    """A stretch with its price: the n-th charge of its job."""

    charge_id: UUID
    n: int
    stretch: _Stretch
    units_before: int
    pieces: Sequence[Priced]
    cost_micros: int


@dataclass(frozen=True)
class Billed:
    """What one batch did: the ids of its charges, the jobs that were released, and why others were set aside."""

    charges: Sequence[UUID]
    released: Collection[UUID]
    refused: Mapping[UUID, HubError]


def charge_jobs(session: Session, job_ids: Collection[UUID], at: datetime, *, wait: bool = True) -> Billed:
    """Charge all usage of jobs that is due, one charge per attempt, model and month, and release jobs that are done.

    What was used before and after the end of a voucher that pays is charged apart.

    A record is charged when all records of its run before it are; behind a gap it waits, and is forgone when the job
    has been over for `LATE`. Usage of an attempt that the centre lost is forgone. Jobs at which another biller is, are
    left to it, and without `wait` those of tenants whose money is being moved just now; one that lost an attempt is
    released by `release_job`.
    """
    jobs = _locked_jobs(session, job_ids, wait=wait)
    waiting = waiting_usage(session, jobs) if jobs else {}
    late = [job.id for job in jobs.values() if waiting[job.id].behind and job.is_late(at)]
    for job_id in late:
        open_gap_cases(session, job_id, at)
    closing = _closing(session, jobs, waiting, late)
    jobs = {id_: job for id_, job in jobs.items() if id_ in closing or _all(waiting[id_])}
    if not jobs:
        return Billed((), (), {})
    holds = open_holds(session, jobs, releasing=closing)
    biller = _Biller(
        session,
        holds,
        tariffs_of(
            session, {(jobs[id_].tenant_id, streak.model) for id_ in jobs for streak in _all(waiting[id_])}
        ),
        held_facts(session, jobs),
        _volumes(session, jobs, waiting),
        at,
    )
    refused: dict[UUID, HubError] = {}
    for job in jobs.values():
        try:
            biller.bill(job, waiting[job.id], forgo=job.id in late, release=job.id in closing)
        except HubError as refusal:
            refused[job.id] = refusal
    write_charges(session, biller.written)
    write_holds(session, holds, at)
    released = [job_id for job_id, *_, state in biller.written.fundings if state == "released"]
    return Billed([row["id"] for row in biller.written.charges], released, refused)


def release_job(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what a finished job did not use, and what it lost. Does nothing while another biller is at it."""
    job = _locked_jobs(session, [job_id]).get(job_id)
    if job is None or job.state != "ended":
        return
    open_gap_cases(session, job_id, at)
    restore_losses(session, job_id, at)
    holds = open_holds(session, (), releasing=[job_id])
    if job_id in holds.jobs:
        release_rest(holds, job_id)
    job.state = "released"
    write_charges(session, Written(fundings=[(job_id, job.units, job.charges, job.state)]))
    write_holds(session, holds, at)


def restore_lost_time(session: Session, job_id: UUID, at: datetime) -> None:
    """Give back what attempts that the centre lost were charged. Does nothing while another biller is at the job."""
    if _locked_jobs(session, [job_id]):
        restore_losses(session, job_id, at)


def span_of(record: UsageRecordRow) -> Span:
    """The instants a record is about."""
    start = unix_ms(record.started_at) + record.offset_ms
    return Span(start, start + record.duration_ms)


@dataclass
class _Biller:
    """Bills job after job in memory, each on what those before it left; only what is late moves money at once."""

    session: Session
    holds: OpenHolds
    tariffs: Mapping[tuple[UUID, str], Tariff]
    facts: Mapping[tuple[UUID, str], ChargeFacts]
    volumes: dict[VolumeKey, int]
    at: datetime
    written: Written = field(default_factory=Written)

    def bill(self, job: _Job, waiting: Waiting, *, forgo: bool, release: bool) -> None:
        """Charge a job and release it. Raises NoRate, and what `take_charges` refuses: nothing is noted then."""
        stretches = [
            _Stretch(*key, some, payable=key[0] not in job.lost_attempts)
            for key, some in by_charge(waiting.due)
        ]
        if forgo:
            stretches += [_Stretch(*key, some, payable=False) for key, some in by_charge(waiting.behind)]
        volumes: dict[VolumeKey, int] = {}
        rated = self._rate_all(job, [stretch for stretch in stretches if stretch.slot_ms], volumes)
        coverages = self._capture_all(job, rated)
        if release:
            if job.id in self.holds.jobs:
                release_rest(self.holds, job.id)
            job.state = "released"
        for charge in rated:
            self._note(job, charge, coverages.get(charge.charge_id, Coverage(0, ())))
        for key, slot_ms in volumes.items():
            self.volumes[key] = self.volumes.get(key, 0) + slot_ms
            self.written.volumes[key] = self.written.volumes.get(key, 0) + slot_ms
        self.written.done += [streak for stretch in stretches for streak in stretch.streaks]
        job.units += sum(piece.units for charge in rated for piece in charge.pieces)
        job.charges += len(rated)
        if rated or release:
            self.written.fundings.append((job.id, job.units, job.charges, job.state))

    def _rate_all(
        self, job: _Job, stretches: Sequence[_Stretch], volumes: dict[VolumeKey, int]
    ) -> list[_Rated]:
        """Price stretches and count them to the tenant's months. Raises NoRate."""
        admitted_at, units, rated = job.funded_at or self.at, job.units, []
        for n, stretch in enumerate(stretches, start=job.charges):
            key = (job.tenant_id, stretch.model, stretch.month)
            pieces = rate(
                [Usage(streak.span, streak.slot_ms) for streak in stretch.streaks],
                self.tariffs[job.tenant_id, stretch.model],
                job.traits,
                unix_ms(admitted_at),
                self.volumes.get(key, 0) + volumes.get(key, 0),
            )
            if pieces is None:
                raise NoRate(model=stretch.model, at=admitted_at.isoformat())
            volumes[key] = volumes.get(key, 0) + stretch.slot_ms
            more = sum(piece.units for piece in pieces)
            cost = next_charge_micros(units, more)
            rated.append(_Rated(derived_id("charge", job.id, n), n, stretch, units, pieces, cost))
            units += more
        return rated

    def _capture_all(self, job: _Job, rated: Sequence[_Rated]) -> dict[UUID, Coverage]:
        """Capture what charges cost, or as much of it as is held for usage at their time."""
        captures = [
            Capture(
                charge.charge_id,
                charge.cost_micros,
                self.facts[job.id, charge.stretch.model].lasting(charge.stretch.slot_ms // 1000),
                from_unix_ms(max(streak.span.end_ms for streak in charge.stretch.streaks)),
                partly=True,
            )
            for charge in rated
            if charge.cost_micros and charge.stretch.payable and (job.id, charge.stretch.model) in self.facts
        ]
        if not captures:
            return {}
        if job.state in _WITHOUT_HOLD:
            coverages = capture_late(self.session, job.id, job.tenant_id, captures, self.at)
        else:
            coverages = take_charges(self.holds, job.id, captures, self.at)
        return {capture.charge_id: coverage for capture, coverage in zip(captures, coverages, strict=True)}

    def _note(self, job: _Job, charge: _Rated, coverage: Coverage) -> None:
        stretch = charge.stretch
        self.written.charges.append(
            charge_values(
                charge.charge_id,
                charge.n,
                coverage,
                job_id=job.id,
                tenant_id=job.tenant_id,
                attempt=stretch.attempt,
                model=stretch.model,
                month=stretch.month,
                slot_ms=stretch.slot_ms,
                cost=charge.cost_micros,
                at=self.at,
            )
        )
        self.written.lines += line_values(charge.charge_id, charge.units_before, charge.pieces)
        self.written.charged += ranges_of(charge.charge_id, stretch.streaks)


def _locked_jobs(session: Session, job_ids: Collection[UUID], *, wait: bool = True) -> dict[UUID, _Job]:
    """The jobs that no other biller has, with their funding locked, in the order of tenants.

    Without waiting, jobs of tenants whose money is being moved just now are left for later.

    The tenants are locked first, all in one statement, because the controller may hold a tenant while it waits for a
    funding, and the fundings are not waited for: so nobody waits in a circle.
    """
    tenants = session.scalars(
        select(JobFundingRow.tenant_id).where(among(JobFundingRow.job_id, job_ids)).distinct()
    ).all()
    mine = lock_payers(session, tenants, wait=wait)
    rows = session.execute(
        select(
            JobFundingRow.job_id,
            JobFundingRow.tenant_id,
            JobFundingRow.state,
            JobFundingRow.rated_units,
            JobFundingRow.charges,
            JobFundingRow.funded_at,
        )
        .where(among(JobFundingRow.job_id, job_ids), among(JobFundingRow.tenant_id, mine))
        .order_by(JobFundingRow.tenant_id, JobFundingRow.job_id)
        .with_for_update(skip_locked=True)
    ).all()
    columns = (
        JobRow.id,
        JobRow.kind,
        JobRow.priority,
        JobRow.slots_milli,
        JobRow.ended_at,
        JobRow.lost_attempts,
    )
    facts = {
        id_: (Traits(kind, priority, slots), ended_at, lost)
        for id_, kind, priority, slots, ended_at, lost in session.execute(
            select(*columns).where(among(JobRow.id, [row.job_id for row in rows]))
        )
    }
    return {
        job_id: _Job(job_id, tenant_id, state, int(units), charges, funded_at, *facts[job_id])
        for job_id, tenant_id, state, units, charges, funded_at in rows
    }


def _all(waiting: Waiting) -> list[Streak]:
    return [*waiting.due, *waiting.behind]


def _closing(
    session: Session, jobs: Mapping[UUID, _Job], waiting: Mapping[UUID, Waiting], late: Collection[UUID]
) -> set[UUID]:
    """Jobs that are over, lost nothing, and of which nothing more is to come; they are released with this batch."""
    over = [job for job in jobs.values() if job.state == "ended" and not job.lost_attempts]
    through = [job for job in over if not waiting[job.id].behind and not waiting[job.id].more]
    return jobs_with_all_records(session, [job.id for job in through if job.id not in late])


def _volumes(
    session: Session, jobs: Mapping[UUID, _Job], waiting: Mapping[UUID, Waiting]
) -> dict[VolumeKey, int]:
    """What the tenants have used of the models in the months in question, before this batch."""
    wanted = {
        (job.tenant_id, streak.model, streak.month) for job in jobs.values() for streak in _all(waiting[job.id])
    }
    if not wanted:
        return {}
    place = tuple_(TenantVolumeRow.tenant_id, TenantVolumeRow.model, TenantVolumeRow.month)
    rows = session.execute(
        select(
            TenantVolumeRow.tenant_id, TenantVolumeRow.model, TenantVolumeRow.month, TenantVolumeRow.slot_ms
        ).where(place.in_(wanted))
    )
    return {(tenant_id, model, month): slot_ms for tenant_id, model, month, slot_ms in rows}
