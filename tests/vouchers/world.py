"""Short ways to what a test of vouchers begins with."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from vouchers.applications import final_approval, first_review, submit_application
from vouchers.domain.facts import ContractFacts
from vouchers.enterprises import register_enterprise
from vouchers.issuing import issue_voucher
from vouchers.programmes import publish_programme

EXAMPLES = Path(__file__).parents[2] / "examples" / "programmes"
NOW = datetime(2026, 3, 10, 2, 0, tzinfo=UTC)
YUAN = 1_000_000


class World:
    """Short ways to what a test begins with; every name it makes is new in its database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.count = 0

    def document(self, name: str, **changed: object) -> dict[str, Any]:
        """An example programme, with some of its fields replaced."""
        return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8")) | changed

    def programme(self, session: Session, name: str = "huangyan", at: datetime = NOW, **changed: object) -> str:
        """A copy of an example programme under a name of its own, published."""
        self.count += 1
        document = self.document(name, **({"programme": f"{name}-{self.count}"} | changed))
        publish_programme(session, document, by="officer", at=at)
        return str(document["programme"])

    def enterprise(self, session: Session, **facts: object) -> UUID:
        """A registered enterprise in Huangyan, unless said otherwise."""
        self.count += 1
        plain = {"name": f"Works {self.count}", "region": "331003", "at": NOW}
        return register_enterprise(session, credit_code=f"91331003{self.count:09d}X", **(plain | facts))  # type: ignore[arg-type]

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
        return issue_voucher(session, application, by="officer", at=issued_at or at)
