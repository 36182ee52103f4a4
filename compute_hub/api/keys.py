"""API keys: made, listed and revoked by the operator; a key itself is shown once."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import After, Body, Id, Limit, Page, Text, View, page_of
from compute_hub.identity.keys import find_key, issue_key, list_keys, revoke_key
from compute_hub.identity.roles import Role
from compute_hub.identity.tables import ApiKeyRow
from vouchers.enterprises import enterprise_facts

router = APIRouter(prefix="/v1/api-keys", tags=["keys"])

Authority = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class KeyRequest(Body):
    """Whom a key is for; a tenant's key names its enterprise. The same person keeps one identity under all keys.

    The key of an officer, first reviewer or approver may name the authority whose programmes it decides about; without
    one it is good for all programmes.
    """

    role: Annotated[Role, Field(strict=False)]
    person: Text
    tenant_id: Id | None = None
    authority: Authority | None = None


class KeyView(View):
    """What the hub knows of a key."""

    id: UUID
    role: Role
    person: str
    principal_id: UUID
    tenant_id: UUID | None
    authority: str | None
    created_at: datetime
    revoked_at: datetime | None


class NewKeyView(KeyView):
    """A new key; it is shown this once."""

    key: str


@router.post("", status_code=201, name="make_key")
def make(body: KeyRequest, call: Caller) -> NewKeyView:
    """Give a person a key for one role. Repeating the request makes another key."""

    def action(session: Session, at: datetime) -> NewKeyView:
        if body.tenant_id is not None:
            enterprise_facts(session, body.tenant_id)
        key = issue_key(
            session, body.role, body.person, at=at, tenant_id=body.tenant_id, authority=body.authority
        )
        row = find_key(session, key)
        assert row is not None  # noqa: S101 - it was made a line above
        return NewKeyView(key=key, **_fields(row).__dict__)

    return call.act(action)


@router.get("", name="list_keys")
def keys(call: Caller, limit: Limit = 100, after: After = None) -> Page[KeyView]:
    """Keys, newest first, without the keys themselves."""

    def action(session: Session) -> Page[KeyView]:
        rows = list_keys(session, before=after, limit=limit)
        return page_of([_fields(row) for row in rows], limit, rows[-1].id if rows else "")

    return call.read(action)


@router.post("/{key_id}:revoke", name="revoke_key")
def revoke(key_id: UUID, call: Caller) -> KeyView:
    """End a key at once."""
    return call.once(KeyView, None, lambda session, at: _fields(revoke_key(session, key_id, at=at)))


def _fields(row: ApiKeyRow) -> KeyView:
    return KeyView(
        id=row.id,
        role=Role(row.role),
        person=row.principal_name,
        principal_id=row.principal_id,
        tenant_id=row.tenant_id,
        authority=row.authority,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
