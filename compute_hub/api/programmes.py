"""Programmes: their published rules, their rounds, and where their money is."""

from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path
from sqlalchemy import select
from sqlalchemy.orm import Session

from compute_hub.api.amounts import amount_in, asset_of, in_units
from compute_hub.api.call import Caller
from compute_hub.api.shapes import Body, CardMs, Instant, Limit, Page, SlugPath, Text, View, Yuan, page_of
from compute_hub.identity.remits import check_publication
from kernel.errors import NotFound
from vouchers.cases import open_round
from vouchers.programmes import appropriate_budget, publish_programme, version_in_force
from vouchers.reading import list_programmes as programme_slugs
from vouchers.reading import programme_totals
from vouchers.settlement import advance_reserve
from vouchers.tables import ProgrammeVersion, Round

router = APIRouter(prefix="/v1/programmes", tags=["programmes"])


class VersionNotFound(NotFound):
    """The programme has no such version."""

    sentence = "{programme} has no version {version}. The list of its versions shows them."


class ProgrammePublication(Body):
    """A programme version as its rules' document; examples lie in examples/programmes."""

    document: dict[str, Any]


class ProgrammeView(View):
    """Where a programme's money is, over all cycles."""

    programme: str
    asset: str
    budget_cny: str | None
    budget_card_ms: int | None
    pool_cny: str | None
    pool_card_ms: int | None
    issued_cny: str | None
    issued_card_ms: int | None
    remaining_cny: str | None
    remaining_card_ms: int | None
    held_cny: str | None
    held_card_ms: int | None
    captured_cny: str | None
    captured_card_ms: int | None
    returned_cny: str | None
    returned_card_ms: int | None
    claimed_cny: str | None
    claimed_card_ms: int | None
    disbursed_cny: str | None
    disbursed_card_ms: int | None


class VersionSummary(View):
    """One published version of a programme's rules."""

    id: UUID
    programme: str
    version: int
    name: str
    effective_from: date
    effective_until: date | None
    digest_sha256: str
    published_at: datetime


class VersionView(VersionSummary):
    """A version with its whole document, as it was published."""

    document: dict[str, Any]


class Appropriation(Body):
    """Which cycle's budget to put into the pool: the one this instant lies in; now if left out."""

    in_cycle_of: Instant | None = None


class ReserveAdvance(Body):
    """Money advanced to the centre; a reference is booked once."""

    amount_cny: Yuan | None = None
    amount_card_ms: CardMs | None = None
    reference: Text


class RoundOpening(Body):
    """A call for applications."""

    name: Text
    opens_at: Instant
    cut_off_at: Instant


class RoundView(View):
    """A call for applications with its cut-off."""

    id: UUID
    programme: str
    name: str
    opens_at: datetime
    cut_off_at: datetime


@router.post("", status_code=201, name="publish_programme")
def publish(body: ProgrammePublication, call: Caller) -> ProgrammeView:
    """Publish a version of a programme's rules and appropriate the budget of the cycle it begins in."""

    def action(session: Session, at: datetime) -> ProgrammeView:
        check_publication(session, call.principal, body.document)
        version_id = publish_programme(session, body.document, by=call.by, at=at)
        return _programme(session, session.get_one(ProgrammeVersion, version_id).slug)

    return call.once(ProgrammeView, body, action)


@router.get("", name="list_programmes")
def programmes(call: Caller, limit: Limit = 50, after: str = "") -> Page[ProgrammeView]:
    """All programmes and where their money is."""

    def action(session: Session) -> Page[ProgrammeView]:
        slugs = [slug for slug in programme_slugs(session) if slug > after][:limit]
        return page_of([_programme(session, slug) for slug in slugs], limit, slugs[-1] if slugs else "")

    return call.read(action)


@router.get("/{programme}", name="show_programme")
def programme(programme: SlugPath, call: Caller) -> ProgrammeView:
    """One programme and where its money is."""
    return call.read(lambda session: _programme(session, programme))


