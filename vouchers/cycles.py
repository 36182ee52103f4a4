"""The turn of a programme's budget cycle: the new cycle's budget is put into its pool, the old one's rest leaves.

Nothing is issued from the pool of a cycle that is over, so what is left of it, and what still comes back to it from
vouchers of that cycle, goes back to the governments that pay, or on to the next cycle, as the programme says.
"""

from collections.abc import Iterator
from datetime import date, datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from kernel.prepared import Prepared
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.calendar import budget_cycle, local_day
from vouchers.domain.terms import CARRIED_OVER, Terms
from vouchers.programmes import appropriate_budget, lock_programme, shares_of, terms_of_digest
from vouchers.tables import Appropriation, CycleClosing, ProgrammeVersion

BY: Final = "biller"

_VERSIONS: Final = select(ProgrammeVersion).order_by(ProgrammeVersion.slug, ProgrammeVersion.version)
_BUDGETS: Final = Prepared(
    select(Appropriation.slug, Appropriation.cycle, func.sum(Appropriation.amount)).group_by(
        Appropriation.slug, Appropriation.cycle
    )
)


def begin_cycles(session: Session, at: datetime) -> list[str]:
    """Put the budget of the cycle that runs now into the pools of programmes in force; what is there counts.

    Returns:
        The programmes that got money.
    """
    there = _appropriated(session)
    begun = []
    for version, terms in _versions(session):
        if not _in_force(version, local_day(at, terms.time_zone)):
            continue
        cycle = budget_cycle(terms.budget.cycle, at, terms.time_zone)
        if there.get((terms.programme, cycle), 0) < terms.budget.amount:
            appropriate_budget(session, version.id, at, by=BY, at=at)
            begun.append(terms.programme)
    return begun


def close_cycles(session: Session, at: datetime) -> list[str]:
    """Empty the pools of cycles that are over. Returns the programmes that had something left in one."""
    running: dict[str, Terms] = {}
    over: dict[str, bool] = {}
    for version, terms in _versions(session):
        day = local_day(at, terms.time_zone)
        until = version.effective_until
        over[terms.programme] = over.get(terms.programme, True) and until is not None and until < day
        running[terms.programme] = terms
    closed = []
    for slug, cycle in sorted(_appropriated(session)):
        terms = running[slug]
        past = over[slug] if cycle == "once" else int(cycle) < local_day(at, terms.time_zone).year
        pool = accounts.pool(slug, cycle, terms.asset)
        if past and accounts.available(session, [pool])[pool.id]:
            _close(session, terms, cycle, over=over[slug], at=at)
            closed.append(slug)
    return closed


def _close(session: Session, terms: Terms, cycle: str, *, over: bool, at: datetime) -> None:
    lock_programme(session, terms.programme)
    pool = accounts.pool(terms.programme, cycle, terms.asset)
    left = accounts.available(session, [pool])[pool.id]
    if not left:
        return
    count = session.scalar(
        select(func.count())
        .select_from(CycleClosing)
        .where(CycleClosing.slug == terms.programme, CycleClosing.cycle == cycle)
    )
    number = int(count or 0) + 1
    closing_id = derived_id("cycle-closing", terms.programme, cycle, number)
    carried_to = None
    if terms.budget.unspent == CARRIED_OVER and not over:
        carried_to = budget_cycle(terms.budget.cycle, at, terms.time_zone)
    session.add(
        CycleClosing(
            id=closing_id,
            slug=terms.programme,
            cycle=cycle,
            number=number,
            amount=left,
            carried_to=carried_to,
            closed_at=at,
        )
    )
    session.flush()
    if carried_to is not None:
        new = accounts.pool(terms.programme, carried_to, terms.asset)
        accounts.ensure(session, [new], at)
        transfers = [movements.carry_over(closing_id, pool, new, left)]
    else:
        shares = shares_of(terms, left)
        accounts.ensure(session, [accounts.authority_funds(name, terms.asset) for name, _ in shares], at)
        transfers = [movements.return_budget(closing_id, name, pool, share) for name, share in shares]
    post_all(session, transfers, at=at)


def _versions(session: Session) -> Iterator[tuple[ProgrammeVersion, Terms]]:
    for row in session.scalars(_VERSIONS).all():
        yield row, terms_of_digest(session, row.id, row.digest)


def _appropriated(session: Session) -> dict[tuple[str, str], int]:
    return {(slug, cycle): int(amount) for slug, cycle, amount in _BUDGETS(session)}


def _in_force(version: ProgrammeVersion, day: date) -> bool:
    until = version.effective_until
    return version.effective_from <= day and (until is None or day <= until)
