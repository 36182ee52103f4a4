"""Applications: draft, automatic checks, first review, revision, final approval, public notice, rejection.

First review and final approval are two people's: the rule says so here and the table's constraint says so
again. Every step is recorded with who took it and why.
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id, new_id
from kernel.money import MICROS_MAX
from vouchers.domain.calendar import budget_cycle, local_day, start_of_day
from vouchers.domain.eligibility import FAIL, Case, Check, run_checks
from vouchers.domain.facts import ContractFacts, EnterpriseFacts
from vouchers.domain.terms import Terms
from vouchers.enterprises import enterprise_facts, lock_tenants, relation
from vouchers.errors import (
    AmountRefused,
    ApplicationNotFound,
    ApplicationState,
    ChecksFailed,
    DatesReversed,
    NoticeRunning,
    ObjectionNotFound,
    ObjectionResolved,
    RoundNotFound,
    SamePerson,
)
from vouchers.programmes import terms_of, version_in_force
from vouchers.tables import Application, ApplicationCheck, ApplicationStep, Objection, Round, Voucher

_OPEN: Final = ("draft", "submitted", "revision", "reviewed", "approved")


def open_round(
    session: Session, slug: str, name: str, *, opens_at: datetime, cut_off_at: datetime, by: str
) -> UUID:
    """Call for applications until a cut-off. Raises DatesReversed."""
    if cut_off_at <= opens_at:
        raise DatesReversed(field="cut_off_at", starts_at=opens_at, ends_at=cut_off_at)
    round_id = derived_id("round", slug, name)
    if session.get(Round, round_id) is None:
        session.add(
            Round(id=round_id, slug=slug, name=name, opens_at=opens_at, cut_off_at=cut_off_at, opened_by=by)
        )
        session.flush()
    return round_id


def draft_application(
    session: Session,
    *,
    enterprise_id: UUID,
    programme: str,
    requested: int,
    by: str,
    at: datetime,
    contract: ContractFacts = ContractFacts(),  # noqa: B008 - a frozen value
    round_id: UUID | None = None,
    application_id: UUID | None = None,
) -> UUID:
    """Begin an application under the version in force, without checking it yet.

    Args:
        session: whose transaction this belongs to.
        enterprise_id: who applies.
        programme: the programme's slug.
        requested: the face value, in the programme's smallest unit.
        by: who writes it.
        at: when.
        contract: the purchase contract it is for, where the programme asks for one.
        round_id: the round it answers to.
        application_id: to make a retry recognisable; a new one if left out.

    Raises:
        ProgrammeNotFound, EnterpriseNotFound, RoundNotFound, AmountRefused.
    """
    if not 1 <= requested <= MICROS_MAX:
        raise AmountRefused(field="requested", value=requested)
    application_id = application_id or new_id()
    if session.get(Application, application_id) is not None:
        return application_id
    version_id, terms = version_in_force(session, programme, at)
    enterprise_facts(session, enterprise_id)
    if round_id is not None:
        _round(session, round_id, terms)
    session.add(
        Application(
            id=application_id,
            version_id=version_id,
            enterprise_id=enterprise_id,
            round_id=round_id,
            requested=requested,
            contract=contract.to_json(),
            state="draft",
            revision=0,
            created_by=by,
            created_at=at,
        )
    )
    session.flush()
    record_step(session, application_id, "draft", by, "", at)
    return application_id


def submit_application(
    session: Session,
    *,
    enterprise_id: UUID,
    programme: str,
    requested: int,
    by: str,
    at: datetime,
    contract: ContractFacts = ContractFacts(),  # noqa: B008 - a frozen value
    round_id: UUID | None = None,
    application_id: UUID | None = None,
) -> UUID:
    """Draft and submit in one step; see `draft_application` and `submit_draft`."""
    application_id = draft_application(
        session,
        enterprise_id=enterprise_id,
        programme=programme,
        requested=requested,
        by=by,
        at=at,
        contract=contract,
        round_id=round_id,
        application_id=application_id,
    )
    submit_draft(session, application_id, by=by, at=at)
    return application_id


def submit_draft(session: Session, application_id: UUID, *, by: str, at: datetime) -> list[ApplicationCheck]:
    """Run the automatic checks and hand the application to first review, or reject it naming what failed.

    Returns:
        What each rule found; a failed one leaves the application rejected, with the rules as the reason.
    """
    application = locked_application(session, application_id)
    if application.state not in {"draft", "revision"}:
        return checks_of(session, application_id)
    lock_tenants(session, [application.enterprise_id])
    application.revision += 1
    found = run_checks(_case(session, application, at))
    for check in found:
        session.add(_row(application, check, at))
    failed = [check.rule for check in found if check.verdict == FAIL]
    application.submitted_at = at
    application.state = "rejected" if failed else "submitted"
    session.flush()
    record_step(
        session, application_id, "rejected by checks" if failed else "submitted", by, ", ".join(failed), at
    )
    return checks_of(session, application_id)


def revise_application(
    session: Session,
    application_id: UUID,
    *,
    by: str,
    at: datetime,
    requested: int | None = None,
    contract: ContractFacts | None = None,
) -> None:
    """Change a draft, or what a reviewer sent back."""
    application = _in_state(session, application_id, "revision of the content", "draft", "revision")
    if requested is not None:
        if not 1 <= requested <= MICROS_MAX:
            raise AmountRefused(field="requested", value=requested)
        application.requested = requested
    if contract is not None:
        application.contract = contract.to_json()
    session.flush()
    record_step(session, application_id, "revised", by, "", at)


def request_revision(session: Session, application_id: UUID, *, by: str, reason: str, at: datetime) -> None:
    """A reviewer sends the application back with what is missing."""
    application = _in_state(session, application_id, "a request for revision", "submitted", "reviewed")
    application.state = "revision"
    application.first_reviewer = None
    session.flush()
    record_step(session, application_id, "revision requested", by, reason, at)


def first_review(session: Session, application_id: UUID, *, by: str, at: datetime, reason: str = "") -> None:
    """The first reviewer passes the application on to final approval."""
    application = _in_state(session, application_id, "first review", "submitted", again=("reviewed", by))
    if application.state == "reviewed":
        return
    application.state = "reviewed"
    application.first_reviewer = by
    session.flush()
    record_step(session, application_id, "first review", by, reason, at)


def final_approval(
    session: Session,
    application_id: UUID,
    *,
    by: str,
    at: datetime,
    granted: int | None = None,
    reason: str = "",
) -> None:
    """Another person approves it, wholly or in part; then the public may object for the notice's days.

    Raises:
        SamePerson: the approver did the first review.
        ChecksFailed: since the submission a cap or list has changed so that a check fails.
    """
    application = _in_state(session, application_id, "final approval", "reviewed", again=("approved", by))
    if application.state == "approved":
        return
    if application.first_reviewer == by:
        raise SamePerson(by=by)
    granted = application.requested if granted is None else granted
    if not 1 <= granted <= application.requested:
        raise AmountRefused(field="granted", value=granted)
    case = _case(session, application, at, requested=granted)
    failed = [check.rule for check in run_checks(case) if check.verdict == FAIL]
    if failed:
        raise ChecksFailed(application=application_id, rules=", ".join(failed))
    application.state = "approved"
    application.approver = by
    application.granted = granted
    application.notice_ends_at = _notice_end(case.terms, at)
    session.flush()
    record_step(session, application_id, "final approval", by, reason, at)


def reject_application(session: Session, application_id: UUID, *, by: str, reason: str, at: datetime) -> None:
    """Refuse the application for a reason its applicant is told."""
    application = _in_state(session, application_id, "rejection", *_OPEN[1:])
    application.state = "rejected"
    session.flush()
    record_step(session, application_id, "rejected", by, reason, at)


def withdraw_application(session: Session, application_id: UUID, *, by: str, at: datetime) -> None:
    """The applicant takes the application back."""
    application = _in_state(session, application_id, "withdrawal", *_OPEN)
    application.state = "withdrawn"
    session.flush()
    record_step(session, application_id, "withdrawn", by, "", at)


def raise_objection(session: Session, application_id: UUID, *, by: str, reason: str, at: datetime) -> UUID:
    """Somebody objects during the public notice; the voucher is not issued before it is resolved.

    Raises:
        NoticeRunning: there is no notice at that time.
    """
    application = _in_state(session, application_id, "an objection", "approved")
    if application.notice_ends_at is None or at >= application.notice_ends_at:
        raise NoticeRunning(application=application_id, reason="the public notice has ended")
    objection_id = derived_id("objection", application_id, by, reason)
    if session.get(Objection, objection_id) is None:
        session.add(
            Objection(
                id=objection_id,
                application_id=application_id,
                raised_by=by,
                reason=reason,
                raised_at=at,
                state="open",
            )
        )
        session.flush()
        record_step(session, application_id, "objection", by, reason, at)
    return objection_id


def resolve_objection(
    session: Session, objection_id: UUID, *, upheld: bool, by: str, resolution: str, at: datetime
) -> None:
    """Dismiss an objection, or uphold it, which rejects the application."""
    objection = session.get(Objection, objection_id, with_for_update=True)
    if objection is None:
        raise ObjectionNotFound(objection=objection_id)
    if objection.state != "open":
        raise ObjectionResolved(objection=objection_id, state=objection.state)
    objection.state = "upheld" if upheld else "dismissed"
    objection.resolved_by = by
    objection.resolution = resolution
    session.flush()
    record_step(session, objection.application_id, f"objection {objection.state}", by, resolution, at)
    if upheld:
        reject_application(session, objection.application_id, by=by, reason=resolution, at=at)


def check_notice_over(session: Session, application: Application, at: datetime) -> None:
    """Refuse while the public may object or an objection is open. Raises NoticeRunning."""
    if application.notice_ends_at is not None and at < application.notice_ends_at:
        raise NoticeRunning(
            application=application.id,
            reason=f"the public may object until {application.notice_ends_at.isoformat()}",
        )
    waiting = session.scalar(
        select(func.count()).where(Objection.application_id == application.id, Objection.state == "open")
    )
    if waiting:
        raise NoticeRunning(application=application.id, reason=f"{waiting} objections are open")


def checks_of(session: Session, application_id: UUID) -> list[ApplicationCheck]:
    """What every automatic check found, by revision and rule."""
    return list(
        session.scalars(
            select(ApplicationCheck)
            .where(ApplicationCheck.application_id == application_id)
            .order_by(ApplicationCheck.revision, ApplicationCheck.rule)
        )
    )


def steps_of(session: Session, application_id: UUID) -> list[ApplicationStep]:
    """Who decided what, in order."""
    return list(
        session.scalars(
            select(ApplicationStep)
            .where(ApplicationStep.application_id == application_id)
            .order_by(ApplicationStep.number)
        )
    )


def issued_sum(session: Session, slug: str, cycle: str, *, enterprise_id: UUID | None, controller: str) -> int:
    """Face values issued in a cap's cycle (`once`: ever) to an enterprise, or to all a controller controls."""
    holder = (
        Voucher.controller == controller if enterprise_id is None else Voucher.enterprise_id == enterprise_id
    )
    query = select(func.coalesce(func.sum(Voucher.face), 0)).where(Voucher.slug == slug, holder)
    if cycle != "once":
        query = query.where(Voucher.cap_year == int(cycle))
    return int(session.scalar(query) or 0)


