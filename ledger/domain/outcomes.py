"""What became of an asked-for transfer: posted, replayed, or refused with one precise code.

Refusals are checked in the order of `Status`: syntax, idempotency, existence, state, balance. Invariant: a
refused transfer wrote nothing.
"""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from ledger.domain.transfers import Transfer


class Status(StrEnum):
    """The result of one transfer; everything after `REPLAYED` is a refusal."""

    POSTED = "posted"
    REPLAYED = "replayed"
    # syntax
    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    SAME_ACCOUNT = "same_account"
    # idempotency
    ID_REUSED_WITH_OTHER_CONTENT = "id_reused_with_other_content"
    # existence
    UNKNOWN_HOLD = "unknown_hold"
    UNKNOWN_TRANSFER = "unknown_transfer"
    UNKNOWN_ACCOUNT = "unknown_account"
    ASSET_MISMATCH = "asset_mismatch"
    # state
    HOLD_RESOLVED = "hold_resolved"
    HOLD_EXPIRED = "hold_expired"
    HOLD_NOT_YET_EXPIRED = "hold_not_yet_expired"
    NOT_REVERSIBLE = "not_reversible"
    ALREADY_REVERSED = "already_reversed"
    # balance
    HOLD_EXHAUSTED = "hold_exhausted"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_OUT_OF_RANGE = "balance_out_of_range"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of `transfer`.

    `amount` is what was moved when it was first posted (of a release, expiry or reversal, the ledger's figure).
    Of a refusal, `account_id` is the account it rests on and `available` what could have been moved.
    """

    transfer: Transfer
    status: Status
    amount: int | None = None
    account_id: UUID | None = None
    available: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether the transfer is in the ledger, be it now or since an earlier time."""
        return self.status in {Status.POSTED, Status.REPLAYED}
