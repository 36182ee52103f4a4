"""Which nodes a controller has watched, and which it asks again by itself."""

import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread
from typing import Final
from uuid import UUID

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from kernel.clock import boottime_ms, unix_ms, utc_now
from scheduler.controller.loop import Controller, Pace
from scheduler.controller.wakeups import Wakeups, over
from scheduler.controller.watching import Nobody, Step, Watcher
from scheduler.jobs import WAKE_CHANNEL
from scheduler.node.protocol import Report, RunState
from scheduler.tables import RunRow
from tests.conftest import Database
from tests.scheduler.controller.counted import Centre, Counted, as_it_is

LONG_S: Final = 3600
JOB_MS: Final = 10_000


def starting(report: Report) -> Report:
    """As a node reports that still prepares what it has just been told to start."""
    return replace(report, runs=tuple(replace(run, state=RunState.STARTING) for run in report.runs))


def test_a_node_where_a_job_is_starting_is_asked_by_the_next_step_and_watched_after_it(centre: Centre) -> None:
    centre.tick()
    assert centre.machines.watched == {"n"}
    centre.machines.falsified = starting
    centre.submit()
    centre.tick()
    assert centre.machines.watched == frozenset()
    words = centre.wakeups.wait(0)
    assert words == {"n"}
    asked = len(centre.machines.requests)
    centre.controller.step(words, ticking=False)
    assert len(centre.machines.requests) == asked + 1
    assert centre.machines.watched == {"n"}  # a start that takes its time is waited for, not asked for
    assert centre.wakeups.wait(0) == set()


def test_a_controller_awaits_the_end_of_what_it_has_just_started(centre: Centre) -> None:
    centre.machines.falsified = starting
    job_id = centre.submit()
    thread = Thread(target=centre.controller.run)
    thread.start()
    try:
        while not centre.machines.ahead:
            os.sched_yield()
    finally:
        centre.controller.stop()
        thread.join()
    with Session(centre.engine) as session:
        run_ids = session.scalars(select(RunRow.id).where(RunRow.job_id == job_id)).all()
    assert set(centre.machines.ahead[0]["n"].runs) == set(map(str, run_ids))


def ended_since(centre: Centre) -> Report:
    """What a node answers to what it was asked ahead when all it was starting is over."""
    ((name, request),) = centre.machines.ahead[-1].items()
    now_ms, wall_ms = boottime_ms() + JOB_MS, unix_ms(utc_now()) + JOB_MS
    centre.machines.nodes[name].advance(now_ms, wall_ms)
    return centre.machines.nodes[name].sync(request.sync, now_ms, wall_ms)[0]


def ask_ahead(centre: Centre) -> UUID:
    """A job is starting, and its node is asked ahead as between two steps; the next step has not begun."""
    centre.machines.falsified = starting
    job_id = centre.submit(JOB_MS)
    centre.tick()
    centre.controller._expect(LONG_S * 1000)  # noqa: SLF001 - `run` would go on with the next step
    centre.machines.falsified = as_it_is
    centre.wakeups.wait(0)
    return job_id


def test_what_a_node_that_was_asked_ahead_reports_is_heard_without_asking_it_again(centre: Centre) -> None:
    job_id = ask_ahead(centre)
    centre.machines.came["n"] = ended_since(centre)
    asked = len(centre.machines.requests)
    centre.controller.step({"n", over("n")}, ticking=False)
    assert centre.job(job_id).state == "succeeded"
    assert len(centre.machines.requests) == asked
    assert set(centre.free.usage)


def test_a_node_that_was_asked_ahead_and_has_not_reported_is_asked_and_what_it_was_asked_is_overtaken(
    centre: Centre,
) -> None:
    job_id = ask_ahead(centre)
    asked = len(centre.machines.requests)
    centre.controller.step({"n"}, ticking=False)
    assert len(centre.machines.requests) == asked + 1
    assert centre.machines.requests[-1][1].number > centre.machines.ahead[-1]["n"].sync.number
    assert centre.job(job_id).state == "running"
    centre.machines.came["n"] = ended_since(centre)  # late, and to nobody's question
    centre.controller.step({"n"}, ticking=False)
    assert len(centre.machines.requests) == asked + 2


def test_another_host_that_answers_what_was_asked_ahead_is_not_heard(centre: Centre) -> None:
    job_id = ask_ahead(centre)
    centre.machines.came["n"] = replace(ended_since(centre), host_id="another")
    centre.controller.step({"n", over("n")}, ticking=False)
    assert centre.job(job_id).state == "starting"


def test_a_node_that_was_given_up_since_it_was_asked_ahead_is_asked_anew(centre: Centre) -> None:
    job_id = ask_ahead(centre)
    centre.machines.came["n"] = ended_since(centre)
    asked = len(centre.machines.requests)
    centre.controller._led.nodes._nodes["n"].heard_boot_ms = 0  # noqa: SLF001 - as if the controller had stood still
    centre.controller.step({"n", over("n")}, ticking=True)
    assert centre.ends(job_id) == ["node_lost"]
    assert len(centre.machines.requests) > asked
    assert centre.machines.requests[asked][1].as_of_boot_ms == 0


def fails(report: Report) -> Report:
    raise OSError(report.node)


def test_a_step_that_fails_while_it_asks_asks_nothing_ahead(centre: Centre) -> None:
    job_id = ask_ahead(centre)
    ahead = list(centre.machines.ahead)
    centre.machines.falsified = fails
    centre.controller.attempt({"n"}, ticking=False)
    centre.controller._expect(LONG_S * 1000)  # noqa: SLF001 - as after every step
    assert centre.machines.ahead == ahead
    centre.machines.falsified = as_it_is
    centre.controller.attempt({WAKE_CHANNEL}, ticking=True)
    assert centre.job(job_id).state == "running"


