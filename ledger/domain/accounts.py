"""Accounts: who may hold how much of what, and the arithmetic of their balances.

Invariant: an account counts one asset only, and a bounded account is never overdrawn, open holds included.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from kernel.errors import Invalid

CNY: Final = "CNY"
"""The asset whose unit is the micro-yuan."""

NAME_LENGTH_MAX: Final = 400
ASSET_LENGTH_MAX: Final = 200

_CARD_TIME = re.compile(r"card_ms:\S+")
_NAME = re.compile(r"[^/\s]+(/[^/\s]+)*")


class MalformedAsset(Invalid):
    """Text that names no asset."""

    sentence = "{field}: {value!r} is no asset; write 'CNY' or 'card_ms:' and an accelerator model."


class MalformedAccountName(Invalid):
    """Text that is not the path of an account."""

    sentence = (
        "{field}: {value!r} is no account name; write up to 400 characters, parts without spaces joined by '/'."
    )


class Bound(StrEnum):
    """Which side of an account may never exceed the other, pending amounts of the bounded side included."""

    CREDIT = "credit"
    """debits_posted + debits_pending ≤ credits_posted: it pays out only what it got."""
    DEBIT = "debit"
    """credits_posted + credits_pending ≤ debits_posted: it gives back only what it owes."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Account:
    """A named place for one asset; all four facts stay as they were opened."""

    id: UUID
    name: str
    asset: str
    bound: Bound

    def __post_init__(self) -> None:
        """Raise MalformedAsset or MalformedAccountName."""
        if self.asset != CNY and not _is_card_time(self.asset):
            raise MalformedAsset(field="asset", value=self.asset)
        named = len(self.name) <= NAME_LENGTH_MAX and self.name.isprintable() and _NAME.fullmatch(self.name)
        if not named:
            raise MalformedAccountName(field="name", value=self.name)


def _is_card_time(asset: str) -> bool:
    return len(asset) <= ASSET_LENGTH_MAX and asset.isprintable() and bool(_CARD_TIME.fullmatch(asset))


def card_time(model: str) -> str:
    """The asset that counts card-milliseconds of an accelerator model. Raises MalformedAsset."""
    asset = f"card_ms:{model}"
    if not _is_card_time(asset):
        raise MalformedAsset(field="model", value=model)
    return asset


@dataclass(frozen=True, slots=True)
class Balance:
    """The four totals of an account, in units of its asset, after `version` transfers."""

    account: Account
    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int
    version: int

    @property
    def net(self) -> int:
        """What was credited minus what was debited, holds left aside."""
        return self.credits_posted - self.debits_posted

    @property
    def available(self) -> int | None:
        """What the bounded side may still move; None for an account without bound."""
        match self.account.bound:
            case Bound.CREDIT:
                return self.credits_posted - self.debits_posted - self.debits_pending
            case Bound.DEBIT:
                return self.debits_posted - self.credits_posted - self.credits_pending
            case Bound.NONE:
                return None
