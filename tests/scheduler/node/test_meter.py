from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import derived_id
from scheduler.node.meter import start_meter
from scheduler.node.protocol import DeviceShare, RunSpec

SPEC = RunSpec(
    run_id="r",
    job_id="job",
    tenant_id="t",
    attempt=2,
    rank=1,
    argv=("true",),
    workspace="/w/a",
    log="/w/l",
    devices=(DeviceShare(0), DeviceShare(1, 500, 1000)),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(-50, 10_000), st.booleans()), max_size=30))
def test_records_are_contiguous_and_add_up_to_the_metered_time_exactly(
    steps: list[tuple[int, int, bool]],
) -> None:
    meter = start_meter(SPEC, boot_id="b", boot_ms=1000, unix_ms=5)
    now, cpu, records = 1000, 0, []
    for elapsed, used, cuts in steps:
        now, cpu = now + elapsed, cpu + used
        meter = meter.read(now, cpu)
        if cuts:
            meter, record = meter.cut(final=False)
            records.append(record)
    _, last = meter.cut(final=True)
    records.append(last)
    assert [record.k for record in records] == list(range(len(records)))
    assert sum(record.duration_ms for record in records) == now - 1000
    assert all(a.offset_ms + a.duration_ms == b.offset_ms for a, b in pairwise(records))
    assert all(record.cpu_ms >= 0 for record in records)
    assert [record.final for record in records] == [False] * (len(records) - 1) + [True]
    assert all(record.slot_ms == record.duration_ms * 1500 for record in records)


def test_the_id_of_a_record_is_derived_from_job_attempt_rank_and_number() -> None:
    meter, _ = start_meter(SPEC, boot_id="b", boot_ms=0, unix_ms=0).cut(final=False)
    _, record = meter.cut(final=True)
    assert record.id == str(derived_id("usage", "job", 2, 1, 1))
