"""Energy and memory of jobs: the sensor's word, else an estimate that says so, else nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select, text

from compute_hub.metering.energy import Draw, estimated_energy_mj
from compute_hub.metering.holding import held_time
from compute_hub.metering.tables import UsageRecordRow
from compute_hub.settings import Model
from kernel.database import transaction
from tests.compute_hub.billing.house import HOUR_MS, NOW, House

CARD = Draw(idle_watts=30, peak_watts=250)
DRAWS = {"sim-a": CARD}


@pytest.mark.parametrize(
    ("slot_ms", "busy_ms", "millijoules"),
    [
        (0, 0, 0),
        (1_000_000, 0, 30_000),  # a card, idle for a second
        (1_000_000, 1000, 250_000),
        (1_000_000, 400, 118_000),
        (1_000_000, 9000, 250_000),  # eight processors at work keep one card busy, not eight
        (2_000_000, 1000, 280_000),  # two cards, one of them busy
        (500_000, 500, 125_000),  # half a card
    ],
)
def test_an_estimate_is_idle_power_while_idle_and_peak_power_while_busy(
    slot_ms: int, busy_ms: int, millijoules: int
) -> None:
    assert estimated_energy_mj(slot_ms, busy_ms, CARD) == millijoules


def test_a_record_says_what_energy_it_took_and_how_that_is_known(engine: Engine) -> None:
    house = House(engine)
    job = house.submit()
    assert house.admit(job) is None
    house.meter(house.record(job, 0, 1000, cpu_ms=400))  # nobody declared the model's power
    house.funding = replace(house.funding, draws=DRAWS)
    house.meter(house.record(job, 1, 1000, cpu_ms=400, memory_bytes_max=64))
    measured = house.record(
        job,
        2,
        1000,
        cpu_ms=400,
        memory_bytes_max=96,
        device_busy_ms=900,
        energy_mj=200_000,
        device_memory_bytes_max=7,
    )
    house.meter(measured)
    with transaction(engine) as session:
        rows = session.scalars(select(UsageRecordRow).order_by(UsageRecordRow.k)).all()
        assert [(row.busy_ms, row.energy_mj, row.energy_basis) for row in rows] == [
            (400, None, None),
            (400, 118_000, "estimated"),
            (900, 200_000, "measured"),
        ]
        (held,) = held_time(session, at=NOW + timedelta(hours=1), job_id=job)
        assert (held.energy_mj, held.energy_estimated, held.memory_bytes_max) == (318_000, True, 96)
        assert held.device_memory_bytes_max == 7
        assert held.busy_ms == 1700


def test_energy_of_a_job_without_records_is_not_known_instead_of_zero(engine: Engine) -> None:
    house = House(engine)
    job = house.submit()
    assert house.admit(job) is None
    house.meter(house.record(job, 0, HOUR_MS))
    with transaction(engine) as session:
        (held,) = held_time(session, at=NOW + timedelta(hours=1), job_id=job)
        assert (held.energy_mj, held.energy_estimated) == (None, False)
        assert session.scalar(text("SELECT count(*) FROM usage_records WHERE energy_mj IS NOT NULL")) == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"idle_watts": 30}, "both idle_watts and peak_watts"),
        ({"idle_watts": 300, "peak_watts": 250}, "must not be above"),
        ({"idle_watts": -1, "peak_watts": 250}, "greater than or equal to 0"),
    ],
)
def test_a_declared_power_that_cannot_be_meant_is_refused(fields: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Model(tflops=96, **fields)
