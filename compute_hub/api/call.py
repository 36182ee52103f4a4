"""What every endpoint gets: who is calling, in a role that may, and one transaction, once per Idempotency-Key."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Request
from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation
from pydantic import BaseModel
from sqlalchemy import Engine, Text, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from compute_hub.api.shapes import View
from compute_hub.api.tables import IdempotencyRow
from compute_hub.identity.duties import check_duty
from compute_hub.identity.keys import Principal, authenticate
from compute_hub.identity.remits import check_remit
from compute_hub.settings import Settings
from kernel.clock import utc_now
from kernel.database import glance, picture, transaction
from kernel.errors import Conflict, Invalid
from kernel.prepared import Prepared, add_rows, new_row

_TRIES: Final = 3
_FIRST_ANSWER: Final = Prepared(
    text("SELECT request_sha256, answer FROM first_answer(:lock, :principal, :key)").columns(
        request_sha256=Text, answer=Text
    )
)
_RACES: Final = (UniqueViolation, SerializationFailure, DeadlockDetected)

Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=View)


class IdempotencyKeyMissing(Invalid):
    """A request that has an effect came without the key under which it could be repeated."""

    sentence = (
        "Idempotency-Key: {request} has an effect and needs this header. Send a new value with a new request, and "
        "the same one when you repeat it."
    )


class IdempotencyKeyReused(Conflict):
    """The same key came with another request."""

    sentence = "Idempotency-Key {key!r} was used for a different request. Send a new key for a new request."


class ConcurrentChange(Conflict):
    """Somebody else did the same at the same moment, again and again."""

    sentence = "Somebody else changed the same thing at the same moment. Look at it, then ask again if need be."


class Call:
    """One authenticated request of a principal whose role has the duty."""

    def __init__(
        self, engine: Engine, settings: Settings, principal: Principal, path: str, key: str | None
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.principal = principal
        self._path = path
        self._key = key

    @property
    def by(self) -> str:
        """The caller as records name it."""
        return str(self.principal.id)

    @property
    def tenant_id(self) -> UUID:
        """The caller's enterprise, in operations that only tenants may do."""
        assert self.principal.tenant_id is not None  # noqa: S101 - the duties and the database see to it
        return self.principal.tenant_id

    @property
    def scope(self) -> UUID | None:
        """Whose things the caller sees: its own enterprise's, or everybody's."""
        return self.principal.tenant_id

    def read(self, action: Callable[[Session], Result]) -> Result:
        """Look at one consistent picture, in a transaction that can change nothing."""
        with picture(self.engine) as session:
            return action(session)

    def preview(self, action: Callable[[Session, datetime], Result]) -> Result:
        """Do something as if, with all its refusals, and undo it."""
        with Session(self.engine) as session:
            return action(session, utc_now())

    def act(self, action: Callable[[Session, datetime], Result]) -> Result:
        """Do something whose answer must not be kept, because it holds a secret; it needs no Idempotency-Key."""
        return self._transact(lambda session: action(session, utc_now()))

    def once(
        self, answer: type[Answer], body: BaseModel | None, action: Callable[[Session, datetime], Answer]
    ) -> Answer:
        """Do something that has an effect, in one transaction; repeat the first answer for a key seen before.

        Two requests with one key that race are put in a row by an advisory lock on the key, so the second sees what
        the first committed.

        Raises:
            IdempotencyKeyMissing: no key came with it.
            IdempotencyKeyReused: the key's first request was another one.
        """
        key = self._key
        if key is None:
            raise IdempotencyKeyMissing(request=self._path)
        asked = f"{self._path}\n{body.model_dump_json() if body else ''}"
        digest = hashlib.sha256(asked.encode()).hexdigest()

        def keyed(session: Session) -> Answer:
            given = self._first_answer(session, key)
            if given is None:
                made = action(session, utc_now())
                add_rows(session, [self._row(key, digest, made)])
                return made
            asked_first, answered = given
            if asked_first != digest:
                raise IdempotencyKeyReused(key=key)
            return answer.model_validate_json(answered)

        return self._transact(keyed)

    def _transact(self, action: Callable[[Session], Result]) -> Result:
        """Run a transaction, again when another one was in its way: it then sees what the other did."""
        for tries_left in reversed(range(_TRIES)):
            try:
                with transaction(self.engine) as session:
                    return action(session)
            except DBAPIError as error:
                if not isinstance(error.orig, _RACES):
                    raise
                if not tries_left:
                    raise ConcurrentChange from error
        raise AssertionError(_TRIES)

    def _first_answer(self, session: Session, key: str) -> tuple[str, str] | None:
        """What was asked first under this key, as a digest, and what was answered; nobody else is at it meanwhile."""
        lock = int.from_bytes(hashlib.sha256(f"{self.principal.id}{key}".encode()).digest()[:8], signed=True)
        rows = _FIRST_ANSWER(session, lock=lock, principal=self.principal.id, key=key)
        return (rows[0][0], rows[0][1]) if rows else None

    def _row(self, key: str, digest: str, made: View) -> IdempotencyRow:
        return new_row(
            IdempotencyRow,
            principal_id=self.principal.id,
            key=key,
            request_sha256=digest,
            answer={"json": made.model_dump_json()},
            answered_at=utc_now(),
        )


def _call(
    request: Request,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    idempotency_key: Annotated[
        str | None, Header(include_in_schema=False, min_length=1, max_length=200)
    ] = None,
) -> Call:
    engine: Engine = request.app.state.engine
    principal = authenticate(engine, authorization)
    operation = request.scope["route"].name
    check_duty(principal, operation)
    if principal.authority is not None:
        with glance(engine) as session:
            check_remit(session, principal, operation, request.path_params)
    path = f"{request.method} {request.scope['path']}"
    return Call(engine, request.app.state.settings, principal, path, idempotency_key)


Caller = Annotated[Call, Depends(_call)]
