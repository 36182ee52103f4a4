"""Named beginnings of submissions: a tenant's own, or the operator's for everybody.

The scheduler keeps them as they are; what their fields may hold is for whoever takes submissions to say.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from scheduler.refusals import TemplateNotFound, TooManyTemplates
from scheduler.tables import TemplateRow

EVERYBODY: Final = UUID(int=0)
"""Owns the templates an operator offers to all tenants."""

TEMPLATES_MAX: Final = 200
"""Of one owner."""


def save_template(
    session: Session,
    owner_id: UUID,
    name: str,
    fields: dict[str, Any],
    *,
    description: str,
    by: UUID,
    at: datetime,
) -> TemplateRow:
    """Keep a template under its name, in place of the one before. Raises TooManyTemplates."""
    row = session.get(TemplateRow, (owner_id, name), with_for_update=True)
    if row is None:
        count = session.scalar(
            select(func.count()).select_from(TemplateRow).where(TemplateRow.owner_id == owner_id)
        )
        if count is not None and count >= TEMPLATES_MAX:
            raise TooManyTemplates(most=TEMPLATES_MAX)
        row = TemplateRow(owner_id=owner_id, name=name)
        session.add(row)
    row.fields, row.description, row.saved_by, row.saved_at = fields, description, by, at
    session.flush()
    return row


def list_templates(session: Session, tenant_id: UUID | None) -> Sequence[TemplateRow]:
    """What a tenant can use, by name: its own and everybody's; only everybody's for None."""
    owners = [EVERYBODY, *([tenant_id] if tenant_id is not None else [])]
    order = (TemplateRow.name, TemplateRow.owner_id.desc())
    return session.scalars(select(TemplateRow).where(TemplateRow.owner_id.in_(owners)).order_by(*order)).all()


def find_template(session: Session, name: str, tenant_id: UUID | None) -> TemplateRow:
    """A tenant's own template of that name, else everybody's. Raises TemplateNotFound."""
    found = next((row for row in list_templates(session, tenant_id) if row.name == name), None)
    if found is None:
        raise TemplateNotFound(name=name)
    return found


def delete_template(session: Session, owner_id: UUID, name: str) -> TemplateRow:
    """Forget an owner's template; submitted jobs are untouched. Raises TemplateNotFound."""
    row = session.get(TemplateRow, (owner_id, name), with_for_update=True)
    if row is None:
        raise TemplateNotFound(name=name)
    session.delete(row)
    session.flush()
    return row
