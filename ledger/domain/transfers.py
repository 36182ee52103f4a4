"""Transfers as they are asked for; only the small functions here build one.

Each names the business movement it belongs to and what caused it, and its id is derived from that cause by the
caller, so that asking again is recognised. Invariant: a `Transfer` that exists is well formed.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from kernel.errors import Invalid

AMOUNT_MAX: Final = 2**53
"""In units of the asset; above it a JavaScript reader would lose digits."""
MOVEMENT_LENGTH_MAX: Final = 100
CAUSE_LENGTH_MAX: Final = 400


class AmountOutOfRange(Invalid):
    """An amount that no transfer can have."""

    sentence = "{field}: {value!r} is not a whole number from 1 to 9007199254740992."


class SameAccount(Invalid):
    """Debit and credit name the same account."""

    sentence = "{field}: account {account} cannot be both debited and credited."


class MalformedReference(Invalid):
    """A movement or cause that is empty or too long."""

    sentence = "{field}: {value!r} must have 1 to {length_max} printable characters."


class TimeWithoutZone(Invalid):
    """A time that does not say its zone."""

    sentence = "{field}: {value} has no time zone; pass an aware datetime."


class Kind(StrEnum):
    """What a transfer does with the amount."""

    POSTED = "posted"
    HOLD = "hold"
    EXTEND = "extend"
    CAPTURE = "capture"
    RELEASE = "release"
    EXPIRE = "expire"
    REVERSAL = "reversal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One asked-for transfer; fields that its kind takes from a hold or an original are None."""

    id: UUID
    kind: Kind
    movement: str
    cause: str
    debit: UUID | None = None
    credit: UUID | None = None
    amount: int | None = None
    hold_id: UUID | None = None
    reverses: UUID | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be posted, whatever the state of the ledger."""
        if self.amount is not None and (type(self.amount) is not int or not 1 <= self.amount <= AMOUNT_MAX):
            raise AmountOutOfRange(field="amount", value=self.amount)
        if self.debit is not None and self.debit == self.credit:
            raise SameAccount(field="credit", account=self.debit)
        for field, value, length_max in (
            ("movement", self.movement, MOVEMENT_LENGTH_MAX),
            ("cause", self.cause, CAUSE_LENGTH_MAX),
        ):
            if not 1 <= len(value) <= length_max or not value.isprintable():
                raise MalformedReference(field=field, value=value, length_max=length_max)
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise TimeWithoutZone(field="expires_at", value=self.expires_at)


def posted(transfer_id: UUID, *, debit: UUID, credit: UUID, amount: int, movement: str, cause: str) -> Transfer:
    """Move `amount` from the debited to the credited account at once."""
    return Transfer(
        id=transfer_id,
        kind=Kind.POSTED,
        debit=debit,
        credit=credit,
        amount=amount,
        movement=movement,
        cause=cause,
    )


def hold(
    transfer_id: UUID,
    *,
    debit: UUID,
    credit: UUID,
    amount: int,
    expires_at: datetime,
    movement: str,
    cause: str,
) -> Transfer:
    """Set `amount` aside for later captures, which must come before `expires_at`."""
    return Transfer(
        id=transfer_id,
        kind=Kind.HOLD,
        debit=debit,
        credit=credit,
        amount=amount,
        expires_at=expires_at,
        movement=movement,
        cause=cause,
    )


def extend(
    transfer_id: UUID,
    *,
    hold_id: UUID,
    amount: int,
    movement: str,
    cause: str,
    expires_at: datetime | None = None,
) -> Transfer:
    """Set `amount` more aside under an open hold; a later `expires_at` also moves its end."""
    return Transfer(
        id=transfer_id,
        kind=Kind.EXTEND,
        hold_id=hold_id,
        amount=amount,
        expires_at=expires_at,
        movement=movement,
        cause=cause,
    )


def capture(transfer_id: UUID, *, hold_id: UUID, amount: int, movement: str, cause: str) -> Transfer:
    """Post a part of an open hold, between the hold's own accounts."""
    return Transfer(
        id=transfer_id, kind=Kind.CAPTURE, hold_id=hold_id, amount=amount, movement=movement, cause=cause
    )


def release(transfer_id: UUID, *, hold_id: UUID, movement: str, cause: str) -> Transfer:
    """Resolve an open hold and give back whatever of it was not captured, be it nothing."""
    return Transfer(id=transfer_id, kind=Kind.RELEASE, hold_id=hold_id, movement=movement, cause=cause)


def expire(transfer_id: UUID, *, hold_id: UUID, movement: str, cause: str) -> Transfer:
    """Resolve an open hold whose end has come and give back the rest."""
    return Transfer(id=transfer_id, kind=Kind.EXPIRE, hold_id=hold_id, movement=movement, cause=cause)


def reversal(transfer_id: UUID, *, reverses: UUID, movement: str, cause: str) -> Transfer:
    """Undo a posted transfer or a capture, whole and once, by posting it the other way round."""
    return Transfer(id=transfer_id, kind=Kind.REVERSAL, reverses=reverses, movement=movement, cause=cause)