def test_who_cannot_be_asked_ahead_does_not_end_the_loop(centre: Centre) -> None:
    centre.machines.breaks = 1
    centre.machines.falsified = starting
    centre.submit()
    thread = Thread(target=centre.controller.run)
    thread.start()
    try:
        while centre.machines.breaks:
            os.sched_yield()
        job_id = centre.submit()
        centre.wakeups.put(WAKE_CHANNEL)
        while not centre.machines.ahead:
            assert thread.is_alive()
            os.sched_yield()
    finally:
        centre.controller.stop()
        thread.join()
    assert centre.job(job_id).state == "starting"


class Told(Nobody):
    """What was told, and how often the nodes had been asked by then."""

    def __init__(self, machines: Counted) -> None:
        self.machines = machines
        self.steps: list[tuple[str, int]] = []

    def moved(self, steps: Sequence[Step]) -> None:
        self.steps += [(step.name, len(self.machines.requests)) for step in steps]


def watched_by(centre: Centre, watcher: Watcher) -> Controller:
    centre.controller.resign()
    return Controller(
        centre.engine, centre.machines, centre.free, centre.store,
        holder="w", pace=Pace(60_000, 60_000, 60_000), wakeups=Wakeups(), watcher=watcher,
    )  # fmt: skip


def test_nodes_are_told_of_starts_before_the_watcher_hears_of_anything(centre: Centre) -> None:
    told = Told(centre.machines)
    controller = watched_by(centre, told)
    assert controller.lead()
    controller.step({WAKE_CHANNEL}, ticking=True)
    centre.submit()
    controller.step({WAKE_CHANNEL}, ticking=False)
    asked = len(centre.machines.requests)
    assert [request.desired != () for _, request in centre.machines.requests] == [False] * (asked - 1) + [True]
    assert told.steps == [("admitted", asked), ("started", asked)]


def test_what_was_committed_is_told_though_the_step_fails_after_it(centre: Centre) -> None:
    told = Told(centre.machines)
    controller = watched_by(centre, told)
    assert controller.lead()
    controller.step({WAKE_CHANNEL}, ticking=True)

    def breaks(_: Report) -> Report:
        raise RuntimeError

    centre.submit()
    centre.machines.falsified = breaks
    with pytest.raises(RuntimeError):
        controller.step({WAKE_CHANNEL}, ticking=False)
    assert [name for name, _ in told.steps] == ["admitted"]
    centre.machines.falsified = as_it_is
    controller.step({WAKE_CHANNEL}, ticking=True)
    assert [name for name, _ in told.steps] == ["admitted", "started"]


def test_gathering_ends_when_all_was_said_that_is_expected() -> None:
    wakeups = Wakeups()
    wakeups.expect([over("a"), over("b")])
    for word in (over("b"), "c", over("a")):
        wakeups.put(word)
    assert wakeups.gather(LONG_S, 0) == {over("a"), over("b"), "c"}


def test_gathering_goes_on_while_something_that_is_expected_was_not_said() -> None:
    wakeups = Wakeups()
    wakeups.expect([over("a"), over("b")])
    wakeups.put(over("a"))
    assert wakeups.gather(0.01, 0) == {over("a")}
    with ThreadPoolExecutor(1) as pool:
        gathered = pool.submit(wakeups.gather, LONG_S, 0)
        wakeups.put(over("b"))
        assert gathered.result() == {over("b")}


def test_who_expects_nothing_gathers_for_all_the_time() -> None:
    wakeups = Wakeups()
    wakeups.expect(["a"])
    wakeups.put("a")
    wakeups.expect([])
    began = boottime_ms()
    assert wakeups.gather(0.1, 0) == {"a"}
    assert boottime_ms() - began >= 99


def test_a_node_that_runs_what_it_was_told_is_watched_at_once(centre: Centre) -> None:
    centre.started()
    assert centre.machines.watched == {"n"}
    assert centre.wakeups.wait(0) == set()


def test_a_node_that_does_not_answer_is_not_watched(centre: Centre) -> None:
    centre.tick()
    centre.machines.deaf = True
    centre.tick()
    assert centre.machines.watched == frozenset()


class Failures(Nobody):
    """When rounds ended in an error."""

    def __init__(self) -> None:
        self.at_boot_ms: queue.SimpleQueue[int] = queue.SimpleQueue()

    def failed(self) -> None:
        self.at_boot_ms.put(boottime_ms())


def test_a_leader_rests_between_its_looks_at_a_node_that_it_cannot_give_up(
    centre: Centre, database: Database
) -> None:
    centre.controller.resign()
    owner = create_engine(database.owner_url)
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE nodes ADD CONSTRAINT never_down CHECK (state <> 'down')"))
    owner.dispose()
    failures = Failures()
    centre.machines.deaf = True
    controller = Controller(
        centre.engine, centre.machines, centre.free, centre.store,
        holder="d", pace=Pace(60_000, 60_000, 1), wakeups=Wakeups(), watcher=failures,
    )  # fmt: skip
    thread = Thread(target=controller.run)
    thread.start()
    try:
        first_ms, *_, last_ms = [failures.at_boot_ms.get() for _ in range(6)]
    finally:
        controller.stop()
        thread.join()
    assert last_ms - first_ms >= 5 * 40
