"""A ledger whose pool holds 100 micro-yuan."""

import pytest
from sqlalchemy import Engine

from kernel.database import transaction
from ledger.posting import open_accounts, post_all
from tests.ledger.world import CARDS, OWED, POOL, SPENT, T0, WORLD, move


@pytest.fixture
def funded(engine: Engine) -> Engine:
    """POOL holds 100."""
    with transaction(engine) as session:
        open_accounts(session, [WORLD, POOL, SPENT, OWED, CARDS], at=T0)
        post_all(session, [move("fund", WORLD, POOL, 100)], at=T0)
    return engine
