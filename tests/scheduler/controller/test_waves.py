"""How long short jobs are left alone is learnt of each node; time is an argument, nobody waits here."""

from collections.abc import Iterable, Mapping

import pytest

from scheduler.controller.waves import Waves, breath_ms, least_ms
from scheduler.node.protocol import Isolation, Report, RunState, RunStatus


def run(name: str, state: RunState, ended_boot_ms: int | None = None) -> RunStatus:
    return RunStatus(name, "job", 1, 0, state, ended_boot_ms=ended_boot_ms)


def report(
    boot_ms: int,
    *,
    starting: Iterable[str] = (),
    running: Iterable[str] = (),
    ended: Mapping[str, int | None] | None = None,
) -> Report:
    runs = [run(name, RunState.STARTING) for name in starting]
    runs += [run(name, RunState.RUNNING) for name in running]
    runs += [run(name, RunState.ENDED, at) for name, at in (ended or {}).items()]
    nothing = {"usage": (), "usage_pending": 0, "refused": (), "devices": (), "labels": {}}
    told = {"node": "n", "host_id": "h", "boot_id": "b", "instance": "i", "epoch_seen": 1, "seq": 1}
    return Report(
        boot_ms=boot_ms,
        runs=tuple(runs),
        isolation=Isolation("user"),
        cpu_milli=1000,
        memory_mib=1000,
        **nothing,
        **told,
    )


class Machine:
    """A node that ends the jobs of a wave one after the other, looked at as soon as the wave should be over."""

    def __init__(self, *, first_ms: int, job_ms: int, waves: Waves | None = None, name: str = "n") -> None:
        self.first_ms, self.job_ms, self.name = first_ms, job_ms, name
        self.waves = waves or Waves()
        self.now_ms = 10_000
        self.begun = 0

    def begin(self, size: int) -> dict[str, int]:
        """Start so many; when each will end."""
        self.begun += 1
        names = [f"{self.begun}-{index}" for index in range(size)]
        self.waves.heard(self.name, report(self.now_ms, starting=names))
        return {name: self.now_ms + self.first_ms + self.job_ms * index for index, name in enumerate(names, 1)}

    def look(self, ends: Mapping[str, int], after_ms: int) -> int:
        """How many had ended by then."""
        self.now_ms += after_ms
        ended = {name: at for name, at in ends.items() if at <= self.now_ms}
        self.waves.heard(self.name, report(self.now_ms, running=ends.keys() - ended.keys(), ended=ended))
        return len(ended)

    def rest_ms(self) -> int:
        return breath_ms(40, self.waves.over_ms([self.name]), starts=16, room=False, waiting=True)

    def play(self, waves: int, size: int = 8) -> list[int]:
        """So many waves; how many jobs of each had ended when it was looked at."""
        return [self.look(self.begin(size), self.rest_ms()) for _ in range(waves)]


