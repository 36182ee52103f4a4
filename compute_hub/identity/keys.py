"""Making and checking API keys: `hub_<role>_<48 hexadecimal digits>`."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Engine, bindparam, select
from sqlalchemy.orm import Session

from compute_hub.identity.roles import OFFICIAL, Role
from compute_hub.identity.tables import ApiKeyRow
from kernel.errors import Forbidden, Invalid, NotFound, Unauthenticated
from kernel.ids import derived_id, new_id, new_secret
from kernel.prepared import Prepared

_FORM: Final = re.compile(r"hub_[a-z_]+_[0-9a-f]{48}")

_WHOSE: Final = Prepared(
    select(
        ApiKeyRow.principal_id,
        ApiKeyRow.principal_name,
        ApiKeyRow.role,
        ApiKeyRow.tenant_id,
        ApiKeyRow.authority,
    ).where(ApiKeyRow.key_sha256 == bindparam("digest"), ApiKeyRow.revoked_at.is_(None))
)


class MissingKey(Unauthenticated):
    """No credential was sent."""

    sentence = "This needs an API key: send the header 'Authorization: Bearer hub_…'."


class MalformedKey(Unauthenticated):
    """What was sent cannot be a key."""

    sentence = (
        "The Authorization header does not hold an API key. Send 'Authorization: Bearer KEY' with the whole key, "
        "which reads hub_ROLE_ and 48 hexadecimal digits."
    )


class UnknownKey(Unauthenticated):
    """A key of the right form that the hub did not give out, or has revoked."""

    sentence = "This API key is not known or has been revoked. Ask the operator for a new one."


class WrongRole(Forbidden):
    """The key is good but for another duty."""

    sentence = "A key of role {role!r} may not do this; it takes the role {needed}."


class KeyNeedsTenant(Invalid):
    """A tenant's key without its tenant, or an officer's key with one."""

    sentence = "tenant_id: a key of role tenant names its enterprise, a key of any other role names none."


class NoAuthority(Invalid):
    """An authority on a key of a role that decides nothing about programmes."""

    sentence = (
        "authority: only keys of authority officers, first reviewers and approvers name one, not of {role!r}."
    )


class KeyNotFound(NotFound):
    """No key has this id."""

    sentence = "There is no API key {key}. The list of keys shows them."


@dataclass(frozen=True)
class Principal:
    """Who is asking: a person or program in one role, of one tenant if the role is tenant.

    An officer with an authority decides about that authority's programmes only.
    """

    id: UUID
    name: str
    role: Role
    tenant_id: UUID | None
    authority: str | None = None


def issue_key(
    session: Session,
    role: Role,
    principal_name: str,
    *,
    at: datetime,
    tenant_id: UUID | None = None,
    authority: str | None = None,
) -> str:
    """Make a key and return it; it is shown this once and cannot be recovered.

    The principal follows from the person's name (and the enterprise), so that a second key of a person, in whatever
    role, is the same person's: who did the first review cannot approve with another key.

    Raises:
        KeyNeedsTenant: a tenant's key without its tenant, or an officer's key with one.
        NoAuthority: an authority for a role that decides nothing about programmes.
    """
    if authority is not None and role not in OFFICIAL:
        raise NoAuthority(role=role.value)
    if (role is Role.TENANT) != (tenant_id is not None):
        raise KeyNeedsTenant(field="tenant_id")
    key = f"hub_{role}_{new_secret()}"
    person = " ".join(principal_name.split()).casefold()
    session.add(
        ApiKeyRow(
            id=new_id(),
            key_sha256=_digest(key),
            principal_id=derived_id("principal", tenant_id or "officer", person),
            principal_name=principal_name,
            role=role,
            tenant_id=tenant_id,
            authority=authority,
            created_at=at,
        )
    )
    session.flush()
    return key


def find_key(session: Session, key: str) -> ApiKeyRow | None:
    """What the hub knows of a key."""
    return session.scalars(select(ApiKeyRow).where(ApiKeyRow.key_sha256 == _digest(key))).one_or_none()


def revoke_key(session: Session, key_id: UUID, *, at: datetime) -> ApiKeyRow:
    """End a key; ending it again does nothing. Raises KeyNotFound."""
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise KeyNotFound(key=key_id)
    if row.revoked_at is None:
        row.revoked_at = at
        session.flush()
    return row


def list_keys(session: Session, *, before: UUID | None, limit: int) -> Sequence[ApiKeyRow]:
    """Keys, newest first, made before the one named; the keys themselves are not kept."""
    query = select(ApiKeyRow).order_by(ApiKeyRow.id.desc()).limit(limit)
    return session.scalars(query if before is None else query.where(ApiKeyRow.id < before)).all()


def authenticate(engine: Engine, authorization: str | None) -> Principal:
    """The principal of an Authorization header.

    Raises:
        MissingKey, MalformedKey, UnknownKey.
    """
    if authorization is None:
        raise MissingKey
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not _FORM.fullmatch(key):
        raise MalformedKey
    rows = _WHOSE.alone(engine, digest=_digest(key))
    if not rows:
        raise UnknownKey
    ((principal_id, name, role, tenant_id, authority),) = rows
    return Principal(principal_id, name, Role(role), tenant_id, authority)


def require(principal: Principal, *roles: Role) -> None:
    """Refuse a principal that is in none of these roles. Raises WrongRole."""
    if principal.role not in roles:
        raise WrongRole(role=principal.role.value, needed=" or ".join(role.value for role in roles))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
