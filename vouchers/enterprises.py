"""Enterprises: registration, dated facts, who controls whom. A tenant is an enterprise.

Facts are never overwritten: a change is a next version with who made it and why, in force from when it is recorded.
All that happens to a tenant's money is serialised by `lock_tenants`, always taken before any account is locked.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.ids import derived_id
from kernel.money import MICROS_MAX
from kernel.prepared import Prepared
from vouchers.domain.controllers import actual_controller, check_acyclic, group_of, related
from vouchers.domain.facts import EnterpriseFacts
from vouchers.errors import EnterpriseExists, EnterpriseNotFound, MalformedProfile
from vouchers.tables import Controller, Enterprise, EnterpriseVersion, GroupMember, RelatedParty

SIZE_CLASSES: Final = frozenset({"micro", "small", "medium", "large", "startup"})
_CREDIT_CODE = re.compile(r"[0-9A-Z]{8,18}")
_REGION = re.compile(r"[0-9]{6,12}|[A-Z]{2}[0-9A-Z-]{0,10}")


@dataclass(frozen=True)
class FactChanges:
    """What is to change of an enterprise's facts; what is left out stays."""

    name: str | None = None
    region: str | None = None
    industry: str | None = None
    size_class: str | None = None
    yearly_contract_micros: int | None = None
    clean_years: int | None = None
    dishonest: bool | None = None
    roles: tuple[str, ...] | None = None


_FACTS: Final = tuple(entry.name for entry in fields(FactChanges))


def _locking(*, wait: bool) -> Prepared:
    """Lock tenants in the order of their ids, with those who pay for them."""
    tenants = bindparam("tenants", type_=ARRAY(Uuid))
    payers = select(GroupMember.payer_id).where(among(GroupMember.affiliate_id, tenants))
    return Prepared(
        select(Enterprise.id)
        .where(Enterprise.id.in_(payers.union_all(select(func.unnest(tenants)))))
        .order_by(Enterprise.id)
        .with_for_update(key_share=True, of=Enterprise, skip_locked=not wait)
    )


_LOCKED: Final = {wait: _locking(wait=wait) for wait in (True, False)}
_BOUND: Final = Prepared(
    select(GroupMember.affiliate_id, GroupMember.payer_id).where(
        among(GroupMember.affiliate_id, bindparam("tenants"))
    )
)


def register_enterprise(
    session: Session,
    *,
    credit_code: str,
    name: str,
    region: str,
    at: datetime,
    industry: str = "manufacturing",
    size_class: str = "small",
    yearly_contract_micros: int = 0,
    clean_years: int = 0,
    roles: Iterable[str] = (),
    by: str = "hub",
) -> UUID:
    """Register an enterprise under its unified social credit code; registering it again alike does nothing.

    Returns:
        Its id, derived from the code, which is also the tenant's id.

    Raises:
        MalformedProfile: a fact that cannot be.
        EnterpriseExists: the code was registered with other facts, whatever they are now.
    """
    if not _CREDIT_CODE.fullmatch(credit_code):
        raise MalformedProfile(field="credit_code", value=credit_code, reason="is no credit code")
    enterprise_id = derived_id("enterprise", credit_code)
    first = EnterpriseVersion(
        enterprise_id=enterprise_id,
        version=1,
        name=name,
        region=region,
        industry=industry,
        size_class=size_class,
        yearly_contract_micros=yearly_contract_micros,
        clean_years=clean_years,
        dishonest=False,
        roles=sorted(roles),
        reason="registered",
        recorded_by=by,
        recorded_at=at,
    )
    _check_profile(first)
    known = session.get(EnterpriseVersion, (enterprise_id, 1))
    if known is not None:
        _check_registered_alike(credit_code, known, first)
        return enterprise_id
    session.add(Enterprise(id=enterprise_id, credit_code=credit_code, version=1, registered_at=at))
    session.flush()
    session.add(first)
    session.flush()
    return enterprise_id


