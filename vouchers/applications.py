"""Applications: draft, automatic checks, first review, revision, final approval, public notice, rejection.

First review and final approval are two people's: the rule says so here and the table's constraint says so
again. Every step is recorded with who took it and why.
"""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.ids import new_id
from kernel.money import MICROS_MAX
from vouchers.cases import OPEN_STATES, case_of, find_round
from vouchers.domain.calendar import local_day, start_of_day
from vouchers.domain.eligibility import FAIL, Check, run_checks
from vouchers.domain.facts import ContractFacts
from vouchers.domain.terms import Terms
from vouchers.domain.tranches import tranche_faces
from vouchers.enterprises import enterprise_facts, lock_tenants
from vouchers.errors import (
    AmountRefused,
    ApplicationNotFound,
    ApplicationState,
    ChecksFailed,
    GrantIndivisible,
    SamePerson,
)
from vouchers.programmes import terms_of, version_in_force
from vouchers.tables import Application, ApplicationCheck, ApplicationStep


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
        find_round(session, round_id, terms)
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

    It is decided by the version in force when it is first handed in, however long it was a draft.

    Returns:
        What each rule found; a failed one leaves the application rejected, with the rules as the reason.

    Raises:
        ApplicationNotFound; ProgrammeNotFound: the programme is over.
    """
    application = locked_application(session, application_id)
    if application.state not in {"draft", "revision"}:
        return checks_of(session, application_id)
    lock_tenants(session, [application.enterprise_id])
    if application.state == "draft":
        slug = terms_of(session, application.version_id).programme
        application.version_id, _ = version_in_force(session, slug, at)
    application.revision += 1
    found = run_checks(case_of(session, application, at))
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
    application = in_state(session, application_id, "revision of the content", "draft", "revision")
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
    application = in_state(session, application_id, "a request for revision", "submitted", "reviewed")
    application.state = "revision"
    application.first_reviewer = None
    session.flush()
    record_step(session, application_id, "revision requested", by, reason, at)


def first_review(session: Session, application_id: UUID, *, by: str, at: datetime, reason: str = "") -> None:
    """The first reviewer passes the application on to final approval."""
    application = in_state(session, application_id, "first review", "submitted", again=("reviewed", by))
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
        GrantIndivisible: a tranche of it would be nothing.
        ChecksFailed: since the submission a cap or list has changed so that a check fails.
    """
    application = in_state(session, application_id, "final approval", "reviewed", again=("approved", by))
    if application.state == "approved":
        return
    if application.first_reviewer == by:
        raise SamePerson(by=by)
    granted = application.requested if granted is None else granted
    if not 1 <= granted <= application.requested:
        raise AmountRefused(field="granted", value=granted)
    case = case_of(session, application, at, requested=granted)
    if not all(tranche_faces(case.terms, granted)):
        raise GrantIndivisible(field="granted", granted=granted, count=len(case.terms.tranches))
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
    application = in_state(session, application_id, "rejection", *OPEN_STATES[1:])
    application.state = "rejected"
    session.flush()
    record_step(session, application_id, "rejected", by, reason, at)


def withdraw_application(session: Session, application_id: UUID, *, by: str, at: datetime) -> None:
    """The applicant takes the application back."""
    application = in_state(session, application_id, "withdrawal", *OPEN_STATES)
    application.state = "withdrawn"
    session.flush()
    record_step(session, application_id, "withdrawn", by, "", at)


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


def _notice_end(terms: Terms, at: datetime) -> datetime | None:
    """When the public notice of an approval ends; None where the programme has none."""
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


def in_state(
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
