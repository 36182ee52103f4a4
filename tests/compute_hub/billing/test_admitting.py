"""Admissions of one batch that the ledger refuses as a whole: nothing of it is written, each is asked for by itself."""

from uuid import UUID

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from compute_hub.billing.domain.rating import hold_micros
from compute_hub.billing.funding import MARGIN_MS
from kernel.database import transaction
from ledger.audit import audit
from ledger.posting import post_all
from scheduler.controller.ports import Admission
from scheduler.tables import JobRow
from tests.compute_hub.billing.house import HOUR_MS, NOW, YUAN, House
from vouchers import accounts, movements
from vouchers.holding import HOLD_LIFE

STRETCH = hold_micros(1000 * (HOUR_MS + 5000 + MARGIN_MS), 36 * YUAN)
"""What is held of a job of the house when it is admitted."""


def queued(house: House) -> UUID:
    return house.submit(models=("sim-a",))


def admitted(house: House, session: Session, *job_ids: UUID) -> dict[UUID, str]:
    """The sentences of those that are refused; as the controller asks, all at once."""
    jobs = [session.get_one(JobRow, job_id) for job_id in job_ids]
    for job in jobs:
        job.attempt += 1
    return dict(house.funding.admit(session, [Admission(job, {"sim-a": 1000}) for job in jobs], NOW))


def claim_its_place_in_the_ledger(house: House, job_id: UUID) -> None:
    """The job's first hold is there already with another amount, of which nothing but the ledger knows."""
    wallet, revenue = accounts.wallet(house.tenant), accounts.revenue(house.tenant)
    with transaction(house.engine) as session:
        accounts.ensure(session, [wallet, revenue], NOW)
        hold = movements.hold_funds((job_id, 0, 0), wallet.id, revenue, 1, NOW + HOLD_LIFE)
        post_all(session, [hold], at=NOW)


def written(house: House, job_id: UUID) -> list[tuple[object, ...]]:
    """What is known of a job's money: its funding, its covered time, its holds and what is set aside for it."""
    return house.sql(
        f"SELECT f.state, f.held_micros, f.funded_at IS NOT NULL, "
        f"(SELECT count(*) FROM job_funded_time t WHERE t.job_id = f.job_id), "
        f"(SELECT count(*) FROM job_holds h WHERE h.job_id = f.job_id), "
        f"(SELECT count(*) FROM hold_segments s WHERE s.job_id = f.job_id), "
        f"(SELECT coalesce(sum(l.held), 0) FROM hold_lines l WHERE l.job_id = f.job_id) "
        f"FROM job_funding f WHERE f.job_id = '{job_id}'"
    )


HELD = [("held", STRETCH, True, 1, 1, 1, STRETCH)]
NOTHING = [("pending", 0, False, 0, 0, 0, 0)]


def test_a_batch_the_ledger_refuses_is_decided_one_by_one_and_what_came_before_stays(house: House) -> None:
    earlier, good, bad, also_good = (queued(house) for _ in range(4))
    claim_its_place_in_the_ledger(house, bad)
    with transaction(house.engine) as session:
        assert admitted(house, session, earlier) == {}
        refused = admitted(house, session, good, bad, also_good)
        assert refused.keys() == {bad}
        assert refused[bad].startswith("waiting for funds: ")
    for job_id in (earlier, good, also_good):
        assert written(house, job_id) == HELD
    assert written(house, bad) == NOTHING
    assert house.balance() == (1000 * YUAN - 3 * STRETCH - 1, 3 * STRETCH + 1)
    with transaction(house.engine) as session:
        assert audit(session).clean


def test_of_a_batch_that_is_refused_nothing_is_written_when_each_is_refused_too(house: House) -> None:
    jobs = [queued(house) for _ in range(3)]
    for job_id in jobs:
        claim_its_place_in_the_ledger(house, job_id)
    with transaction(house.engine) as session:
        assert admitted(house, session, *jobs).keys() == set(jobs)
    assert [written(house, job_id) for job_id in jobs] == [NOTHING] * 3
    assert house.balance() == (1000 * YUAN - 3, 3)


@pytest.mark.parametrize(("yuan", "paid"), [(37, 1), (72, 1), (73, 2)])
def test_of_two_jobs_that_together_cost_more_than_there_is_the_first_is_paid(
    engine: Engine, yuan: int, paid: int
) -> None:
    house = House(engine, prepaid_yuan=yuan)
    jobs = [queued(house) for _ in range(2)]
    with transaction(engine) as session:
        assert admitted(house, session, *jobs).keys() == set(jobs[paid:])
    assert [written(house, job_id) for job_id in jobs] == [HELD] * paid + [NOTHING] * (2 - paid)
    assert house.balance() == (yuan * YUAN - paid * STRETCH, paid * STRETCH)