def change_facts(
    session: Session, enterprise_id: UUID, changes: FactChanges, *, reason: str, by: str, at: datetime
) -> int:
    """Record other facts of an enterprise: they are in force from now on, and what was decided keeps those it saw.

    Returns:
        The version in force; the one before where nothing differs, so that repeating a change does nothing.

    Raises:
        EnterpriseNotFound; MalformedProfile: a fact that cannot be.
    """
    lock_tenants(session, [enterprise_id])
    row = session.get_one(Enterprise, enterprise_id, populate_existing=True)
    old = session.get_one(EnterpriseVersion, (enterprise_id, row.version))
    before = {name: getattr(old, name) for name in _FACTS}
    asked = {name: value for name, value in asdict(changes).items() if value is not None}
    after = before | asked | ({"roles": sorted(asked["roles"])} if "roles" in asked else {})
    if after == before:
        return old.version
    new = EnterpriseVersion(
        enterprise_id=enterprise_id,
        version=old.version + 1,
        **after,
        reason=reason,
        recorded_by=by,
        recorded_at=at,
    )
    _check_profile(new)
    session.add(new)
    row.version = new.version
    session.flush()
    return new.version


def facts_history(
    session: Session, enterprise_id: UUID, *, after: int = 0, limit: int = 100
) -> list[EnterpriseVersion]:
    """The versions of an enterprise's facts after one, the first one first. Raises EnterpriseNotFound."""
    profile(session, enterprise_id)
    query = (
        select(EnterpriseVersion)
        .where(EnterpriseVersion.enterprise_id == enterprise_id, EnterpriseVersion.version > after)
        .order_by(EnterpriseVersion.version)
        .limit(limit)
    )
    return list(session.scalars(query))


def record_controller(
    session: Session, controlled: str, controller: str, *, by: str, at: datetime, reason: str = ""
) -> Controller:
    """Record who directly controls a party from now on; who did before stays on record. Again does nothing.

    Returns:
        What is in force.

    Raises:
        ControllerCycle: the controller is itself controlled by the party.
    """
    # Locking the rows that are there would not stop two new ones from closing a circle.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("controllers"))))
    check_acyclic(controlled, controller, _controllers(session))
    query = select(Controller).where(Controller.controlled == controlled, Controller.ended_at.is_(None))
    old = session.scalar(query.execution_options(populate_existing=True))
    if old is not None and old.controller == controller:
        return old
    if old is not None:
        old.ended_at = at
        session.flush()
    new = Controller(
        controlled=controlled,
        version=1 if old is None else old.version + 1,
        controller=controller,
        reason=reason,
        recorded_by=by,
        recorded_at=at,
    )
    session.add(new)
    session.flush()
    return new


def record_related(session: Session, one: str, other: str, reason: str, *, by: str, at: datetime) -> None:
    """Record that two parties are related otherwise than by control, such as by family."""
    low, high = sorted((one, other))
    if low == high:
        raise MalformedProfile(field="other", value=other, reason="is the same party")
    session.execute(
        insert(RelatedParty)
        .values(one=low, other=high, reason=reason, recorded_by=by, recorded_at=at)
        .on_conflict_do_nothing()
    )


def enterprise_facts(session: Session, enterprise_id: UUID) -> EnterpriseFacts:
    """What the rules look at, as it is in force. Raises EnterpriseNotFound."""
    credit_code, version = profile(session, enterprise_id)
    return version.facts(credit_code, actual_controller(credit_code, _controllers(session)))


