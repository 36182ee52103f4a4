"""Usage that is reported after its job's hold was given back: set aside and captured at once, or forgone.

The vouchers that paid for the job pay for it too, as long as they are alive; then the tenant's own money. Who has
neither left is not asked for more: the centre forgoes it, and the charge says so. A charge of a month that was closed
stands on the next invoice under its own month.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.errors import HubError
from vouchers.capturing import Capture, capture_charge
from vouchers.domain.explanation import Coverage
from vouchers.redemption import place_hold, release_hold
from vouchers.tables import HoldLine, Voucher


def capture_late(
    session: Session, job_id: UUID, tenant_id: UUID, captures: Sequence[Capture], at: datetime
) -> list[Coverage]:
    """The coverage of each late charge; none of what nobody can pay. The tenant is locked by the caller."""
    vouchers = _alive(session, job_id, at)
    return [_capture(session, tenant_id, capture, vouchers, at) for capture in captures]


def _capture(
    session: Session, tenant_id: UUID, capture: Capture, vouchers: Sequence[UUID], at: datetime
) -> Coverage:
    """By these vouchers and own money; by own money alone where a voucher refuses."""
    for paying in (vouchers, ()) if vouchers else ((),):
        try:
            with session.begin_nested():
                return _capture_by(session, tenant_id, capture, paying, at)
        except HubError:  # spent since, not for this usage, or no money: the next way, or forgone
            continue
    return Coverage(0, ())


def _capture_by(
    session: Session, tenant_id: UUID, capture: Capture, paying: Sequence[UUID], at: datetime
) -> Coverage:
    """A hold of the charge's own, which is captured whole and released."""
    hold_id, cost, facts, until = capture.charge_id, capture.cost_micros, capture.facts, capture.used_until
    place_hold(session, hold_id, tenant_id, cost, facts, paying, at, usage_until=until)
    coverage = capture_charge(session, hold_id, hold_id, cost, facts, at, used_until=until)
    release_hold(session, hold_id, at)
    return coverage


def _alive(session: Session, job_id: UUID, at: datetime) -> list[UUID]:
    """The vouchers that something was held from for a job and that have not ended, in the order of their ids."""
    held = select(HoldLine.voucher_id).where(HoldLine.job_id == job_id, HoldLine.voucher_id.is_not(None))
    query = select(Voucher.id).where(Voucher.id.in_(held), Voucher.state == "active", Voucher.expires_at > at)
    return list(session.scalars(query.order_by(Voucher.id)))