@pytest.mark.parametrize(("first_ms", "job_ms"), [(5, 4), (15, 7), (25, 12), (30, 18)])
def test_a_wave_is_looked_at_when_it_has_just_ended_on_fast_and_slow_machines(
    first_ms: int, job_ms: int
) -> None:
    node = Machine(first_ms=first_ms, job_ms=job_ms)
    node.play(30)
    node.begin(8)
    took_ms = first_ms + 8 * job_ms
    assert max(40, took_ms) <= node.rest_ms() <= max(40, took_ms * 5 // 4)


def test_a_machine_that_becomes_slower_is_followed_within_a_few_waves() -> None:
    node = Machine(first_ms=15, job_ms=7)
    assert node.play(8)[-1] == 8
    node.first_ms, node.job_ms = 25, 14
    early = node.play(12)
    assert early[0] < 8
    assert early[-6:] == [8] * 6


def test_a_machine_that_becomes_faster_is_followed_within_a_few_waves() -> None:
    node = Machine(first_ms=30, job_ms=18)
    node.play(10)
    node.first_ms, node.job_ms = 15, 7
    node.play(15)
    node.begin(8)
    assert 71 <= node.rest_ms() <= 80


def test_a_longer_wave_counts_more_than_a_shorter_one() -> None:
    node = Machine(first_ms=0, job_ms=10)
    for job_ms in (10, 15) * 10:
        node.job_ms = job_ms
        node.look(node.begin(8), 130)
    node.begin(8)
    assert 100 < node.rest_ms() < 120


def test_what_was_learnt_of_large_waves_serves_small_ones() -> None:
    node = Machine(first_ms=20, job_ms=10)
    node.play(6)
    node.begin(4)
    assert 60 <= node.rest_ms() <= 70


def test_jobs_that_go_on_stretch_the_rest_by_a_third_at_most() -> None:
    node = Machine(first_ms=15, job_ms=7)
    rests = []
    for _ in range(30):
        ends = node.begin(4)
        long = {f"{name}-long": at + 60_000 for name, at in ends.items()}
        node.waves.heard("n", report(node.now_ms, starting=[*ends, *long]))
        rests.append(node.rest_ms())
        node.look(ends | long, rests[-1])
    assert max(rests[5:]) <= (15 + 4 * 7) * 5 // 3 + 10


def test_where_nothing_short_runs_any_more_nothing_is_known() -> None:
    node = Machine(first_ms=15, job_ms=7)
    node.play(5)
    ends = {name: at + 60_000 for name, at in node.begin(8).items()}
    node.look(ends, 80)
    assert node.waves.over_ms(["n"]) is not None
    node.look(ends, 400)
    assert node.waves.over_ms(["n"]) is None
    node.look(ends, 70_000)
    assert node.waves.over_ms(["n"]) is None


def test_where_all_is_over_that_was_started_a_long_step_makes_no_long_rest() -> None:
    took_ms, wave_ms = 100, 80
    assert breath_ms(took_ms, wave_ms, starts=16, room=False, waiting=True) == took_ms
    assert least_ms(took_ms) == took_ms // 4


def test_a_job_that_lasts_longer_than_short_ones_teaches_nothing() -> None:
    waves = Waves()
    waves.heard("n", report(1000, starting=["a"]))
    waves.heard("n", report(3000, ended={"a": 2900}))
    assert waves.over_ms(["n"]) is None


def test_for_a_single_job_nobody_waits_as_long_as_it_lasts() -> None:
    waves = Waves()
    for number in range(20):
        began_ms = 1000 * number
        waves.heard("n", report(began_ms, starting=[f"{number}"]))
        waves.heard("n", report(began_ms + 350, ended={f"{number}": began_ms + 300}))
    waves.heard("n", report(50_000, starting=["last"]))
    assert waves.over_ms(["n"]) == 60


def test_a_wave_that_was_looked_at_for_another_reason_is_left_alone_for_what_is_left_of_it() -> None:
    node = Machine(first_ms=15, job_ms=7)
    node.play(8)
    ends = node.begin(8)
    node.now_ms += 20  # a tick
    node.waves.heard("n", report(node.now_ms, starting=ends))
    assert 51 <= (node.waves.over_ms(["n"]) or 0) <= 60
    assert node.look(ends, node.rest_ms()) == 8


def test_a_run_that_failed_and_says_no_time_teaches_nothing() -> None:
    waves = Waves()
    waves.heard("n", report(1000, starting=["a"]))
    waves.heard("n", report(1050, ended={"a": None}))
    assert waves.over_ms(["n"]) is None


def test_a_clock_that_began_anew_teaches_nothing() -> None:
    waves = Waves()
    waves.heard("n", report(1_000_000, starting=["a"]))
    waves.heard("n", report(50, ended={"a": 40}))
    assert waves.over_ms(["n"]) is None


def test_of_several_nodes_the_slowest_is_waited_for() -> None:
    waves = Waves()
    fast = Machine(first_ms=15, job_ms=7, waves=waves, name="fast")
    slow = Machine(first_ms=25, job_ms=12, waves=waves, name="slow")
    for node in (fast, slow):
        node.play(8)
        node.begin(8)
    assert waves.over_ms(["fast", "slow", "unknown"]) == waves.over_ms(["slow"])
    assert (waves.over_ms(["fast"]) or 0) < (waves.over_ms(["slow"]) or 0)


@pytest.mark.parametrize(
    ("took_ms", "wave_ms", "starts", "room", "gathers_ms"),
    [
        (10, None, 0, False, 40),  # at least
        (90, None, 0, False, 90),  # as long as the step
        (10, None, 16, False, 136),  # nothing is known of what it started
        (900, None, 16, False, 200),  # at most
        (10, 75, 16, False, 75),  # as long as the wave
        (90, 75, 16, False, 90),  # but half of the time is others'
        (10, -30, 1, False, 40),  # which should be over
        (10, 900, 16, False, 200),
        (90, None, 16, True, 40),  # devices are free
        (400, None, 16, True, 100),
        (90, 75, 16, True, 75),  # most of them work
    ],
)
def test_how_long_words_are_gathered_between_two_steps(
    took_ms: int,
    wave_ms: int | None,
    starts: int,
    room: bool,  # noqa: FBT001 - a column of the table
    gathers_ms: int,
) -> None:
    assert breath_ms(took_ms, wave_ms, starts=starts, room=room, waiting=True) == gathers_ms


@pytest.mark.parametrize(("took_ms", "gathers_ms"), [(3, 3), (90, 90), (900, 200)])
def test_where_nothing_was_started_and_nobody_waits_only_half_of_the_time_is_left_to_others(
    took_ms: int, gathers_ms: int
) -> None:
    assert breath_ms(took_ms, None, starts=0, room=False, waiting=False) == gathers_ms


def test_what_is_awaited_of_a_node_are_the_runs_that_it_was_starting() -> None:
    waves = Waves()
    waves.heard("n", report(0, starting=["a", "b"], running=["c"]))
    waves.heard("m", report(0, running=["d"]))
    assert waves.awaited({"n"}) == {"n": {"a", "b"}}
    assert waves.awaited({"m", "n"}) == waves.awaited({"n", "o"}) == waves.awaited(set()) == {}
