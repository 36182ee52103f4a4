"""What happens to a voucher after its use: expiry, recall, restoration of lost usage, forecast.

Each is a movement in the ledger. A voucher ends at its instant; what was set aside before stays set aside, may
be captured for usage before the end, and goes to the pool when it is released.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.domain.accounts import Account
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.claims import STANDING
from vouchers.domain.forecast import Forecast, forecast
from vouchers.enterprises import lock_tenants
from vouchers.errors import ChargeClaimed, ChargeNotFound, NotRestorable, VoucherEnded, VoucherNotFound
from vouchers.reading import VoucherView, list_vouchers
from vouchers.redemption import forward_to_pool, hold_lines
from vouchers.tables import (
    ClaimLine,
    CoverageLine,
    CoveredCharge,
    HoldLine,
    Restoration,
    Voucher,
    VoucherPart,
)


@dataclass(frozen=True)
class VoucherForecast:
    """A voucher and what will probably lapse of it."""

    voucher: VoucherView
    forecast: Forecast


def expire_vouchers(session: Session, at: datetime, *, limit: int = 100) -> list[UUID]:
    """End the vouchers whose instant has come; what is not set aside goes back to the pool of their cycle.

    Returns:
        The vouchers that ended, at most `limit`; call again until there is none.
    """
    due = session.execute(
        select(Voucher.id, Voucher.enterprise_id)
        .where(Voucher.state == "active", Voucher.expires_at <= at)
        .order_by(Voucher.expires_at, Voucher.id)
        .limit(limit)
    ).all()
    if not due:
        return []
    lock_tenants(session, [enterprise_id for _, enterprise_id in due])
    rows = _still_active(session, [voucher_id for voucher_id, _ in due])
    transfers = [transfer for row in rows for transfer in _end(session, row, "expired", "", "", at)]
    post_all(session, transfers, at=at)
    return [row.id for row in rows]


def recall_voucher(session: Session, voucher_id: UUID, *, by: str, reason: str, at: datetime) -> None:
    """The authority takes back what is not set aside. Recalling it again does nothing.

    Raises:
        VoucherNotFound: no voucher has this id.
        VoucherEnded: it has expired.
    """
    voucher = session.get(Voucher, voucher_id)
    if voucher is None:
        raise VoucherNotFound(voucher=voucher_id)
    lock_tenants(session, [voucher.enterprise_id])
    session.refresh(voucher)
    if voucher.state == "recalled":
        return
    if voucher.state != "active":
        raise VoucherEnded(voucher=voucher.number, state=voucher.state)
    post_all(session, _end(session, voucher, "recalled", by, reason, at), at=at)


def restore_charge(session: Session, charge_id: UUID, *, reason: str, by: str, at: datetime) -> int:
    """Give a charge for lost usage back, to the very vouchers and accounts that paid it.

    A share of a voucher that has ended meanwhile goes on to the pool. Restoring it again does nothing.

    Returns:
        The micro-yuan given back.

    Raises:
        ChargeNotFound: it was never captured.
        ChargeClaimed: a share of it stands in a claim.
        NotRestorable: a share was clawed back.
    """
    charge = session.get(CoveredCharge, charge_id)
    if charge is None:
        raise ChargeNotFound(charge=charge_id)
    lock_tenants(session, [charge.tenant_id])
    lines = session.scalars(
        select(CoverageLine).where(CoverageLine.charge_id == charge_id).order_by(CoverageLine.line)
    ).all()
    if _restored_before(session, charge_id, lines):
        return charge.cost_micros
    _check_unclaimed(session, charge_id)
    held = {(line.segment, line.source): line for line in hold_lines(session, charge.job_id)}
    places = {
        (line.segment, line.voucher_id): line.account_id
        for line in hold_lines(session, charge.job_id)
        if line.voucher_id
    }
    transfers: list[Transfer] = []
    for line in lines:
        if line.transfer_id is None:
            continue
        undone = movements.reverse(line.transfer_id, "restore_usage")
        transfers.append(undone)
        if line.voucher_id is not None:
            transfers += forward_to_pool(
                session, line.voucher_id, places[line.segment, line.voucher_id], line.quantity, undone.id
            )
        session.add(
            Restoration(
                line_id=line.id,
                reason=reason,
                kind="restored",
                transfer_id=undone.id,
                restored_by=by,
                restored_at=at,
            )
        )
    transfers += _restore_budgets(charge_id, lines, held)
    session.flush()
    post_all(session, transfers, at=at)
    return charge.cost_micros


def expiry_forecast(
    session: Session, at: datetime, *, slug: str | None = None, enterprise_id: UUID | None = None
) -> list[VoucherForecast]:
    """What will probably lapse, per active voucher of a programme or enterprise, soonest end first."""
    views = list_vouchers(session, slug=slug, enterprise_id=enterprise_id, state="active", limit=500)
    found = [
        VoucherForecast(
            view,
            forecast(
                face=view.face,
                captured=view.captured,
                remaining=view.remaining,
                issued_at=view.issued_at,
                expires_at=view.expires_at,
                at=at,
            ),
        )
        for view in views
    ]
    return sorted(found, key=lambda entry: (entry.voucher.expires_at, entry.voucher.id))


def lapsing_by_month(forecasts: Sequence[VoucherForecast]) -> dict[str, int]:
    """Per month of expiry (UTC) what will probably lapse, for a programme's chart."""
    months: dict[str, int] = {}
    for entry in forecasts:
        month = f"{entry.voucher.expires_at:%Y-%m}"
        months[month] = months.get(month, 0) + entry.forecast.lapsing
    return dict(sorted(months.items()))


