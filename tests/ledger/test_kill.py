import pytest
from sqlalchemy import Engine

from benchmarks.kill_ledger import (
    AT,
    SPENT,
    STEPS_PER_ROUND,
    VOUCHER,
    WORLD,
    batch,
    complete,
    kill_points,
    verdict,
)
from kernel.database import transaction
from ledger.posting import open_accounts, post_all
from tests.conftest import Database


@pytest.mark.slow
def test_500_kills_of_clients_and_backends_lose_and_double_nothing() -> None:
    assert kill_points(500, seed=7) == {"points": 500, "lost": 0, "doubled": 0, "unbalanced": 0}


@pytest.mark.parametrize("unsaid", [0, 1])
def test_what_a_victim_committed_at_the_end_of_a_round_without_saying_so_is_no_surplus(
    engine: Engine, database: Database, unsaid: int
) -> None:
    with transaction(engine) as session:
        open_accounts(session, [WORLD, VOUCHER, SPENT], at=AT)
    for intention in range(STEPS_PER_ROUND + unsaid):
        with transaction(engine) as session:
            post_all(session, batch(0, intention), at=AT)
    ends = complete(database.url, [STEPS_PER_ROUND])
    assert verdict(database.url, ends) == {"lost": 0, "doubled": 0, "unbalanced": 0}
    assert verdict(database.url, [ends[0] - STEPS_PER_ROUND])["doubled"] == 7


def test_the_harness_sees_a_loss_and_a_surplus(engine: Engine, database: Database) -> None:
    with transaction(engine) as session:
        open_accounts(session, [WORLD, VOUCHER, SPENT], at=AT)
        post_all(session, batch(0, 0), at=AT)
    assert verdict(database.url, [0]) == {"lost": 0, "doubled": 1, "unbalanced": 1}
    assert verdict(database.url, [STEPS_PER_ROUND])["lost"] == 6
