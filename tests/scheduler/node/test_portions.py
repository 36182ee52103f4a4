"""A report that cannot carry all usage carries some of every run's."""

from scheduler.node.meter import Meter
from scheduler.node.portions import USAGE_PER_REPORT_MAX, portion
from scheduler.node.protocol import UsageRecord


def _records(run_id: str, count: int) -> list[UsageRecord]:
    meter = Meter(run_id, f"job-{run_id}", "t", 1, 0, (), "boot", 0, 0, 0, 0)
    records = []
    for _ in range(count):
        meter, record = meter.read(meter.until_boot_ms + 10, 0).cut(final=False)
        records.append(record)
    return records


def test_what_fits_goes_as_it_came() -> None:
    records = [*_records("a", 600), *_records("b", 400)]
    assert portion(records, turn=3) == tuple(records)


def test_a_run_whose_records_nobody_takes_keeps_no_others_from_the_controller() -> None:
    stuck, late = _records("stuck", 3 * USAGE_PER_REPORT_MAX), _records("late", 5)
    told = portion([*stuck, *late], turn=0)
    assert len(told) == USAGE_PER_REPORT_MAX
    assert [record for record in told if record.run_id == "late"] == late
    first = [record for record in told if record.run_id == "stuck"]
    assert first == stuck[: USAGE_PER_REPORT_MAX - 5]


def test_of_more_runs_than_records_fit_each_in_turn_has_one() -> None:
    records = [record for run in range(1500) for record in _records(f"r{run}", 2)]
    told = portion(records, turn=0)
    assert [(record.run_id, record.k) for record in told] == [
        (f"r{run}", 0) for run in range(USAGE_PER_REPORT_MAX)
    ]


def test_of_more_runs_than_records_fit_all_have_their_turn_though_nobody_takes_those_told_first() -> None:
    records = [record for run in range(2500) for record in _records(f"r{run}", 1)]
    told = [portion(records, turn) for turn in range(3)]
    assert [len(one) for one in told] == 3 * [USAGE_PER_REPORT_MAX]
    assert {record for one in told for record in one} == set(records)