def _case(session: Session, application: Application, at: datetime, *, requested: int | None = None) -> Case:
    terms = terms_of(session, application.version_id)
    enterprise = enterprise_facts(session, application.enterprise_id)
    contract = ContractFacts.from_json(application.contract)
    issued = _issued_by_holder(session, terms, application.enterprise_id, enterprise, at)
    return Case(
        terms=terms,
        enterprise=enterprise,
        contract=contract,
        requested=application.requested if requested is None else requested,
        issued_enterprise=issued.get("enterprise", 0),
        issued_controller=issued.get("controller", 0),
        contract_used_by=_same_contract(session, application, contract),
        duplicates=_open_siblings(session, application, terms),
        relation=relation(session, enterprise.credit_code, contract.supplier) if contract.supplier else (),
        in_round=_in_round(session, application, terms, at),
    )


def _issued_by_holder(
    session: Session, terms: Terms, enterprise_id: UUID, enterprise: EnterpriseFacts, at: datetime
) -> dict[str, int]:
    return {
        cap.per: issued_sum(
            session,
            terms.programme,
            budget_cycle(cap.cycle, at, terms.time_zone),
            enterprise_id=enterprise_id if cap.per == "enterprise" else None,
            controller=enterprise.controller,
        )
        for cap in terms.caps_for(enterprise)
    }


