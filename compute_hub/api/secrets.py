"""Secrets of a tenant's jobs: stored and replaced, listed by name, forgotten; never shown."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from compute_hub.api.call import Caller
from compute_hub.api.shapes import Body, Page, View
from scheduler.secrets import delete_secret, list_secrets, put_secret
from scheduler.tables import SecretRow

router = APIRouter(prefix="/v1", tags=["secrets"])

BYTES_MAX = 32 * 1024
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$", description="The secret's name.")]


class SecretValue(Body):
    """What a job is to find in the file `/run/secrets/NAME`."""

    value: Annotated[SecretStr, Field(strict=False, min_length=1)]

    @field_validator("value")
    @classmethod
    def _bounded(cls, value: SecretStr) -> SecretStr:
        size = len(value.get_secret_value().encode(errors="replace"))
        if size > BYTES_MAX:
            raise PydanticCustomError(
                "secret_too_large",
                "has {size} bytes; at most {most} are allowed",
                {"size": size, "most": BYTES_MAX},
            )
        return value


class SecretView(View):
    """That there is a secret; its value is given to jobs only."""

    name: str
    size_bytes: int
    created_at: datetime
    updated_at: datetime


@router.put("/secrets/{name}", name="put_secret")
def put(name: Name, body: SecretValue, call: Caller, request: Request) -> SecretView:
    """Store a secret or replace it. Jobs that start from now on and name it get the new value."""

    # Not kept for repetition: the digest of a request would let a short secret be guessed.
    def action(session: Session, at: datetime) -> SecretView:
        value = body.value.get_secret_value()
        return _view(put_secret(session, request.app.state.vault, call.tenant_id, name, value, at))

    return call.act(action)


@router.get("/secrets", name="list_secrets")
def secrets(call: Caller) -> Page[SecretView]:
    """The names of your secrets."""
    return call.read(
        lambda session: Page(items=[_view(row) for row in list_secrets(session, call.tenant_id)], next=None)
    )


@router.delete("/secrets/{name}", name="delete_secret")
def delete(name: Name, call: Caller) -> SecretView:
    """Forget a secret. It is refused while a job that has not ended names it."""
    return call.act(lambda session, _at: _view(delete_secret(session, call.tenant_id, name)))


def _view(row: SecretRow) -> SecretView:
    return SecretView(
        name=row.name, size_bytes=row.size_bytes, created_at=row.created_at, updated_at=row.updated_at
    )
