"""Making and checking API keys: `hub_<role>_<48 hexadecimal digits>`."""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.identity.roles import Role
from compute_hub.identity.tables import ApiKeyRow
from kernel.errors import Forbidden, Unauthenticated
from kernel.ids import new_id, new_secret

_FORM: Final = re.compile(r"hub_[a-z_]+_[0-9a-f]{48}")


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


@dataclass(frozen=True)
class Principal:
    """Who is asking: a person or program in one role, of one tenant if the role is tenant."""

    id: UUID
    name: str
    role: Role
    tenant_id: UUID | None


def issue_key(
    session: Session,
    role: Role,
    principal_name: str,
    *,
    at: datetime,
    principal_id: UUID | None = None,
    tenant_id: UUID | None = None,
) -> str:
    """Make a key and return it; it is shown this once and cannot be recovered."""
    key = f"hub_{role}_{new_secret()}"
    session.add(
        ApiKeyRow(
            id=new_id(),
            key_sha256=_digest(key),
            principal_id=principal_id or new_id(),
            principal_name=principal_name,
            role=role,
            tenant_id=tenant_id,
            created_at=at,
        )
    )
    session.flush()
    return key


def authenticate(session: Session, authorization: str | None) -> Principal:
    """The principal of an Authorization header.

    Raises:
        MissingKey, MalformedKey, UnknownKey.
    """
    if authorization is None:
        raise MissingKey
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not _FORM.fullmatch(key):
        raise MalformedKey
    row = session.scalars(
        select(ApiKeyRow).where(ApiKeyRow.key_sha256 == _digest(key), ApiKeyRow.revoked_at.is_(None))
    ).one_or_none()
    if row is None:
        raise UnknownKey
    return Principal(row.principal_id, row.principal_name, Role(row.role), row.tenant_id)


def require(principal: Principal, *roles: Role) -> None:
    """Refuse a principal that is in none of these roles. Raises WrongRole."""
    if principal.role not in roles:
        raise WrongRole(role=principal.role.value, needed=" or ".join(role.value for role in roles))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
