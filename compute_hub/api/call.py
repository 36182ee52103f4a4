"""What every endpoint gets: who is calling, in a role that may, and one transaction, once per Idempotency-Key."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from compute_hub.api.idempotency import Keyed, answer_row, first_answer, keyed
from compute_hub.api.shapes import View
from compute_hub.identity.duties import check_duty
from compute_hub.identity.keys import Principal, authenticate
from compute_hub.identity.remits import check_remit
from compute_hub.settings import Settings
from kernel.clock import utc_now
from kernel.database import glance, picture, transaction
from kernel.errors import Conflict, HubError
from kernel.prepared import add_rows

if TYPE_CHECKING:
    from compute_hub.api.together import Together

_TRIES: Final = 3
_RACES: Final = (UniqueViolation, SerializationFailure, DeadlockDetected)

Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=View)


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
        asked = self.keyed(body)

        def answered(session: Session) -> Answer:
            given = first_answer(session, asked)
            if given is not None:
                return answer.model_validate_json(given)
            made = action(session, utc_now())
            add_rows(session, [answer_row(asked, made.model_dump_json())])
            return made

        return self._transact(answered)

    def keyed(self, body: BaseModel | None) -> Keyed:
        """The request under its key. Raises IdempotencyKeyMissing."""
        return keyed(self.principal.id, self._path, self._key, body)

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


def callers(engine: Engine, authorizations: Sequence[str | None]) -> list[Principal | Exception]:
    """The principal of each Authorization header, or why it has none; the same one is looked up once."""
    found: dict[str | None, Principal | Exception] = {}
    for authorization in authorizations:
        if authorization not in found:
            try:
                found[authorization] = authenticate(engine, authorization)
            except HubError as refusal:
                found[authorization] = refusal
    return [found[authorization] for authorization in authorizations]


async def _call(
    request: Request,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
    idempotency_key: Annotated[
        str | None, Header(include_in_schema=False, min_length=1, max_length=200)
    ] = None,
) -> Call:
    engine: Engine = request.app.state.engine
    authenticating: Together[str | None, Principal] = request.app.state.authenticating
    principal = await authenticating.ask(authorization)
    operation = request.scope["route"].name
    check_duty(principal, operation)
    if principal.authority is not None:
        await run_in_threadpool(_check_remit, engine, principal, operation, request.path_params)
    path = f"{request.method} {request.scope['path']}"
    return Call(engine, request.app.state.settings, principal, path, idempotency_key)


def _check_remit(engine: Engine, principal: Principal, operation: str, where: Mapping[str, Any]) -> None:
    with glance(engine) as session:
        check_remit(session, principal, operation, where)


Caller = Annotated[Call, Depends(_call)]
