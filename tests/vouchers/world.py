"""Short ways to what a test of vouchers begins with."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from kernel.ids import derived_id
from vouchers.applications import final_approval, first_review, submit_application
from vouchers.capturing import capture_charge
from vouchers.domain.explanation import Coverage
from vouchers.domain.facts import ChargeFacts, ContractFacts
from vouchers.enterprises import register_enterprise
from vouchers.issuing import issue_voucher
from vouchers.programmes import publish_programme
from vouchers.reading import list_vouchers, programme_totals
from vouchers.redemption import place_hold, release_hold
from vouchers.wallets import deposit, wallet_balance

EXAMPLES = Path(__file__).parents[2] / "examples" / "programmes"
NOW = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
YUAN = 1_000_000
FACTS = ChargeFacts(model="MLU370")


@dataclass(frozen=True)
class Place:
    """A programme and an enterprise with money of its own."""

    world: "World"
    programme: str
    tenant: UUID

    def voucher(self, session: Session, yuan: int, at: datetime = NOW) -> UUID:
        """A voucher of the enterprise."""
        return self.world.voucher(session, self.tenant, self.programme, yuan * YUAN, at)

    def job(self, number: int = 1) -> UUID:
        """A job's id."""
        return derived_id("job", self.tenant, number)

    def charge(self, number: int = 1) -> UUID:
        """A charge's id."""
        return derived_id("charge", self.tenant, number)

    def run(
        self, session: Session, yuan: int, number: int = 1, at: datetime = NOW, *, facts: ChargeFacts = FACTS
    ) -> Coverage:
        """A job that is held for, charged in full and released."""
        place_hold(session, self.job(number), self.tenant, yuan * YUAN, facts, None, at)
        coverage = capture_charge(session, self.job(number), self.charge(number), yuan * YUAN, facts, at)
        release_hold(session, self.job(number), at)
        return coverage

    def left(self, session: Session, voucher: UUID) -> tuple[str, int, int, int]:
        """A voucher's state and its held, captured and remaining yuan."""
        (view,) = [v for v in list_vouchers(session, enterprise_id=self.tenant) if v.id == voucher]
        return view.state, view.held // YUAN, view.captured // YUAN, view.remaining // YUAN

    def pool(self, session: Session) -> int:
        """What the programme may still issue, in yuan."""
        return programme_totals(session, self.programme).pool // YUAN

    def prepaid(self, session: Session) -> int:
        """What the enterprise has left of its own, in yuan."""
        return wallet_balance(session, self.tenant).prepaid_available_micros // YUAN


class World:
    """Short ways to what a test begins with; every name it makes is new in its database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.count = 0

    def document(self, name: str, /, **changed: object) -> dict[str, Any]:
        """An example programme, with some of its fields replaced."""
        return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")) | changed

    def programme(self, session: Session, name: str = "huangyan", at: datetime = NOW, **changed: object) -> str:
        """A copy of an example programme under a name of its own, published."""
        self.count += 1
        document = self.document(name, **({"programme": f"{name}-{self.count}"} | changed))
        publish_programme(session, document, by="officer", at=at)
        return str(document["programme"])

    def place(self, session: Session, name: str = "huangyan", yuan: int = 1_000, **changed: object) -> Place:
        """A programme like an example and an enterprise in its region with ¥1,000, or so many, of its own."""
        programme = self.programme(session, name, **changed)
        tenant = self.enterprise(session)
        if yuan:
            self.fund(session, tenant, yuan)
        return Place(self, programme, tenant)

    def fund(self, session: Session, tenant: UUID, yuan: int) -> None:
        """Money for an enterprise's prepaid balance."""
        self.count += 1
        deposit(session, tenant, yuan * YUAN, f"bank {tenant} {self.count}", NOW)

    def enterprise(self, session: Session, **facts: object) -> UUID:
        """A registered enterprise in Huangyan, unless said otherwise."""
        self.count += 1
        plain = {"name": f"Works {self.count}", "region": "331003", "at": NOW}
        return register_enterprise(session, credit_code=f"91331003{self.count:09d}X", **(plain | facts))  # type: ignore[arg-type]

    def approved(
        self,
        session: Session,
        tenant: UUID,
        programme: str,
        face: int,
        at: datetime = NOW,
        *,
        contract: ContractFacts | None = None,
        round_id: UUID | None = None,
    ) -> UUID:
        """An application that waits to be issued."""
        application = submit_application(
            session,
            enterprise_id=tenant,
            programme=programme,
            requested=face,
            by="tenant",
            at=at,
            contract=contract or ContractFacts(),
            round_id=round_id,
        )
        first_review(session, application, by="first", at=at)
        final_approval(session, application, by="second", at=at)
        return application

    def voucher(
        self,
        session: Session,
        tenant: UUID,
        programme: str,
        face: int,
        at: datetime = NOW,
        *,
        contract: ContractFacts | None = None,
        round_id: UUID | None = None,
        issued_at: datetime | None = None,
    ) -> UUID:
        """A voucher that went through application, review and approval."""
        application = self.approved(session, tenant, programme, face, at, contract=contract, round_id=round_id)
        return issue_voucher(session, application, by="officer", at=issued_at or at)
