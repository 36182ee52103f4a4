"""How vouchers end: expiry, recall, and the forecast of what will lapse.

Each is a movement in the ledger. A voucher ends at its instant; what was set aside before stays set aside, may
be captured for usage before the end, and goes to the pool when it is released.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Integer, bindparam, exists, select
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.prepared import Prepared
from ledger.domain.accounts import Account
from ledger.domain.transfers import Transfer
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.calendar import local_day
from vouchers.domain.forecast import Forecast, forecast
from vouchers.enterprises import lock_tenants
from vouchers.errors import VoucherEnded, VoucherNotFound
from vouchers.reading import PAGE_MAX, VoucherView, list_vouchers
from vouchers.tables import ProgrammeVersion, Voucher, VoucherPart

_DUE: Final = Prepared(
    select(Voucher.id, Voucher.enterprise_id)
    .where(Voucher.state == "active", Voucher.expires_at <= bindparam("at"))
    .order_by(Voucher.expires_at, Voucher.id)
    .limit(bindparam("limit", type_=Integer))
)

FORECASTS_MAX: Final = 500
"""Vouchers told one by one in a forecast."""


@dataclass(frozen=True)
class VoucherForecast:
    """A voucher and what will probably lapse of it."""

    voucher: VoucherView
    forecast: Forecast


@dataclass(frozen=True)
class Outlook:
    """What will probably lapse: the vouchers whose last usage comes first, and of all of them by asset and month.

    A voucher lapses in the month of its last day, in its programme's time zone.
    """

    soonest: tuple[VoucherForecast, ...]
    by_month: Mapping[tuple[str, str], int]


def expire_vouchers(session: Session, at: datetime, *, limit: int = 100) -> list[UUID]:
    """End the vouchers whose instant has come; what is not set aside goes back to the pool of their cycle.

    Returns:
        The vouchers that ended, at most `limit`; call again until there is none.
    """
    due = _DUE(session, at=at, limit=limit)
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


def expiry_forecast(
    session: Session,
    at: datetime,
    *,
    slug: str | None = None,
    enterprise_id: UUID | None = None,
    limit: int = FORECASTS_MAX,
    page: int = PAGE_MAX,
) -> Outlook:
    """What will probably lapse of the active vouchers of a programme or enterprise.

    Args:
        session: whose transaction this belongs to.
        at: now.
        slug: only this programme's.
        enterprise_id: only this enterprise's.
        limit: how many vouchers are told one by one.
        page: how many are looked at together.
    """
    soonest: list[VoucherForecast] = []
    by_month: dict[tuple[str, str], int] = {}
    last: UUID | None = None
    while True:
        views = list_vouchers(
            session, slug=slug, enterprise_id=enterprise_id, state="active", after=last, limit=page
        )
        months = _last_months(session, [view.id for view in views])
        entries = [VoucherForecast(view, _forecast(view, at)) for view in views]
        for entry in entries:
            key = (entry.voucher.asset, months[entry.voucher.id])
            by_month[key] = by_month.get(key, 0) + entry.forecast.lapsing
        soonest = sorted([*soonest, *entries], key=lambda entry: (entry.voucher.use_by_at, entry.voucher.id))
        soonest = soonest[:limit]
        if len(views) < page:
            return Outlook(tuple(soonest), dict(sorted(by_month.items())))
        last = views[-1].id


def _forecast(view: VoucherView, at: datetime) -> Forecast:
    return forecast(
        face=view.face,
        captured=view.captured,
        remaining=view.remaining,
        issued_at=view.issued_at,
        use_by_at=view.use_by_at,
        at=at,
    )


def _last_months(session: Session, voucher_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The month of each voucher's last day, where its programme is."""
    rows = session.execute(
        select(Voucher.id, Voucher.expires_at, ProgrammeVersion.document["time_zone"].astext)
        .join(ProgrammeVersion, ProgrammeVersion.id == Voucher.version_id)
        .where(among(Voucher.id, voucher_ids))
    )
    instant = timedelta(microseconds=1)
    return {
        voucher_id: f"{local_day(expires_at - instant, time_zone):%Y-%m}"
        for voucher_id, expires_at, time_zone in rows
    }


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