def _same_contract(session: Session, application: Application, contract: ContractFacts) -> tuple[str, ...]:
    """Other standing applications, of anybody and to any programme, that name the same contract."""
    if not contract.number:
        return ()
    rows = session.scalars(
        select(Application.id).where(
            Application.contract["number"].astext == contract.number,
            Application.contract["supplier"].astext == contract.supplier,
            Application.id != application.id,
            Application.state.in_((*_OPEN, "issued")),
        )
    )
    return tuple(sorted(map(str, rows)))


def _open_siblings(session: Session, application: Application, terms: Terms) -> tuple[str, ...]:
    """Other open applications of the enterprise to this programme."""
    rows = session.execute(
        select(Application.id, Application.version_id).where(
            Application.enterprise_id == application.enterprise_id,
            Application.id != application.id,
            Application.state.in_([state for state in _OPEN if state != "draft"]),
        )
    )
    return tuple(
        sorted(str(row.id) for row in rows if terms_of(session, row.version_id).programme == terms.programme)
    )


def _in_round(session: Session, application: Application, terms: Terms, at: datetime) -> bool:
    if application.round_id is None:
        return not terms.review.rounds
    called = _round(session, application.round_id, terms)
    return application.submitted_at is not None or called.opens_at <= at < called.cut_off_at


