"""Enterprises: registration, profile, who controls whom. A tenant is an enterprise.

All that happens to a tenant's money is serialised by `lock_tenants`, always taken before any account is locked.
"""

import re
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Uuid, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.ids import derived_id
from kernel.money import MICROS_MAX
from vouchers.domain.controllers import actual_controller, check_acyclic, related
from vouchers.domain.facts import EnterpriseFacts
from vouchers.errors import EnterpriseExists, EnterpriseNotFound, MalformedProfile
from vouchers.tables import Controller, Enterprise, GroupMember, RelatedParty

SIZE_CLASSES: Final = frozenset({"micro", "small", "medium", "large", "startup"})
_CREDIT_CODE = re.compile(r"[0-9A-Z]{8,18}")
_REGION = re.compile(r"[0-9]{6,12}|[A-Z]{2}[0-9A-Z-]{0,10}")


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
) -> UUID:
    """Register an enterprise under its unified social credit code; registering it again alike does nothing.

    Returns:
        Its id, derived from the code, which is also the tenant's id.

    Raises:
        MalformedProfile: a fact that cannot be.
        EnterpriseExists: the code is registered with another name.
    """
    _check_profile(credit_code, name, region, size_class, yearly_contract_micros, clean_years)
    enterprise_id = derived_id("enterprise", credit_code)
    known = session.get(Enterprise, enterprise_id)
    if known is not None:
        if known.name != name:
            raise EnterpriseExists(credit_code=credit_code)
        return enterprise_id
    session.add(
        Enterprise(
            id=enterprise_id,
            credit_code=credit_code,
            name=name,
            region=region,
            industry=industry,
            size_class=size_class,
            yearly_contract_micros=yearly_contract_micros,
            clean_years=clean_years,
            dishonest=False,
            roles=sorted(roles),
            registered_at=at,
        )
    )
    session.flush()
    return enterprise_id


def mark_dishonest(session: Session, enterprise_id: UUID, *, dishonest: bool) -> None:
    """Put an enterprise on the list of dishonest ones, or take it off. Raises EnterpriseNotFound."""
    (row,) = lock_tenants(session, [enterprise_id])
    row.dishonest = dishonest
    session.flush()


def record_controller(session: Session, controlled: str, controller: str, *, by: str, at: datetime) -> None:
    """Record who directly controls a party, in place of what was recorded before.

    Raises:
        ControllerCycle: the controller is itself controlled by the party.
    """
    # Locking the rows that are there would not stop two new ones from closing a circle.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtext("controllers"))))
    check_acyclic(controlled, controller, _controllers(session))
    new = {"controller": controller, "recorded_by": by, "recorded_at": at}
    session.execute(
        insert(Controller)
        .values(controlled=controlled, **new)
        .on_conflict_do_update(index_elements=["controlled"], set_=new)
    )


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
    """What the rules look at. Raises EnterpriseNotFound."""
    row = session.get(Enterprise, enterprise_id)
    if row is None:
        raise EnterpriseNotFound(enterprise=enterprise_id)
    return row.facts(actual_controller(row.credit_code, _controllers(session)))


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
    payers = select(GroupMember.payer_id).where(among(GroupMember.affiliate_id, wanted))
    either = payers.union_all(select(func.unnest(literal(wanted, ARRAY(Uuid)))))
    locked = set(
        session.scalars(
            select(Enterprise.id)
            .where(Enterprise.id.in_(either))
            .order_by(Enterprise.id)
            .with_for_update(key_share=True, of=Enterprise, skip_locked=not wait)
        )
    )
    # Looked at again, because who is bound to whom may have changed while the rows were waited for.
    bound = dict(
        session.execute(
            select(GroupMember.affiliate_id, GroupMember.payer_id).where(
                among(GroupMember.affiliate_id, wanted)
            )
        ).all()
    )
    return {
        tenant: tuple(payer for payer in (tenant, bound.get(tenant)) if payer in locked)
        for tenant in wanted
        if tenant in locked and (wait or bound.get(tenant, tenant) in locked)
    }


def _controllers(session: Session) -> dict[str, str]:
    rows = session.scalars(select(Controller))
    return {row.controlled: row.controller for row in rows}


def _check_profile(
    credit_code: str, name: str, region: str, size_class: str, contract_micros: int, clean_years: int
) -> None:
    broken = (
        ("credit_code", credit_code, not _CREDIT_CODE.fullmatch(credit_code), "is no credit code"),
        ("name", name, not 1 <= len(name) <= 200, "must have 1 to 200 characters"),  # noqa: PLR2004 - in the words
        ("region", region, not _REGION.fullmatch(region), "is no division code"),
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