def _still_active(session: Session, voucher_ids: Sequence[UUID]) -> Sequence[Voucher]:
    return session.scalars(
        select(Voucher)
        .where(Voucher.id.in_(voucher_ids), Voucher.state == "active")
        .order_by(Voucher.id)
        .execution_options(populate_existing=True)
    ).all()


def _end(session: Session, voucher: Voucher, state: str, by: str, reason: str, at: datetime) -> list[Transfer]:
    """Mark a voucher's end and say what moves to the pool: itself, its parts, and promises that now lapse."""
    voucher.state, voucher.ended_at = state, at
    voucher.ended_by, voucher.ended_reason = by, reason
    session.flush()
    pool = accounts.pool(voucher.slug, voucher.cycle, voucher.asset)
    places = [accounts.voucher(voucher.id, voucher.asset), *_parts(session, voucher)]
    left = accounts.available(session, places)
    movement = movements.expire_voucher if state == "expired" else movements.recall_voucher
    transfers = [movement(voucher.id, place, pool, left[place.id]) for place in places if left[place.id]]
    siblings = exists().where(Voucher.application_id == voucher.application_id, Voucher.state == "active")
    if not session.scalar(select(siblings)):
        promised = accounts.promised(voucher.application_id, voucher.asset)
        waiting = accounts.available(session, [promised])[promised.id]
        if waiting:
            transfers.append(movements.withdraw_promise(voucher.application_id, pool, waiting))
    return transfers


def _parts(session: Session, voucher: Voucher) -> list[Account]:
    projects = session.scalars(
        select(VoucherPart.project).where(VoucherPart.voucher_id == voucher.id).order_by(VoucherPart.project)
    )
    return [accounts.voucher_part(voucher.id, project, voucher.asset) for project in projects]


def _restored_before(session: Session, charge_id: UUID, lines: Sequence[CoverageLine]) -> bool:
    kinds = set(
        session.scalars(select(Restoration.kind).where(Restoration.line_id.in_([line.id for line in lines])))
    )
    if "clawed_back" in kinds:
        raise NotRestorable(charge=charge_id)
    return bool(kinds)


def _check_unclaimed(session: Session, charge_id: UUID) -> None:
    claim_id = session.scalar(
        select(ClaimLine.claim_id)
        .join(CoverageLine, CoverageLine.id == ClaimLine.coverage_line_id)
        .where(CoverageLine.charge_id == charge_id, ClaimLine.state.in_(STANDING))
        .order_by(ClaimLine.claim_id)
        .limit(1)
    )
    if claim_id is not None:
        raise ChargeClaimed(charge=charge_id, claim=claim_id)


def _restore_budgets(
    charge_id: UUID, lines: Sequence[CoverageLine], held: dict[tuple[int, str], HoldLine]
) -> list[Transfer]:
    """What the charge took from a project's budget comes back with the tenant's own money."""
    segments = sorted({line.segment for line in lines if line.source in {"prepaid", "credit"}})
    spent = [held[segment, "budget"] for segment in segments if (segment, "budget") in held]
    return [
        movements.reverse(
            derived_id("transfer", "capture_usage", charge_id, line.segment, line.line), "restore_usage"
        )
        for line in spent
    ]
