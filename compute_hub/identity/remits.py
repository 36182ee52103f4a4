"""Whose programmes an officer works on: a key that names an authority decides about that authority's programmes only.

Asked once per request, beside the duty. A key without an authority works for all of them, as where a hub serves one.
What officers may see does not depend on it: two regions audit each other's bills.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BindParameter, Select, bindparam, select
from sqlalchemy.orm import Session

from compute_hub.identity.duties import DUTIES
from compute_hub.identity.keys import Principal
from compute_hub.identity.roles import Role
from kernel.errors import Forbidden
from vouchers.tables import Application, Claim, Objection, ProgrammeVersion, Voucher

_ID: Final[BindParameter[UUID]] = bindparam("id")
_SLUGS: Final[Mapping[str, Select[str]]] = {
    "application_id": select(ProgrammeVersion.slug)
    .join(Application, Application.version_id == ProgrammeVersion.id)
    .where(Application.id == _ID),
    "objection_id": select(ProgrammeVersion.slug)
    .join(Application, Application.version_id == ProgrammeVersion.id)
    .join(Objection, Objection.application_id == Application.id)
    .where(Objection.id == _ID),
    "voucher_id": select(Voucher.slug).where(Voucher.id == _ID),
    "claim_id": select(Claim.slug).where(Claim.id == _ID),
}
"""By the parameter of a path, whose programme that is."""


class WrongAuthority(Forbidden):
    """The key is for this duty, but on another authority's programmes."""

    sentence = "programme: {programme} is a programme of {owner!r}; this key works on those of {authority!r}."


def check_remit(session: Session, principal: Principal, operation: str, parameters: Mapping[str, Any]) -> None:
    """Refuse an officer's decision about another authority's programme. Raises WrongAuthority."""
    if principal.authority is None or Role.TENANT in DUTIES[operation]:
        return
    slug = _slug(session, parameters)
    if slug is not None:
        _check_owner(session, principal, slug)


def check_publication(session: Session, principal: Principal, document: Mapping[str, Any]) -> None:
    """Refuse rules of another authority, or for another authority's programme. Raises WrongAuthority."""
    if principal.authority is None:
        return
    slug, owner = str(document.get("programme")), document.get("authority")
    _check_owner(session, principal, slug)
    if owner != principal.authority:
        raise WrongAuthority(programme=slug, owner=owner, authority=principal.authority)


def _check_owner(session: Session, principal: Principal, slug: str) -> None:
    """By the newest version of a programme; one that is not there yet is nobody's."""
    newest = (
        select(ProgrammeVersion.document["authority"].astext)
        .where(ProgrammeVersion.slug == slug)
        .order_by(ProgrammeVersion.version.desc())
        .limit(1)
    )
    owner = session.scalar(newest)
    if owner not in {None, principal.authority}:
        raise WrongAuthority(programme=slug, owner=owner, authority=principal.authority)


def _slug(session: Session, parameters: Mapping[str, Any]) -> str | None:
    """The programme that a path is about; none where there is no such thing, which the operation itself refuses."""
    if "programme" in parameters:
        return str(parameters["programme"])
    for name, query in _SLUGS.items():
        if name in parameters:
            try:
                return session.scalar(query, {"id": UUID(str(parameters[name]))})
            except ValueError:
                return None
    return None
