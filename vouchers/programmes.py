"""Programmes: publishing a version of the rules, and putting a cycle's budget into the pool.

Published rules never change. A changed rule is a new version; decisions keep citing the version they were made
by.
"""

import hashlib
import json
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from jsonschema import Draft202012Validator, ValidationError
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from ledger.posting import post_all
from vouchers import accounts, movements
from vouchers.domain.calendar import budget_cycle, local_day, start_of_day
from vouchers.domain.terms import ProgrammeInvalid, Split, Terms, read_terms
from vouchers.errors import AssetChanged, ProgrammeNotFound, VersionExists, VersionsOverlap
from vouchers.tables import Appropriation, Programme, ProgrammeVersion

_SCHEMA: Final = json.loads(Path(__file__).with_name("programme.schema.json").read_text(encoding="utf-8"))
_TERMS: Final[dict[str, Terms]] = {}
_TERMS_MAX: Final = 1_000
_VALIDATOR: Final = Draft202012Validator(_SCHEMA)


def parse_programme(document: dict[str, Any]) -> Terms:
    """The terms of a programme document.

    Raises:
        ProgrammeInvalid: the schema refuses it, with the path of the first fault, or it contradicts itself.
        MalformedAmount: an amount that cannot be represented.
    """
    faults = sorted(_VALIDATOR.iter_errors(document), key=lambda fault: (fault.json_path, fault.message))
    if faults:
        raise ProgrammeInvalid(field=_field(faults[0]), reason=_reason(faults[0]))
    return read_terms(document)


def _field(fault: ValidationError) -> str:
    return fault.json_path.removeprefix("$").removeprefix(".") or "document"


def _reason(fault: ValidationError) -> str:
    """What to write instead, where the schema has words for it."""
    meant = fault.schema.get("description") if isinstance(fault.schema, dict) else None
    if meant and fault.validator in {"pattern", "type"}:
        return f"{fault.instance!r} is not {meant}"[:300]
    return fault.message[:300]


def publish_programme(session: Session, document: dict[str, Any], *, by: str, at: datetime) -> UUID:
    """Publish one version of a programme, and appropriate the budget of the cycle it begins to work in.

    A document that names `supersedes` ends that version on the day before its own first day. Publishing the
    same document again does nothing.

    Returns:
        The id of the version.

    Raises:
        ProgrammeInvalid, MalformedAmount: see `parse_programme`.
        VersionExists: the version number is taken by another document.
        VersionsOverlap: another version is in force on one of its days.
        AssetChanged: the programme counts another asset.
    """
    terms = parse_programme(document)
    version_id = derived_id("programme-version", terms.programme, terms.version)
    digest = _digest(document)
    programme = _first_published(session, terms, at)
    known = session.get(ProgrammeVersion, version_id)
    if known is not None:
        if known.digest != digest:
            raise VersionExists(programme=terms.programme, version=terms.version)
        return version_id
    _end_superseded(session, terms)
    _check_no_overlap(session, terms)
    session.add(
        ProgrammeVersion(
            id=version_id,
            slug=terms.programme,
            programme_number=programme.number,
            version=terms.version,
            effective_from=terms.effective_from,
            effective_until=terms.effective_until,
            document=document,
            digest=digest,
            published_by=by,
            published_at=at,
        )
    )
    session.flush()
    begins = max(at, start_of_day(terms.effective_from, terms.time_zone))
    appropriate_budget(session, version_id, begins, by=by, at=at)
    return version_id


def appropriate_budget(
    session: Session, version_id: UUID, in_cycle_of: datetime, *, by: str, at: datetime
) -> str:
    """Put a cycle's budget into the programme's pool, each government its part; what is there already counts.

    Returns:
        The name of the cycle.
    """
    terms = terms_of(session, version_id)
    cycle = budget_cycle(terms.budget.cycle, in_cycle_of, terms.time_zone)
    lock_programme(session, terms.programme)
    there = session.scalar(
        select(func.coalesce(func.sum(Appropriation.amount), 0)).where(
            Appropriation.slug == terms.programme, Appropriation.cycle == cycle
        )
    )
    amount = terms.budget.amount - int(there or 0)
    if amount <= 0:
        return cycle
    appropriation = Appropriation(
        id=derived_id("appropriation", terms.programme, cycle, terms.version),
        slug=terms.programme,
        cycle=cycle,
        version_id=version_id,
        amount=amount,
        appropriated_by=by,
        appropriated_at=at,
    )
    session.add(appropriation)
    session.flush()
    pool = accounts.pool(terms.programme, cycle, terms.asset)
    shares = shares_of(terms, amount)
    sources = [accounts.authority_funds(authority, terms.asset) for authority, _ in shares]
    accounts.ensure(session, [pool, *sources], at)
    transfers = [movements.appropriate(appropriation.id, authority, pool, share) for authority, share in shares]
    post_all(session, transfers, at=at)
    return cycle