@router.get("/{programme}/versions", name="list_programme_versions")
def versions(programme: SlugPath, call: Caller, limit: Limit = 50, after: int = 0) -> Page[VersionSummary]:
    """A programme's versions, oldest first."""

    def action(session: Session) -> Page[VersionSummary]:
        asset_of(session, programme)
        rows = session.scalars(
            select(ProgrammeVersion)
            .where(ProgrammeVersion.slug == programme, ProgrammeVersion.version > min(max(after, 0), 10_000))
            .order_by(ProgrammeVersion.version)
            .limit(limit)
        ).all()
        items = [VersionSummary.model_validate(_version(row)) for row in rows]
        return page_of(items, limit, items[-1].version if items else 0)

    return call.read(action)


@router.get("/{programme}/versions/{version}", name="show_programme_version")
def version(programme: SlugPath, version: Annotated[int, Path(ge=1, le=10_000)], call: Caller) -> VersionView:
    """One version's rules, as they were published."""

    def action(session: Session) -> VersionView:
        row = session.scalars(
            select(ProgrammeVersion).where(
                ProgrammeVersion.slug == programme, ProgrammeVersion.version == version
            )
        ).one_or_none()
        if row is None:
            raise VersionNotFound(programme=programme, version=version)
        return VersionView.model_validate({**_version(row), "document": row.document})

    return call.read(action)


@router.post("/{programme}:appropriate", status_code=201, name="appropriate_budget")
def appropriate(programme: SlugPath, body: Appropriation, call: Caller) -> ProgrammeView:
    """Put the budget of a cycle into the programme's pool; what is there already counts."""

    def action(session: Session, at: datetime) -> ProgrammeView:
        instant = body.in_cycle_of or at
        version_id, _ = version_in_force(session, programme, instant)
        appropriate_budget(session, version_id, instant, by=call.by, at=at)
        return _programme(session, programme)

    return call.once(ProgrammeView, body, action)


@router.post("/{programme}:advance-reserve", status_code=201, name="advance_reserve")
def advance(programme: SlugPath, body: ReserveAdvance, call: Caller) -> ProgrammeView:
    """Advance money to the centre, up to the reserve fund the programme provides for; claims use it up first."""

    def action(session: Session, at: datetime) -> ProgrammeView:
        asset = asset_of(session, programme)
        amount = amount_in(asset, programme, "amount", body.amount_cny, body.amount_card_ms)
        advance_reserve(session, programme, amount, reference=body.reference, by=call.by, at=at)
        return _programme(session, programme)

    return call.once(ProgrammeView, body, action)


@router.post("/{programme}/rounds", status_code=201, name="open_round")
def call_for_applications(programme: SlugPath, body: RoundOpening, call: Caller) -> RoundView:
    """Call for applications until a cut-off."""

    def action(session: Session, _at: datetime) -> RoundView:
        asset_of(session, programme)
        round_id = open_round(
            session, programme, body.name, opens_at=body.opens_at, cut_off_at=body.cut_off_at, by=call.by
        )
        return _round(session.get_one(Round, round_id))

    return call.once(RoundView, body, action)


@router.get("/{programme}/rounds", name="list_rounds")
def rounds(programme: SlugPath, call: Caller) -> Page[RoundView]:
    """The newest hundred rounds of a programme, newest first."""

    def action(session: Session) -> Page[RoundView]:
        asset_of(session, programme)
        rows = session.scalars(
            select(Round).where(Round.slug == programme).order_by(Round.opens_at.desc(), Round.id).limit(100)
        )
        return Page(items=[_round(row) for row in rows], next=None)

    return call.read(action)


def _programme(session: Session, slug: str) -> ProgrammeView:
    asset_of(session, slug)
    totals = programme_totals(session, slug)
    amounts = in_units(
        totals.asset,
        budget=totals.budget,
        pool=totals.pool,
        issued=totals.issued,
        remaining=totals.remaining,
        held=totals.held,
        captured=totals.captured,
        returned=totals.returned,
        claimed=totals.claimed,
        disbursed=totals.disbursed,
    )
    return ProgrammeView.model_validate({"programme": slug, "asset": totals.asset, **amounts})


def _version(row: ProgrammeVersion) -> dict[str, Any]:
    return {
        "id": row.id,
        "programme": row.slug,
        "version": row.version,
        "name": row.document["name"],
        "effective_from": row.effective_from,
        "effective_until": row.effective_until,
        "digest_sha256": row.digest,
        "published_at": row.published_at,
    }


def _round(row: Round) -> RoundView:
    return RoundView(
        id=row.id, programme=row.slug, name=row.name, opens_at=row.opens_at, cut_off_at=row.cut_off_at
    )
