"""What is set aside for some jobs, read at once, from which charges are taken in memory and written together.

A charge fills its job's segments in order. A segment serves usage up to the earliest end among its vouchers: what was
used before a voucher ended may still be captured afterwards, what was used later may not. Whoever opens the holds has
the tenants' locks, so that what was read stays true. The number of statements does not depend on the number of jobs.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Text, and_, or_, select
from sqlalchemy.orm import Session

from kernel.bulk import among, array, copy_rows, run
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts
from vouchers.domain.coverage import stored_plan
from vouchers.domain.segments import Segment
from vouchers.tables import ChargeStretch, CoverageLine, CoveredCharge, HoldLine, HoldSegment, JobHold, Voucher

OWN: Final = frozenset({"prepaid", "credit"})

_SEGMENTS: Final = b"""
    UPDATE hold_segments x SET captured_micros = u.micros, captured_ms = u.ms
      FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[]) AS u(job_id, segment, micros, ms)
     WHERE x.job_id = u.job_id AND x.segment = u.segment
"""
_LINES: Final = b"""
    UPDATE hold_lines x SET captured = u.captured
      FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::bigint[]) AS u(job_id, segment, line, captured)
     WHERE x.job_id = u.job_id AND x.segment = u.segment AND x.line = u.line
"""
_RELEASED: Final = b"UPDATE job_holds SET state = 'released' WHERE job_id = ANY (%s::uuid[])"
_GIVEN_BACK: Final = b"""
    UPDATE job_holds x SET given_back = s.until
      FROM (SELECT job_id, max(segment) + 1 AS until FROM hold_segments
             WHERE job_id = ANY (%s::uuid[]) GROUP BY job_id) s
     WHERE x.job_id = s.job_id
