"""Which rate card holds for a job at which instant.

A job keeps the cards in force at its first admission, so that nobody's running job becomes dearer over night, unless
a card says that it changes the price of running jobs too; such a card is announced long enough before that every hold
which reaches beyond its beginning already counts with it. A tenant's own card, from an agreement, goes before the
public one while it lasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from compute_hub.billing.domain.days import Span
from compute_hub.billing.domain.rate_cards import RateCard
from kernel.errors import Conflict

NOTICE: Final = timedelta(days=1)
"""How long before its beginning a card that changes running jobs' prices is announced; longer than any hold."""


class RateInThePast(Conflict):
    """A price may not change what was already used."""

    sentence = "effective_from: a rate for {model!r} may not start at {effective_from}, which has passed."


class RateWithoutNotice(Conflict):
    """A price for jobs that already run must be announced."""

    sentence = (
        "effective_from: a rate that changes running jobs must begin at least {hours} hours after it is set."
    )


class RateExists(Conflict):
    """A model has one price from an instant on."""

    sentence = "There is already a price for {model!r} from {effective_from} on; name another instant."


class RateOverlaps(Conflict):
    """Two cards would hold at once."""

    sentence = "{field}: it overlaps the rate for {model!r} that holds from {other_from} until {other_until}."


class RateGap(Conflict):
    """Between two cards none would hold."""

    sentence = "{field}: between {gap_from} and {gap_until} no rate for {model!r} would hold."


@dataclass(frozen=True, slots=True)
class Dated:
    """A card and when it holds: until its own end, or until the next one begins."""

    rate_id: UUID
    card: RateCard
    from_ms: int
    until_ms: int | None = None
    changes_running: bool = False

    def holds_at(self, at_ms: int) -> bool:
        """Whether an instant lies between its beginning and its own end."""
        return self.from_ms <= at_ms and (self.until_ms is None or at_ms < self.until_ms)


@dataclass(frozen=True, slots=True)
class Tariff:
    """All cards of one model that may hold for one tenant, each list by its beginning."""

    public: tuple[Dated, ...]
    own: tuple[Dated, ...] = ()

    def card_at(self, at_ms: int) -> Dated | None:
        """The card for a job admitted at an instant: the tenant's own, or else the public one."""
        for cards in (self.own, self.public):
            begun = [dated for dated in cards if dated.from_ms <= at_ms]
            if begun and begun[-1].holds_at(at_ms):
                return begun[-1]
        return None

    def for_job(self, admitted_ms: int, span: Span) -> list[tuple[Span, Dated]]:
        """The stretches of some usage of a job and the card of each; empty where no card held at its admission."""
        changes = sorted(
            {
                dated.from_ms
                for dated in (*self.public, *self.own)
                if dated.changes_running and dated.from_ms > admitted_ms
            }
        )
        cuts = [cut for cut in changes if span.start_ms < cut < span.end_ms]
        stretches: list[tuple[Span, Dated]] = []
        for start, end in zip((span.start_ms, *cuts), (*cuts, span.end_ms), strict=True):
            settled = max((cut for cut in changes if cut <= start), default=admitted_ms)
            dated = self.card_at(settled)
            if dated is None:
                return []
            stretches.append((Span(start, end), dated))
        return stretches


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The period of a card that is already there."""

    from_ms: int
    until_ms: int | None


def misfit(new: Neighbour, others: Sequence[Neighbour], *, gaps_allowed: bool) -> tuple[str, Neighbour] | None:
    """What keeps a new card from standing beside others of its model: `overlap` or `gap`, and with which.

    A card without an end lasts until the next one begins, so a new one may begin during it and takes over. A card with
    an end may neither be entered by another nor, where `gaps_allowed` is false, be followed by nothing.
    """
    before = max(
        (one for one in others if one.from_ms < new.from_ms), key=lambda one: one.from_ms, default=None
    )
    after = min((one for one in others if one.from_ms > new.from_ms), key=lambda one: one.from_ms, default=None)
    if before is not None and before.until_ms is not None and before.until_ms > new.from_ms:
        return "overlap", before
    if after is not None and new.until_ms is not None and new.until_ms > after.from_ms:
        return "overlap", after
    if gaps_allowed:
        return None
    if before is not None and before.until_ms is not None and before.until_ms < new.from_ms:
        return "gap", before
    if after is not None and new.until_ms is not None and new.until_ms < after.from_ms:
        return "gap", after
    return None
