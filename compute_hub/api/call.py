"""What every endpoint gets: who is calling, and one transaction to do it in, once per Idempotency-Key."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from compute_hub.api.tables import IdempotencyRow
from compute_hub.identity.keys import Principal, authenticate, require
from compute_hub.identity.roles import Role
from compute_hub.settings import Settings
from kernel.clock import utc_now
from kernel.database import transaction
from kernel.errors import Conflict


class Body(BaseModel):
    """A request body: unknown fields are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class View(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True)


Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=View)


class IdempotencyKeyReused(Conflict):
    """The same key came with another request."""

    sentence = "Idempotency-Key {key!r} was used for a different request. Send a new key for a new request."


class Call:
    """One authenticated request."""

    def __init__(
        self, engine: Engine, settings: Settings, principal: Principal, path: str, key: str | None
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.principal = principal
        self._path = path
        self._key = key

    def require(self, *roles: Role) -> Principal:
        """The caller, if it is in one of these roles. Raises WrongRole."""
        require(self.principal, *roles)
        return self.principal

    def read(self, action: Callable[[Session], Result]) -> Result:
        """Look at one consistent picture, in a transaction that can change nothing."""
        with transaction(self.engine) as session:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            return action(session)

    def act(self, action: Callable[[Session, datetime], Result]) -> Result:
        """Do something that may well be done twice, or whose answer must not be kept (it holds a secret)."""
        with transaction(self.engine) as session:
            return action(session, utc_now())

    def once(
        self, answer: type[Answer], body: BaseModel | None, action: Callable[[Session, datetime], Answer]
    ) -> Answer:
        """Do something that has an effect, in one transaction; repeat the first answer for a key seen before.

        Two requests with one key that race are put in a row by an advisory lock on the key, so the second sees what
        the first committed.

        Raises:
            IdempotencyKeyReused: the key's first request was another one.
        """
        asked = f"{self._path}\n{body.model_dump_json() if body else ''}"
        digest = hashlib.sha256(asked.encode()).hexdigest()
        with transaction(self.engine) as session:
            if self._key is None:
                return action(session, utc_now())
            given = self._first_answer(session, self._key)
            if given is None:
                made = action(session, utc_now())
                session.add(self._row(self._key, digest, made))
                return made
            if given.request_sha256 != digest:
                raise IdempotencyKeyReused(key=self._key)
            return answer.model_validate_json(given.answer["json"])

    def _first_answer(self, session: Session, key: str) -> IdempotencyRow | None:
        lock = int.from_bytes(hashlib.sha256(f"{self.principal.id}{key}".encode()).digest()[:8], signed=True)
        session.execute(select(text("pg_advisory_xact_lock(:lock)")).params(lock=lock))
        return session.get(IdempotencyRow, (self.principal.id, key))

    def _row(self, key: str, digest: str, made: View) -> IdempotencyRow:
        return IdempotencyRow(
            principal_id=self.principal.id,
            key=key,
            request_sha256=digest,
            answer={"json": made.model_dump_json()},
            answered_at=utc_now(),
        )


def _call(
    request: Request,
    authorization: Annotated[str | None, Header()] = None,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Call:
    engine: Engine = request.app.state.engine
    with transaction(engine) as session:
        principal = authenticate(session, authorization)
    return Call(
        engine, request.app.state.settings, principal, f"{request.method} {request.url.path}", idempotency_key
    )


Caller = Annotated[Call, Depends(_call)]