def _round(session: Session, round_id: UUID, terms: Terms) -> Round:
    called = session.get(Round, round_id)
    if called is None or called.slug != terms.programme:
        raise RoundNotFound(round=round_id)
    return called


def _notice_end(terms: Terms, at: datetime) -> datetime | None:
    if not terms.review.notice_days:
        return None
    last = local_day(at, terms.time_zone) + timedelta(days=terms.review.notice_days)
    return start_of_day(last + timedelta(days=1), terms.time_zone)


def locked_application(session: Session, application_id: UUID) -> Application:
    """An application with its row locked. Raises ApplicationNotFound."""
    application = session.get(Application, application_id, with_for_update=True, populate_existing=True)
    if application is None:
        raise ApplicationNotFound(application=application_id)
    return application


def _in_state(
    session: Session, application_id: UUID, step: str, *needed: str, again: tuple[str, str] | None = None
) -> Application:
    """The application, locked, in one of the needed states; or where this step of this person left it."""
    application = locked_application(session, application_id)
    done_by = {"reviewed": application.first_reviewer, "approved": application.approver}
    repeated = again is not None and application.state == again[0] and done_by[again[0]] == again[1]
    if application.state not in needed and not repeated:
        raise ApplicationState(
            application=application_id, state=application.state, step=step, needed=" or ".join(needed)
        )
    return application


def _row(application: Application, check: Check, at: datetime) -> ApplicationCheck:
    return ApplicationCheck(
        application_id=application.id,
        revision=application.revision,
        rule=check.rule,
        verdict=check.verdict,
        clause=check.clause,
        facts=check.facts,
        checked_at=at,
    )


def record_step(
    session: Session, application_id: UUID, step: str, actor: str, reason: str, at: datetime
) -> None:
    """Note who took which step of an application, and why."""
    count = session.scalar(select(func.count()).where(ApplicationStep.application_id == application_id))
    session.add(
        ApplicationStep(
            application_id=application_id,
            number=int(count or 0) + 1,
            step=step,
            actor=actor,
            reason=reason,
            at=at,
        )
    )
    session.flush()