"""


@dataclass
class HeldLine:
    """What one source set aside for a segment, and how much of it was captured."""

    job_id: UUID
    segment: int
    line: int
    source: str
    voucher_id: UUID | None
    payer_id: UUID | None
    account_id: UUID
    held: int
    captured: int
    transfer_id: UUID


@dataclass
class OpenSegment:
    """A segment that is not captured to its end: how it divides, and how far it was captured."""

    job_id: UUID
    segment: int
    cost_micros: int
    facts: dict[str, Any]
    serves_until: datetime | None
    captured_micros: int
    captured_ms: int
    division: Segment
    lines: Sequence[HeldLine]

    def serves(self, used_until: datetime) -> bool:
        """Whether usage that ended then may be captured from it."""
        return self.serves_until is None or used_until <= self.serves_until

    def takes(self, cost_micros: int, card_ms: int) -> tuple[int, int]:
        """How much of a usage it can still take, as cost and card time.

        Card time may turn out cheaper than it was set aside for, so where vouchers pay in card time a segment is also
        used up when its time is.
        """
        cost = min(cost_micros, self.cost_micros - self.captured_micros)
        time = card_ms * cost // cost_micros
        left_ms = self.division.plan.card_ms - self.captured_ms
        if self.division.plan.draws_card_time and time > left_ms:
            return min(cost, -(-cost_micros * left_ms // card_ms)), left_ms
        return cost, time


@dataclass(frozen=True)
class EndedVoucher:
    """A voucher to which nothing comes back any more, and the pool that gets it instead."""

    slug: str
    cycle: str
    asset: str


@dataclass
class JobMoney:
    """What is set aside for one job. Lines of segments that are captured to their end are there if it is released."""

    job_id: UUID
    tenant_id: UUID
    state: str
    segments: list[OpenSegment] = field(default_factory=list)
    lines: list[HeldLine] = field(default_factory=list)

    def cursors(self) -> tuple[list[tuple[int, int]], list[int]]:
        """How far its segments and lines were captured."""
        return [(row.captured_micros, row.captured_ms) for row in self.segments], [
            row.captured for row in self.lines
        ]

    def reset(self, cursors: tuple[list[tuple[int, int]], list[int]]) -> None:
        """Forget what was taken since."""
        segments, lines = cursors
        for segment, (micros, ms) in zip(self.segments, segments, strict=True):
            segment.captured_micros, segment.captured_ms = micros, ms
        for line, captured in zip(self.lines, lines, strict=True):
            line.captured = captured


@dataclass
class Written:
    """What is to be written: new rows, the segments and lines whose cursors moved, and what is to be posted."""

    charges: list[dict[str, Any]] = field(default_factory=list)
    stretches: list[dict[str, Any]] = field(default_factory=list)
    coverage: list[dict[str, Any]] = field(default_factory=list)
    moved: dict[tuple[UUID, int], OpenSegment] = field(default_factory=dict)
    captured: dict[tuple[UUID, int, int], HeldLine] = field(default_factory=dict)
    released: list[UUID] = field(default_factory=list)
    given_back: list[UUID] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    rounded: bool = False

    def add(self, other: "Written") -> None:
        """Write what another wants written, too."""
        self.charges += other.charges
        self.stretches += other.stretches
        self.coverage += other.coverage
        self.moved |= other.moved
        self.captured |= other.captured
        self.transfers += other.transfers
        self.rounded |= other.rounded


@dataclass
class OpenHolds:
    """The money set aside for some jobs, and what of it was taken so far."""

    jobs: dict[UUID, JobMoney]
    ended: dict[UUID, EndedVoucher]
    written: Written = field(default_factory=Written)


def open_holds(session: Session, job_ids: Collection[UUID], *, releasing: Collection[UUID] = ()) -> OpenHolds:
    """Read what is set aside for jobs whose tenants are locked; `releasing` names those that may be released."""
    session.flush()
    wanted = {*job_ids, *releasing}
    jobs = {
        job_id: JobMoney(job_id, tenant_id, state)
        for job_id, tenant_id, state in session.execute(
            select(JobHold.job_id, JobHold.tenant_id, JobHold.state).where(among(JobHold.job_id, wanted))
        )
    }
    by_segment = _read_lines(session, jobs, set(releasing))
    _read_segments(session, jobs, by_segment)
    ended = _ended(
        session, [line.voucher_id for job_id in releasing if job_id in jobs for line in jobs[job_id].lines]
    )
    return OpenHolds(jobs, ended)


def write_holds(session: Session, holds: OpenHolds, at: datetime) -> None:
    """Write and post everything that was taken and released, as one ledger batch."""
    written = holds.written
    copy_rows(session, CoveredCharge, written.charges)
    copy_rows(session, ChargeStretch, written.stretches)
    copy_rows(session, CoverageLine, written.coverage)
    if written.moved:
        segments = written.moved.values()
        columns = (
            array(row.job_id for row in segments),
            array(row.segment for row in segments),
            array(row.captured_micros for row in segments),
            array(row.captured_ms for row in segments),
        )
        run(session, _SEGMENTS, columns)
    if written.captured:
        lines = written.captured.values()
        columns = (
            array(row.job_id for row in lines),
            array(row.segment for row in lines),
            array(row.line for row in lines),
            array(row.captured for row in lines),
        )
        run(session, _LINES, columns)
    if written.released:
        run(session, _RELEASED, (array(written.released),))
    if written.given_back:
        run(session, _GIVEN_BACK, (array(written.given_back),))
    if written.rounded:
        accounts.ensure(session, [accounts.ROUNDING], at)
    post_all(session, written.transfers, at=at)
    session.flush()
    session.expire_all()


def _read_lines(
    session: Session, jobs: dict[UUID, JobMoney], releasing: Collection[UUID]
) -> dict[tuple[UUID, int], list[HeldLine]]:
    """Lines of segments that are not captured to their end; of jobs that may be released all; none given back."""
    segment = and_(HoldSegment.job_id == HoldLine.job_id, HoldSegment.segment == HoldLine.segment)
    unfinished = HoldSegment.captured_micros < HoldSegment.cost_micros
    rows = session.execute(
        select(
            HoldLine.job_id,
            HoldLine.segment,
            HoldLine.line,
            HoldLine.source,
            HoldLine.voucher_id,
            HoldLine.payer_id,
            HoldLine.account_id,
            HoldLine.held,
            HoldLine.captured,
            HoldLine.transfer_id,
        )
        .join(HoldSegment, segment)
        .join(JobHold, and_(JobHold.job_id == HoldLine.job_id, JobHold.given_back <= HoldLine.segment))
        .where(among(HoldLine.job_id, jobs), or_(unfinished, among(HoldLine.job_id, releasing)))
        .order_by(HoldLine.job_id, HoldLine.segment, HoldLine.line)
    )
    by_segment: dict[tuple[UUID, int], list[HeldLine]] = {}
    for row in rows:
        line = HeldLine(*tuple(row))
        jobs[line.job_id].lines.append(line)
        by_segment.setdefault((line.job_id, line.segment), []).append(line)
    return by_segment


def _read_segments(
    session: Session, jobs: dict[UUID, JobMoney], by_segment: dict[tuple[UUID, int], list[HeldLine]]
) -> None:
    rows = session.execute(
        select(
            HoldSegment.job_id,
            HoldSegment.segment,
            HoldSegment.cost_micros,
            HoldSegment.card_ms,
            HoldSegment.facts,
            HoldSegment.plan.cast(Text),
            HoldSegment.serves_until,
            HoldSegment.captured_micros,
            HoldSegment.captured_ms,
        )
        .join(JobHold, and_(JobHold.job_id == HoldSegment.job_id, JobHold.given_back <= HoldSegment.segment))
        .where(among(HoldSegment.job_id, jobs), HoldSegment.captured_micros < HoldSegment.cost_micros)
        .order_by(HoldSegment.job_id, HoldSegment.segment)
    )
    for job_id, number, cost, card_ms, facts, plan, serves_until, micros, ms in rows:
        lines = by_segment.get((job_id, number), [])
        limits = tuple(line.held for line in lines if line.source in OWN)
        division = Segment(stored_plan(cost, card_ms, plan), limits)
        jobs[job_id].segments.append(
            OpenSegment(job_id, number, cost, facts, serves_until, micros, ms, division, lines)
        )


def _ended(session: Session, voucher_ids: Sequence[UUID | None]) -> dict[UUID, EndedVoucher]:
    ids = {voucher_id for voucher_id in voucher_ids if voucher_id is not None}
    if not ids:
        return {}
    rows = session.execute(
        select(Voucher.id, Voucher.slug, Voucher.cycle, Voucher.asset).where(
            among(Voucher.id, ids), Voucher.state != "active"
        )
    )
    return {voucher_id: EndedVoucher(*facts) for voucher_id, *facts in rows}