def terms_of(session: Session, version_id: UUID) -> Terms:
    """The terms of a published version. Raises ProgrammeNotFound."""
    row = session.get(ProgrammeVersion, version_id)
    if row is None:
        raise ProgrammeNotFound(programme=str(version_id), day="any day")
    return read_terms(row.document)


def terms_of_digest(session: Session, version_id: UUID, digest: str) -> Terms:
    """The terms of a version whose document has this digest, read once per process: content never changes."""
    if digest not in _TERMS:
        if len(_TERMS) >= _TERMS_MAX:
            _TERMS.clear()
        _TERMS[digest] = terms_of(session, version_id)
    return _TERMS[digest]


def version_in_force(session: Session, slug: str, at: datetime) -> tuple[UUID, Terms]:
    """The version of a programme in force at an instant, by the calendar of its own time zone.

    Raises:
        ProgrammeNotFound: there is none.
    """
    rows = session.scalars(
        select(ProgrammeVersion).where(ProgrammeVersion.slug == slug).order_by(ProgrammeVersion.version)
    )
    for row in rows:
        terms = read_terms(row.document)
        day = local_day(at, terms.time_zone)
        if row.effective_from <= day and (row.effective_until is None or day <= row.effective_until):
            return row.id, terms
    raise ProgrammeNotFound(programme=slug, day=at.date())


def _digest(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def lock_programme(session: Session, slug: str) -> Programme:
    """Lock a programme, which issues, is claimed, pays and turns its cycle one by one. Raises ProgrammeNotFound."""
    programme = session.scalars(
        select(Programme).where(Programme.slug == slug).with_for_update(key_share=True)
    ).one_or_none()
    if programme is None:
        raise ProgrammeNotFound(programme=slug, day="any day")
    return programme


def _first_published(session: Session, terms: Terms, at: datetime) -> Programme:
    """The programme's row, locked, made by its first version. Raises AssetChanged."""
    session.execute(
        insert(Programme)
        .values(slug=terms.programme, asset=terms.asset, first_published_at=at)
        .on_conflict_do_nothing()
    )
    programme = lock_programme(session, terms.programme)
    if programme.asset != terms.asset:
        raise AssetChanged(programme=terms.programme, asset=programme.asset, asked=terms.asset)
    return programme


def _end_superseded(session: Session, terms: Terms) -> None:
    if terms.supersedes is None:
        return
    old = session.scalars(
        select(ProgrammeVersion).where(
            ProgrammeVersion.slug == terms.programme, ProgrammeVersion.version == terms.supersedes
        )
    ).one_or_none()
    last_day = terms.effective_from - timedelta(days=1)
    if old is None or last_day < old.effective_from:
        raise ProgrammeInvalid(
            field="supersedes", reason=f"there is no version {terms.supersedes} that began before this one"
        )
    if old.effective_until is None or old.effective_until > last_day:
        old.effective_until = last_day
        session.flush()


def _check_no_overlap(session: Session, terms: Terms) -> None:
    last = terms.effective_until or date.max
    rows = session.scalars(select(ProgrammeVersion).where(ProgrammeVersion.slug == terms.programme))
    for row in sorted(rows, key=lambda row: row.version):
        if row.effective_from <= last and terms.effective_from <= (row.effective_until or date.max):
            raise VersionsOverlap(
                programme=terms.programme,
                version=terms.version,
                other=row.version,
                day=max(row.effective_from, terms.effective_from),
            )


def shares_of(terms: Terms, amount: int) -> list[tuple[str, int]]:
    """Each authority's part of an amount; what rounding leaves is the first one's."""
    split = terms.budget.split or (Split(terms.level, terms.authority, 1),)
    whole = sum(part.parts for part in split)
    shares = [amount * part.parts // whole for part in split]
    shares[0] += amount - sum(shares)
    return [(part.authority, share) for part, share in zip(split, shares, strict=True) if share]
