"""Idempotency keys: one effect and one answer for a key, also when its repetitions race."""

import hashlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import Text, text
from sqlalchemy.orm import Session

from compute_hub.api.tables import IdempotencyRow
from kernel.clock import utc_now
from kernel.errors import Conflict, Invalid
from kernel.prepared import Prepared, new_row

_FIRST_ANSWER: Final = Prepared(
    text("SELECT request_sha256, answer FROM first_answer(:lock, :patient, :principal, :key)").columns(
        request_sha256=Text, answer=Text
    )
)


class IdempotencyKeyMissing(Invalid):
    """A request that has an effect came without the key under which it could be repeated."""

    sentence = (
        "Idempotency-Key: {request} has an effect and needs this header. Send a new value with a new request, and "
        "the same one when you repeat it."
    )


class IdempotencyKeyReused(Conflict):
    """The same key came with another request."""

    sentence = "Idempotency-Key {key!r} was used for a different request. Send a new key for a new request."


class KeyInUse(Exception):
    """Somebody is answering a request with this key at this moment."""


@dataclass(frozen=True)
class Keyed:
    """A request under its key; two are the same when their digests are."""

    principal_id: UUID
    key: str
    digest: str

    @property
    def lock(self) -> int:
        """Of the database, held by who answers it."""
        return int.from_bytes(
            hashlib.sha256(f"{self.principal_id}{self.key}".encode()).digest()[:8], signed=True
        )


def keyed(principal_id: UUID, path: str, key: str | None, body: BaseModel | None) -> Keyed:
    """A request under the key it came with. Raises IdempotencyKeyMissing."""
    if key is None:
        raise IdempotencyKeyMissing(request=path)
    asked = f"{path}\n{body.model_dump_json() if body else ''}"
    return Keyed(principal_id, key, hashlib.sha256(asked.encode()).hexdigest())


def first_answer(session: Session, asked: Keyed, *, patient: bool = True) -> str | None:
    """What was answered under this key, as JSON; nobody else is at it until the transaction ends.

    Args:
        session: of the transaction that answers.
        asked: the request.
        patient: wait for who is at it.

    Raises:
        IdempotencyKeyReused: the key's first request was another one.
        KeyInUse: somebody is at it, and nobody waits.
    """
    rows = _FIRST_ANSWER(session, lock=asked.lock, patient=patient, principal=asked.principal_id, key=asked.key)
    if not rows:
        return None
    ((digest, answer),) = rows
    if digest is None:
        raise KeyInUse
    if digest != asked.digest:
        raise IdempotencyKeyReused(key=asked.key)
    return str(answer)


def answer_row(asked: Keyed, answer: str) -> IdempotencyRow:
    """What is kept of an answer, which is JSON."""
    return new_row(
        IdempotencyRow,
        principal_id=asked.principal_id,
        key=asked.key,
        request_sha256=asked.digest,
        answer={"json": answer},
        answered_at=utc_now(),
    )
