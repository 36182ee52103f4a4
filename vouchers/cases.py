"""What the automatic checks look at: rounds, what was issued before, other applications, relations.

Nothing here decides; `domain.eligibility` does.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from kernel.bulk import among
from kernel.ids import derived_id
from vouchers import accounts
from vouchers.domain.calendar import budget_cycle
from vouchers.domain.eligibility import Case
from vouchers.domain.facts import ContractFacts, EnterpriseFacts
from vouchers.domain.terms import Cap, Terms
from vouchers.enterprises import enterprise_facts, enterprises_of, relation
from vouchers.errors import DatesReversed, RoundDiffers, RoundNotFound
from vouchers.programmes import terms_of
from vouchers.tables import Application, Round, Voucher

OPEN_STATES: Final = ("draft", "submitted", "revision", "reviewed", "approved")


def open_round(
    session: Session, slug: str, name: str, *, opens_at: datetime, cut_off_at: datetime, by: str
) -> UUID:
    """Call for applications until a cut-off. Raises DatesReversed, RoundDiffers."""
    if cut_off_at <= opens_at:
        raise DatesReversed(field="cut_off_at", starts_at=opens_at, ends_at=cut_off_at)
    round_id = derived_id("round", slug, name)
    known = session.get(Round, round_id)
    if known is not None and (known.opens_at, known.cut_off_at) != (opens_at, cut_off_at):
        raise RoundDiffers(name=name, programme=slug, opens_at=known.opens_at, cut_off_at=known.cut_off_at)
    if known is None:
        session.add(
            Round(id=round_id, slug=slug, name=name, opens_at=opens_at, cut_off_at=cut_off_at, opened_by=by)
        )
        session.flush()
    return round_id


def find_round(session: Session, round_id: UUID, terms: Terms) -> Round:
    """A round of the programme. Raises RoundNotFound."""
    called = session.get(Round, round_id)
    if called is None or called.slug != terms.programme:
        raise RoundNotFound(round=round_id)
    return called


def case_of(session: Session, application: Application, at: datetime, *, requested: int | None = None) -> Case:
    """Everything the automatic checks look at, as it stands."""
    terms = terms_of(session, application.version_id)
    enterprise = enterprise_facts(session, application.enterprise_id)
    contract = ContractFacts.from_json(application.contract)
    issued = _issued_by_holder(session, terms, application.enterprise_id, enterprise, at)
    return Case(
        terms=terms,
        enterprise=enterprise,
        contract=contract,
        requested=application.requested if requested is None else requested,
        issued_enterprise=issued.get("enterprise", 0),
        issued_controller=issued.get("controller", 0),
        issued_left=_issued_to_who_left(session, terms, enterprise, at),
        contract_used_by=_same_contract(session, application, contract),
        duplicates=_open_siblings(session, application, terms),
        relation=relation(session, enterprise.credit_code, contract.supplier) if contract.supplier else (),
        in_round=_in_round(session, application, terms, at),
    )


def issued_under_cap(
    session: Session, terms: Terms, cap: Cap, enterprise_id: UUID, controller: str, at: datetime
) -> int:
    """Face values that count under a cap: all that was issued in its cycle to the enterprise, or to its group.

    The group are the enterprises whose actual controller is the same now. What an enterprise was issued counts for
    whoever controls it at this decision, as it is that one's to use: it comes with a firm that is bought and leaves
    with a firm that is sold (decision 0031).
    """
    mine = [enterprise_id] if cap.per == "enterprise" else enterprises_of(session, controller)
    cycle = budget_cycle(cap.cycle, at, terms.time_zone)
    return _issued_sum(session, terms.programme, cycle, among(Voucher.enterprise_id, mine))


def _issued_to_who_left(session: Session, terms: Terms, enterprise: EnterpriseFacts, at: datetime) -> int:
    """What was issued under a controller's cap to enterprises that it controlled then and does not control now."""
    gone = (Voucher.controller == enterprise.controller) & ~among(
        Voucher.enterprise_id, enterprises_of(session, enterprise.controller)
    )
    return max(
        (
            _issued_sum(session, terms.programme, budget_cycle(cap.cycle, at, terms.time_zone), gone)
            for cap in terms.caps_for(enterprise)
            if cap.per == "controller"
        ),
        default=0,
    )


def _issued_sum(session: Session, slug: str, cycle: str, holder: ColumnElement[bool]) -> int:
    """Face values issued in a cycle (`once`: ever) to some holders.

    Tranches that still wait for a report count as issued: they are granted and will be released without asking again.
    """
    counted = [Voucher.slug == slug, holder]
    if cycle != "once":
        counted.append(Voucher.cap_year == int(cycle))
    faces = session.scalar(select(func.coalesce(func.sum(Voucher.face), 0)).where(*counted))
    grants = session.execute(
        select(Voucher.application_id, Voucher.asset).where(*counted, Voucher.tranche == 1)
    )
    promised = accounts.available(session, [accounts.promised(*grant) for grant in grants])
    return int(faces or 0) + sum(promised.values())


def _issued_by_holder(
    session: Session, terms: Terms, enterprise_id: UUID, enterprise: EnterpriseFacts, at: datetime
) -> dict[str, int]:
    return {
        cap.per: issued_under_cap(session, terms, cap, enterprise_id, enterprise.controller, at)
        for cap in terms.caps_for(enterprise)
    }


def _same_contract(session: Session, application: Application, contract: ContractFacts) -> tuple[str, ...]:
    """Other standing applications, of anybody and to any programme, that name the same contract."""
    if not contract.number:
        return ()
    rows = session.scalars(
        select(Application.id).where(
            Application.contract["number"].astext == contract.number,
            Application.contract["supplier"].astext == contract.supplier,
            Application.id != application.id,
            Application.state.in_((*OPEN_STATES, "issued")),
        )
    )
    return tuple(sorted(map(str, rows)))


def _open_siblings(session: Session, application: Application, terms: Terms) -> tuple[str, ...]:
    """Other open applications of the enterprise to this programme."""
    rows = session.execute(
        select(Application.id, Application.version_id).where(
            Application.enterprise_id == application.enterprise_id,
            Application.id != application.id,
            Application.state.in_([state for state in OPEN_STATES if state != "draft"]),
        )
    )
    return tuple(
        sorted(str(row.id) for row in rows if terms_of(session, row.version_id).programme == terms.programme)
    )


def _in_round(session: Session, application: Application, terms: Terms, at: datetime) -> bool:
    if application.round_id is None:
        return not terms.review.rounds
    called = find_round(session, application.round_id, terms)
    return application.submitted_at is not None or called.opens_at <= at < called.cut_off_at
