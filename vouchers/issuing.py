"""Issuing vouchers: the pool's bound in the ledger keeps all of them within the budget, whoever issues at once.

Caps per enterprise and per actual controller are counted with the programme's row locked, one issue at a time.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.errors import InsufficientFunds
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.applications import locked_application, record_step
from vouchers.cases import issued_under_cap
from vouchers.domain.calendar import budget_cycle, expiry, local_day
from vouchers.domain.terms import Terms
from vouchers.domain.tranches import tranche_faces
from vouchers.enterprises import enterprise_facts
from vouchers.errors import (
    ApplicationState,
    CapExceeded,
    NotApplicationsVoucher,
    PoolExhausted,
    ValidityOver,
    VoucherNotFound,
)
from vouchers.notices import check_notice_over
from vouchers.programmes import lock_programme, terms_of
from vouchers.tables import Application, Voucher


def issue_voucher(session: Session, application_id: UUID, *, by: str, at: datetime) -> UUID:
    """Issue what was approved; its later tranches are set aside. Issuing it again returns the first result.

    Returns:
        The voucher's id, derived from the application.

    Raises:
        ApplicationState: it is not approved.
        NoticeRunning: the public may still object.
        CapExceeded: the enterprise or its controller's group would hold too much.
        PoolExhausted: the cycle's budget does not suffice.
    """
    application = locked_application(session, application_id)
    voucher_id = derived_id("voucher", application_id, 1)
    if application.state == "issued":
        return voucher_id
    if application.state != "approved" or application.granted is None:
        raise ApplicationState(
            application=application_id, state=application.state, step="issue", needed="approved"
        )
    check_notice_over(session, application, at)
    terms = terms_of(session, application.version_id)
    lock_programme(session, terms.programme)
    _check_caps(session, application, application.granted, terms, at)
    first, *later = tranche_faces(terms, application.granted)
    voucher = _new_voucher(session, application, terms, 1, first, by, at)
    pool = accounts.pool(terms.programme, voucher.cycle, terms.asset)
    promised = accounts.promised(application_id, terms.asset)
    accounts.ensure(session, [pool, accounts.voucher(voucher_id, terms.asset), promised], at)
    transfers = [movements.issue_voucher(voucher_id, pool, first)]
    if sum(later):
        transfers.append(movements.promise_tranches(application_id, pool, sum(later)))
    try:
        post_all(session, transfers, at=at)
    except InsufficientFunds as refused:
        raise PoolExhausted(
            programme=terms.programme,
            cycle=voucher.cycle,
            available=refused.facts["available"],
            required=application.granted,
        ) from refused
    application.state = "issued"
    session.flush()
    record_step(session, application_id, "issued", by, voucher.number, at)
    return voucher_id


def release_tranche(session: Session, application_id: UUID, *, report: str, by: str, at: datetime) -> UUID:
    """Issue the next part of a grant on an accepted progress report.

    Args:
        session: whose transaction this belongs to.
        application_id: the issued application.
        report: the accepted report's reference; the same reference releases the same part.
        by: who accepted it.
        at: when.

    Raises:
        NotApplicationsVoucher: every part has been released.
    """
    application = locked_application(session, application_id)
    terms = terms_of(session, application.version_id)
    released = session.scalars(
        select(Voucher).where(Voucher.application_id == application_id).order_by(Voucher.tranche)
    ).all()
    for voucher in released:
        if voucher.issued_on == report:
            return voucher.id
    lock_programme(session, terms.programme)
    number = len(released) + 1
    if application.state != "issued" or number > len(terms.tranches):
        raise NotApplicationsVoucher(application=application_id, tranche=number, needs="a progress report")
    face = tranche_faces(terms, application.granted or 0)[number - 1]
    voucher = _new_voucher(session, application, terms, number, face, by, at, report=report, first=released[0])
    accounts.ensure(session, [accounts.voucher(voucher.id, terms.asset)], at)
    try:
        post_all(session, [movements.release_tranche(voucher.id, application_id, terms.asset, face)], at=at)
    except InsufficientFunds as refused:
        raise NotApplicationsVoucher(
            application=application_id, tranche=number, needs="a report before its last voucher ended"
        ) from refused
    record_step(session, application_id, "tranche released", by, report, at)
    return voucher.id


def voucher_of(session: Session, voucher_id: UUID) -> Voucher:
    """A voucher of any tenant, for officers. Raises VoucherNotFound."""
    voucher = session.get(Voucher, voucher_id)
    if voucher is None:
        raise VoucherNotFound(voucher=voucher_id)
    return voucher


def _check_caps(session: Session, application: Application, granted: int, terms: Terms, at: datetime) -> None:
    enterprise = enterprise_facts(session, application.enterprise_id)
    for cap in terms.caps_for(enterprise):
        issued = issued_under_cap(session, terms, cap, application.enterprise_id, enterprise.controller, at)
        if issued + granted > cap.amount:
            holder = (
                enterprise.credit_code if cap.per == "enterprise" else f"the group of {enterprise.controller}"
            )
            raise CapExceeded(
                clause=cap.clause,
                holder=holder,
                issued=issued,
                cycle=budget_cycle(cap.cycle, at, terms.time_zone),
                required=granted,
                cap=cap.amount,
            )


def _new_voucher(
    session: Session,
    application: Application,
    terms: Terms,
    tranche: int,
    face: int,
    by: str,
    at: datetime,
    *,
    report: str = "",
    first: Voucher | None = None,
) -> Voucher:
    """A voucher; a later tranche belongs to the budget cycle and the cap's year of its grant's `first`."""
    enterprise = enterprise_facts(session, application.enterprise_id)
    voucher_id = derived_id("voucher", application.id, tranche)
    year = local_day(at, terms.time_zone).year
    use_by_at, expires_at = _ends(terms, at)
    voucher = Voucher(
        id=voucher_id,
        number=f"{terms.programme.upper()}-{year}-{voucher_id.hex[:12].upper()}",
        version_id=application.version_id,
        slug=terms.programme,
        enterprise_id=application.enterprise_id,
        application_id=application.id,
        tranche=tranche,
        asset=terms.asset,
        face=face,
        cycle=first.cycle if first else budget_cycle(terms.budget.cycle, at, terms.time_zone),
        cap_year=first.cap_year if first else year,
        controller=enterprise.controller,
        holder=enterprise.to_json(),
        issued_on=report,
        issued_by=by,
        issued_at=at,
        use_by_at=use_by_at,
        expires_at=expires_at,
        state="active",
    )
    session.add(voucher)
    session.flush()
    return voucher


def _ends(terms: Terms, at: datetime) -> tuple[datetime, datetime]:
    """The last usage a voucher issued now pays for, and when it expires. Raises ValidityOver."""
    ends = [(expiry(rule, at, terms.time_zone), rule.clause) for rule in (terms.validity, terms.use_by) if rule]
    for ends_at, clause in ends:
        if ends_at <= at:
            raise ValidityOver(programme=terms.programme, expired_at=ends_at.isoformat(), clause=clause)
    return min(ends_at for ends_at, _ in ends), ends[0][0]
