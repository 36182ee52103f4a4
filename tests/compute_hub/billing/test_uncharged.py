"""Usage that waits to be charged: joined as far as it may be, due up to the first gap, charged once."""

from datetime import timedelta
from itertools import count, pairwise
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from compute_hub.billing.charge_writing import RecordsTaken, Written, write_charges
from compute_hub.billing.charging import charge_jobs
from compute_hub.billing.domain.days import Span, month_of
from compute_hub.billing.tables import ChargedUsageRow
from compute_hub.billing.uncharged import RECORDS_MAX, Streak, Waiting, follows, waiting_usage
from kernel.database import transaction
from scheduler.node.protocol import UsageRecord
from tests.compute_hub.billing.house import HOUR_MS, NOW, House

LENGTHS_MS = (60_000, 1, 0, 5 * HOUR_MS, 60_000, 7 * HOUR_MS, 60_000)
MONTH_END_MS = int(NOW.timestamp() * 1000) + 21 * 24 * HOUR_MS  # 31 March, 10 in the morning


def placed(house: House, number: int) -> UUID:
    job_id = house.submit()
    assert house.admit(job_id, at=NOW + timedelta(milliseconds=number)) is None
    return job_id


def told(house: House, job_id: UUID, number: int) -> list[UsageRecord]:
    """Records of which some are missing, some last no time, some begin later than the one before ended."""
    offset, records = 0, []
    for k in range(3 + number * 2):
        length = LENGTHS_MS[(number * 5 + k * 3) % len(LENGTHS_MS)]
        record = house.record(job_id, k, length, offset_ms=offset, started_unix_ms=MONTH_END_MS)
        offset += length + (7 if (number + k) % 6 == 5 else 0)
        records.append(record)
    return [record for record in records if (number * 3 + record.k) % 11 != 10]


def span(record: UsageRecord) -> Span:
    start = record.started_unix_ms + record.offset_ms
    return Span(start, start + record.duration_ms)


def joinable(before: Streak, after: Streak) -> bool:
    days = {
        (max(one.span.start_ms, one.span.end_ms - 1) + 8 * HOUR_MS) // (24 * HOUR_MS) for one in (before, after)
    }
    lasting = min(before.span.duration_ms, after.span.duration_ms) > 0
    return follows(before, after) and before.span.end_ms == after.span.start_ms and lasting and len(days) == 1


def check(waiting: Waiting, sent: dict[int, UsageRecord]) -> None:
    reached = next(k for k in count() if k not in sent)
    assert all(streak.until_k <= reached for streak in waiting.due)
    assert all(streak.first_k > reached for streak in waiting.behind)
    streaks = [*waiting.due, *waiting.behind]
    assert [k for streak in streaks for k in range(streak.first_k, streak.until_k)] == sorted(sent)
    for streak in streaks:
        spans = [span(sent[k]) for k in range(streak.first_k, streak.until_k)]
        assert all(before.end_ms == after.start_ms for before, after in pairwise(spans))
        assert streak.span == Span(spans[0].start_ms, spans[-1].end_ms)
        assert streak.slot_ms == sum(one.duration_ms for one in spans) * 1000
        assert {month_of(max(one.start_ms, one.end_ms - 1)) for one in spans} == {streak.month}
    assert not any(joinable(before, after) for before, after in pairwise(streaks))


def test_records_are_joined_as_far_as_run_time_width_and_day_allow_and_due_up_to_the_first_gap(
    house: House,
) -> None:
    sent = {}
    for number in range(12):
        job_id = placed(house, number)
        sent[job_id] = told(house, job_id, number)
        house.meter(*sent[job_id])
    with Session(house.engine) as session:
        found = waiting_usage(session, sent)
    for job_id, records in sent.items():
        check(found[job_id], {record.k: record for record in records})
    assert {streak.month for waiting in found.values() for streak in waiting.due} == {"2026-03", "2026-04"}


@pytest.mark.slow
def test_of_a_job_with_very_many_records_the_first_are_charged_first_and_the_rest_afterwards(
    house: House,
) -> None:
    job_id = placed(house, 0)
    house.meter(*(house.record(job_id, k, 10, offset_ms=k * 10) for k in range(RECORDS_MAX + 2)))
    house.end(job_id)
    for _ in range(2):
        with transaction(house.engine) as session:
            charge_jobs(session, [job_id], NOW)
    ranges = "SELECT n, first_k, until_k FROM charged_usage JOIN charges ON charges.id = charge_id ORDER BY n"
    assert house.sql(ranges) == [(0, 0, RECORDS_MAX), (1, RECORDS_MAX, RECORDS_MAX + 2)]


def test_a_record_is_charged_once_whatever_the_biller_believes(house: House) -> None:
    job_id = placed(house, 0)
    house.meter(*(house.record(job_id, k, 1000, offset_ms=k * 1000) for k in range(4)))
    with Session(house.engine) as session:
        (streak,) = waiting_usage(session, [job_id])[job_id].due
    with transaction(house.engine) as session:
        (charge_id,) = charge_jobs(session, [job_id], NOW).charges
    with pytest.raises(RecordsTaken), transaction(house.engine) as session:
        write_charges(session, Written(done=[streak]))
    for first, until in ((0, 1), (1, 2), (3, 9)):
        with pytest.raises(IntegrityError), transaction(house.engine) as session:
            session.add(
                ChargedUsageRow(
                    job_id=job_id, attempt=1, rank=0, first_k=first, until_k=until, charge_id=charge_id
                )
            )
