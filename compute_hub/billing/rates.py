"""The price of card time: dated, per model, never changed for the past."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.billing.tables import RateRow
from kernel.errors import Conflict, Invalid
from kernel.ids import derived_id


class NoRate(Invalid):
    """Nobody has set a price for that model at that time."""

    sentence = "There is no price for {model!r} at {at}; the operator must set one before jobs can run on it."


class RateInThePast(Conflict):
    """A price may not change what was already used."""

    sentence = "effective_from: a rate for {model!r} may not start at {effective_from}, which has passed."


def set_rate(
    session: Session, model: str, micros_per_card_hour: int, *, effective_from: datetime, by: UUID, at: datetime
) -> RateRow:
    """Add a price that holds from an instant on. Raises RateInThePast."""
    if effective_from < at:
        raise RateInThePast(model=model, effective_from=effective_from.isoformat())
    rate = RateRow(
        id=derived_id("rate", model, effective_from.isoformat()),
        model=model,
        micros_per_card_hour=micros_per_card_hour,
        effective_from=effective_from,
        set_by=by,
        set_at=at,
    )
    session.add(rate)
    session.flush()
    return rate


def rate_at(session: Session, model: str, at: datetime) -> RateRow:
    """The price in force at an instant. Raises NoRate."""
    rate = session.scalars(
        select(RateRow)
        .where(RateRow.model == model, RateRow.effective_from <= at)
        .order_by(RateRow.effective_from.desc())
        .limit(1)
    ).one_or_none()
    if rate is None:
        raise NoRate(model=model, at=at.isoformat())
    return rate


def dearest_rate(session: Session, models: Sequence[str], at: datetime) -> RateRow:
    """The highest price among the models a job accepts, for an answer before the placement is known."""
    return max(
        (rate_at(session, model, at) for model in models), key=lambda rate: (rate.micros_per_card_hour, rate.id)
    )
