"""Rate cards: dated, per model, public or from an agreement with one tenant, never changed for the past.

Cards are only ever added, with who added them, when and why; so the list of cards is the history of their changes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.orm import Session

from compute_hub.billing.domain.days import Span
from compute_hub.billing.domain.rate_cards import RateCard, RateCardRefused, Traits
from compute_hub.billing.domain.rating import dearest_micros
from compute_hub.billing.domain.timelines import (
    NOTICE,
    Dated,
    Neighbour,
    RateExists,
    RateGap,
    RateInThePast,
    RateOverlaps,
    RateWithoutNotice,
    Tariff,
    misfit,
)
from compute_hub.billing.tables import RateRow
from kernel.bulk import among
from kernel.clock import from_unix_ms, unix_ms
from kernel.errors import Invalid
from kernel.ids import derived_id
from kernel.prepared import Prepared
from scheduler.tables import JobRow

_DATED: Final[dict[tuple[UUID, UUID, datetime], Dated]] = {}
_DATED_MAX: Final = 10_000


class StoredCard(NamedTuple):
    """What of a stored card decides about prices."""

    id: UUID
    tenant_id: UUID | None
    model: str
    terms: dict[str, Any]
    effective_from: datetime
    effective_until: datetime | None
    changes_running: bool
    set_by: UUID
    set_at: datetime


_CARDS: Final = Prepared(
    select(*(getattr(RateRow, name) for name in StoredCard._fields))
    .where(
        among(RateRow.model, bindparam("models")),
        or_(RateRow.tenant_id.is_(None), among(RateRow.tenant_id, bindparam("tenants"))),
    )
    .order_by(RateRow.effective_from, RateRow.id)
)

_LOCK: Final = 0x7261_7465
"""Cards are set one at a time, so that two which overlap cannot pass each other."""


class NoRate(Invalid):
    """Nobody has set a price for that model at that time."""

    sentence = "There is no price for {model!r} at {at}; the operator must set one before jobs can run on it."


@dataclass(frozen=True)
class Setting:
    """A card that is to hold for a model from an instant on."""

    model: str
    card: RateCard
    effective_from: datetime
    effective_until: datetime | None = None
    changes_running: bool = False
    tenant_id: UUID | None = None
    agreement: str | None = None
    reason: str = ""


def set_card(session: Session, setting: Setting, *, by: UUID, at: datetime) -> RateRow:
    """Add a card.

    Raises:
        RateInThePast, RateWithoutNotice, RateExists, RateOverlaps, RateGap.
        RateCardRefused: an end that is no later than the beginning, or an agreement without a tenant.
    """
    _check_alone(setting, at)
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    _check_beside(session, setting)
    row = RateRow(
        id=derived_id("rate", setting.tenant_id or "", setting.model, setting.effective_from.isoformat()),
        tenant_id=setting.tenant_id,
        agreement=setting.agreement,
        model=setting.model,
        micros_per_card_hour=setting.card.base_micros,
        terms=setting.card.to_json(),
        effective_from=setting.effective_from,
        effective_until=setting.effective_until,
        changes_running=setting.changes_running,
        reason=setting.reason,
        set_by=by,
        set_at=at,
    )
    session.add(row)
    session.flush()
    return row


def set_rate(
    session: Session, model: str, micros_per_card_hour: int, *, effective_from: datetime, by: UUID, at: datetime
) -> RateRow:
    """Add a card that knows nothing but a price. Refuses what `set_card` refuses."""
    card = RateCard(micros_per_card_hour)
    return set_card(session, Setting(model, card, effective_from), by=by, at=at)


def tariff_of(session: Session, tenant_id: UUID, model: str) -> Tariff:
    """All cards of a model that may hold for a tenant, past and coming ones too."""
    return tariffs_of(session, {(tenant_id, model)})[tenant_id, model]


def tariffs_of(session: Session, wanted: Collection[tuple[UUID, str]]) -> dict[tuple[UUID, str], Tariff]:
    """Per tenant and model all cards that may hold, past and coming ones too."""
    tenants, models = {tenant for tenant, _ in wanted}, {model for _, model in wanted}
    cards: dict[tuple[UUID | None, str], list[Dated]] = {}
    for row in map(StoredCard._make, _CARDS(session, models=list(models), tenants=list(tenants))):
        cards.setdefault((row.tenant_id, row.model), []).append(dated(row))
    return {
        (tenant, model): Tariff(tuple(cards.get((None, model), ())), tuple(cards.get((tenant, model), ())))
        for tenant, model in wanted
    }


def dated(row: RateRow | StoredCard) -> Dated:
    """A stored card in the words of the rules; read once per process, because a card never changes.

    One that was set and taken back with its transaction may be set again under the same id, by somebody or later.
    """
    key = (row.id, row.set_by, row.set_at)
    known = _DATED.get(key)
    if known is None:
        if len(_DATED) >= _DATED_MAX:
            _DATED.clear()
        until = None if row.effective_until is None else unix_ms(row.effective_until)
        card = RateCard.from_json(row.terms)
        known = Dated(row.id, card, unix_ms(row.effective_from), until, row.changes_running)
        _DATED[key] = known
    return known


def traits_of(job: JobRow) -> Traits:
    """What of a job decides about its price."""
    return Traits(job.kind, job.priority, job.slots_milli)


def dearest_in(tariff: Tariff, job: JobRow, model: str, admitted_at: datetime, ahead: Span) -> int:
    """The most a card-hour of a model may cost a job within some time ahead. Raises NoRate."""
    price = dearest_micros(tariff, traits_of(job), unix_ms(admitted_at), ahead)
    if price is None:
        raise NoRate(model=model, at=admitted_at.isoformat())
    return price


def dearest_model(session: Session, job: JobRow, at: datetime, ahead: Span) -> tuple[int, str]:
    """The highest price among the models a job accepts, for an answer before the placement is known, and its model."""
    tariffs = tariffs_of(session, {(job.tenant_id, model) for model in job.models})
    return max(
        (dearest_in(tariffs[job.tenant_id, model], job, model, at, ahead), model) for model in job.models
    )


def _check_alone(setting: Setting, at: datetime) -> None:
    begins, ends = setting.effective_from, setting.effective_until
    if begins < at:
        raise RateInThePast(model=setting.model, effective_from=begins.isoformat())
    if setting.changes_running and begins < at + NOTICE:
        raise RateWithoutNotice(hours=NOTICE.total_seconds() // 3600)
    if ends is not None and ends <= begins:
        raise RateCardRefused(field="effective_until", reason="a rate ends after it begins")
    if (setting.tenant_id is None) != (setting.agreement is None):
        raise RateCardRefused(
            field="agreement", reason="a tenant's own rate names the agreement, a public one none"
        )


def _check_beside(session: Session, setting: Setting) -> None:
    same = RateRow.tenant_id.is_not_distinct_from(setting.tenant_id)
    periods: list[tuple[datetime, datetime | None]] = [
        (begins, ends)
        for begins, ends in session.execute(
            select(RateRow.effective_from, RateRow.effective_until).where(same, RateRow.model == setting.model)
        )
    ]
    if any(begins == setting.effective_from for begins, _ in periods):
        raise RateExists(model=setting.model, effective_from=setting.effective_from.isoformat())
    new = _neighbour(setting.effective_from, setting.effective_until)
    found = misfit(new, [_neighbour(*period) for period in periods], gaps_allowed=setting.tenant_id is not None)
    if found is None:
        return
    kind, other = found
    field = "effective_from" if other.from_ms < new.from_ms else "effective_until"
    if kind == "overlap":
        raise RateOverlaps(
            field=field, model=setting.model, other_from=_text(other.from_ms), other_until=_text(other.until_ms)
        )
    gap = (other.until_ms, new.from_ms) if field == "effective_from" else (new.until_ms, other.from_ms)
    raise RateGap(field=field, model=setting.model, gap_from=_text(gap[0]), gap_until=_text(gap[1]))


def _neighbour(begins: datetime, ends: datetime | None) -> Neighbour:
    return Neighbour(unix_ms(begins), None if ends is None else unix_ms(ends))


def _text(at_ms: int | None) -> str:
    return "further notice" if at_ms is None else from_unix_ms(at_ms).isoformat()
