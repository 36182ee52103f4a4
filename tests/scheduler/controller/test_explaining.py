"""Why jobs wait is written down beside everybody else who changes them."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select
from sqlalchemy.orm import Session

from scheduler.tables import JobRow
from tests.scheduler.controller.counted import Centre


def test_a_job_that_somebody_is_changing_is_explained_later_and_keeps_nobody_waiting(centre: Centre) -> None:
    centre.started(devices_per_node=4)
    changed, other = sorted(centre.submit(devices_per_node=4) for _ in range(2))
    before = centre.job(changed).reason
    with Session(centre.engine) as somebody, ThreadPoolExecutor(1) as thread:
        somebody.execute(select(JobRow.id).where(JobRow.id == changed).with_for_update())
        try:
            thread.submit(centre.tick).result(timeout=20)
        finally:
            somebody.rollback()
    assert centre.job(changed).reason == before
    assert centre.job(other).reason.startswith("waiting for 4 free sim-a")
    centre.tick()
    assert centre.job(changed).reason.startswith("waiting for 4 free sim-a")