def profile(session: Session, enterprise_id: UUID) -> tuple[str, EnterpriseVersion]:
    """An enterprise's credit code and the version of its facts in force. Raises EnterpriseNotFound."""
    query = (
        select(Enterprise.credit_code, EnterpriseVersion)
        .join(EnterpriseVersion, in_force())
        .where(Enterprise.id == enterprise_id)
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise EnterpriseNotFound(enterprise=enterprise_id)
    credit_code, version = found
    return credit_code, version


def in_force() -> ColumnElement[bool]:
    """Joins enterprises to the version of their facts in force."""
    return (EnterpriseVersion.enterprise_id == Enterprise.id) & (
        EnterpriseVersion.version == Enterprise.version
    )


def enterprises_of(session: Session, controller: str) -> list[UUID]:
    """The enterprises whose actual controller this is now."""
    parties = group_of(controller, _controllers(session))
    query = select(Enterprise.id).where(among(Enterprise.credit_code, sorted(parties))).order_by(Enterprise.id)
    return list(session.scalars(query))


def relation(session: Session, one: str, other: str) -> tuple[str, ...]:
    """How two parties are related, as the parties on the way, or nothing."""
    pairs = session.execute(select(RelatedParty.one, RelatedParty.other))
    return related(one, other, _controllers(session), [(left, right) for left, right in pairs])


def lock_tenants(session: Session, enterprise_ids: Iterable[UUID]) -> list[Enterprise]:
    """Lock tenants' rows in the order of their ids, so that what happens to their money happens one by one.

    Raises:
        EnterpriseNotFound: one of them is not registered.
    """
    wanted = sorted(set(enterprise_ids))
    rows = session.scalars(
        select(Enterprise)
        .where(among(Enterprise.id, wanted))
        .order_by(Enterprise.id)
        .with_for_update(key_share=True)
    ).all()
    missing = set(wanted) - {row.id for row in rows}
    if missing:
        raise EnterpriseNotFound(enterprise=min(missing))
    return list(rows)


def lock_payers(
    session: Session, tenant_ids: Collection[UUID], *, wait: bool = True
) -> dict[UUID, tuple[UUID, ...]]:
    """Lock tenants' rows and their groups' payers' in one go, in the order of their ids.

    Returns:
        Per registered tenant who pays for it: itself first. Without waiting, those are missing of whom somebody else
        has a row locked.
    """
    wanted = list(tenant_ids)
    locked = {enterprise_id for (enterprise_id,) in _LOCKED[wait](session, tenants=wanted)}
    # Looked at again, because who is bound to whom may have changed while the rows were waited for.
    bound: dict[UUID, UUID] = dict(_BOUND(session, tenants=wanted))
    return {
        tenant: tuple(payer for payer in dict.fromkeys((tenant, bound.get(tenant, tenant))) if payer in locked)
        for tenant in wanted
        if tenant in locked and (wait or bound.get(tenant, tenant) in locked)
    }


def _controllers(session: Session) -> dict[str, str]:
    rows = session.execute(
        select(Controller.controlled, Controller.controller).where(Controller.ended_at.is_(None))
    )
    return dict(rows.all())


def _check_registered_alike(credit_code: str, known: EnterpriseVersion, asked: EnterpriseVersion) -> None:
    for field in _FACTS:
        registered, wanted = getattr(known, field), getattr(asked, field)
        if registered != wanted:
            raise EnterpriseExists(field=field, credit_code=credit_code, registered=registered, asked=wanted)


def _check_profile(facts: EnterpriseVersion) -> None:
    name, contract_micros = facts.name, facts.yearly_contract_micros
    size_class, clean_years = facts.size_class, facts.clean_years
    broken = (
        ("name", name, not 1 <= len(name) <= 200, "must have 1 to 200 characters"),  # noqa: PLR2004 - in the words
        ("region", facts.region, not _REGION.fullmatch(facts.region), "is no division code"),
        ("size_class", size_class, size_class not in SIZE_CLASSES, f"is none of {sorted(SIZE_CLASSES)}"),
        (
            "yearly_contract_micros",
            contract_micros,
            not 0 <= contract_micros <= MICROS_MAX,
            "is out of range",
        ),
        ("clean_years", clean_years, not 0 <= clean_years <= 200, "is out of range"),  # noqa: PLR2004 - a bound
    )
    for field, value, wrong, reason in broken:
        if wrong:
            raise MalformedProfile(field=field, value=value, reason=reason)
