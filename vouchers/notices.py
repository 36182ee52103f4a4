"""Public notice of approvals: while it runs anybody may object; nothing is issued over an open objection."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from vouchers.applications import in_state, locked_application, record_step, reject_application
from vouchers.errors import (
    NoticeRunning,
    ObjectionNotFound,
    ObjectionResolved,
)
from vouchers.tables import Application, Objection


def raise_objection(session: Session, application_id: UUID, *, by: str, reason: str, at: datetime) -> UUID:
    """Somebody objects during the public notice; the voucher is not issued before it is resolved.

    Raises:
        NoticeRunning: there is no notice at that time.
    """
    application = in_state(session, application_id, "an objection", "approved")
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
    objection = session.get(Objection, objection_id)
    if objection is None:
        raise ObjectionNotFound(objection=objection_id)
    locked_application(session, objection.application_id)
    session.refresh(objection, with_for_update=True)
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
