"""Amounts at the boundary: the unit stands in the field's name, `…_cny` in yuan, `…_card_ms` in card-milliseconds.

A programme counts one asset, so of the two fields of an amount exactly one is set.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from kernel.errors import Invalid
from kernel.money import format_yuan, parse_yuan
from vouchers.domain.terms import CNY
from vouchers.errors import ProgrammeNotFound
from vouchers.tables import Programme


class WrongUnit(Invalid):
    """An amount in a unit that the programme does not count, in two units, or in none."""

    sentence = "{field}: {programme} counts {asset}; give the amount as {wanted}, and only so."


def in_units(asset: str, **amounts: int | None) -> dict[str, str | int | None]:
    """Each amount as its two fields, of which the asset's one is set."""
    fields: dict[str, str | int | None] = {}
    for name, amount in amounts.items():
        is_money = amount is not None and asset == CNY
        fields[f"{name}_cny"] = format_yuan(amount) if is_money and amount is not None else None
        fields[f"{name}_card_ms"] = None if is_money else amount
    return fields


def asset_of(session: Session, programme: str) -> str:
    """What a programme counts. Raises ProgrammeNotFound."""
    asset = session.scalar(select(Programme.asset).where(Programme.slug == programme))
    if asset is None:
        raise ProgrammeNotFound(programme=programme, day="any day")
    return asset


def amount_in(asset: str, programme: str, field: str, cny: str | None, card_ms: int | None) -> int:
    """The amount that one of two fields gives, in the asset's smallest unit. Raises WrongUnit, MalformedAmount."""
    given, other, unit = (cny, card_ms, "cny") if asset == CNY else (card_ms, cny, "card_ms")
    wanted = f"{field}_{unit}"
    if given is None or other is not None:
        raise WrongUnit(field=wanted, programme=programme, asset=asset, wanted=wanted)
    return parse_yuan(given, field=wanted) if isinstance(given, str) else given


def optional_amount_in(
    asset: str, programme: str, field: str, cny: str | None, card_ms: int | None
) -> int | None:
    """As `amount_in`, but neither field may be given."""
    return None if cny is None and card_ms is None else amount_in(asset, programme, field, cny, card_ms)
