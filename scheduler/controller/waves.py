"""For how long the controller gathers words between two steps, as learnt from how long short jobs take.

What a node was told to start together is a wave. Looked at too soon, few of it have ended, and a step costs little
more for many than for few; looked at too late, the node's devices stand free. What is right depends on the machine and
on what else it does. Invariant: only a node's own clock is read, and jobs that go on teach nothing. All may be lost.
"""

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from scheduler.node.protocol import Report, RunState

_BREATH_MS: Final = 40
_BREATH_MS_MAX: Final = 200
"""Between two steps as long as the last one took, within these bounds, so that under load a step serves many words
and leaves the machine to others half of the time; the first word after a pause is served at once. Where nothing was
started and nobody waits, there is no load, and only the second holds."""

_START_MS: Final = 6
"""… and as long as the waves it started should take; where nothing is known of them, so much for each job and more."""

_ROOM_SHARE: Final = 4
"""Where devices are known to have come free, only so small a part of what the last step took; so, too, where all that
was started is over."""

_AHEAD: Final = 2
"""The first job of a wave takes longer by about what so many more of them take."""

_SHORT_MS: Final = 400
"""What has not ended so long after it was seen to start goes on."""

_JOB_US_MAX: Final = 20_000
"""What a node takes for a job more in a wave; between 7 and 12 ms were seen. More is the jobs' own time, for which
nobody else should wait."""

_LONGER: Final = 2
_SHORTER: Final = 4
"""A longer wave counts half of what is known from then on, a shorter one a quarter: where waves differ, waiting for
most of them to end costs less than a second step."""


def breath_ms(took_ms: int, wave_ms: int | None, *, starts: int, room: bool, waiting: bool) -> int:
    """How long to gather words after a step.

    Args:
        took_ms: how long the step took.
        wave_ms: in how long the waves it started should be over, if that is known (`Waves.over_ms`).
        starts: how many jobs it started.
        room: whether it left devices that came free to the next step.
        waiting: whether any job waits.
    """
    if not (starts or room or waiting):
        return min(took_ms, _BREATH_MS_MAX)
    if wave_ms is None:
        wave_ms = 0 if room else _BREATH_MS + _START_MS * starts
    least_ms = max(_BREATH_MS, took_ms // _ROOM_SHARE if room else took_ms)
    return min(max(wave_ms, least_ms), _BREATH_MS_MAX)


def least_ms(took_ms: int) -> int:
    """How long to gather words after a step that took so long, though all that was started may be over sooner."""
    return took_ms // _ROOM_SHARE


@dataclass
class _Node:
    wave: frozenset[str] = frozenset()
    """Runs that it was starting when it was last seen to begin one, of which nothing has been learnt yet."""
    size: int = 0
    """How many they were."""
    began_boot_ms: int = 0
    """When that was, by its own clock."""
    heard_boot_ms: int = 0
    """When it was last heard of, by the same clock."""
    job_us: int | None = None
    """What was learnt: by how much a wave takes longer for each job in it."""

    @property
    def age_ms(self) -> int:
        """How old its wave was when it was last heard of."""
        return self.heard_boot_ms - self.began_boot_ms

    @property
    def expected_ms(self) -> int | None:
        """How long its wave should take; None while nothing is known."""
        return None if self.job_us is None else (self.size + _AHEAD) * self.job_us // 1000

    def took(self, wave_ms: int) -> None:
        """Its wave took so long, and teaches no more: what is left of it goes on, or counts as one that begins."""
        self.wave = frozenset()
        job_us = min(wave_ms * 1000 // (self.size + _AHEAD), _JOB_US_MAX)
        if self.job_us is None:
            self.job_us = job_us
        else:
            self.job_us += (job_us - self.job_us) // (_LONGER if job_us > self.job_us else _SHORTER)


def starting_runs(report: Report) -> frozenset[str]:
    """The runs that a node is still starting."""
    return frozenset(run.run_id for run in report.runs if run.state is RunState.STARTING)


class Waves:
    """What one term of leadership has learnt of its nodes."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def heard(self, name: str, report: Report) -> None:
        """Learn from what a node says of its wave, and see whether it has begun another."""
        node = self._nodes.setdefault(name, _Node())
        node.heard_boot_ms = report.boot_ms
        starting = starting_runs(report)
        ended = {run.run_id: run.ended_boot_ms for run in report.runs if run.state is RunState.ENDED}
        if node.wave:
            after_ms = [
                at - node.began_boot_ms for run, at in ended.items() if run in node.wave and at is not None
            ]
            short_ms = [one for one in after_ms if 0 <= one <= _SHORT_MS]
            _learn(node, short_ms, starting=bool(starting & node.wave))
        node.wave -= ended.keys()
        if starting - node.wave:
            node.wave, node.size, node.began_boot_ms = starting, len(starting), report.boot_ms

    def awaited(self, names: AbstractSet[str]) -> dict[str, frozenset[str]]:
        """By node the runs of its wave; none at all if of one of these nodes no wave is known."""
        waves = {name: self._nodes[name].wave for name in names if name in self._nodes}
        return waves if waves.keys() == names and all(waves.values()) else {}

    def over_ms(self, names: Iterable[str]) -> int | None:
        """In how long the waves of all these nodes should be over; None while nothing is known of any."""
        nodes = [self._nodes[name] for name in names if name in self._nodes]
        expected = [(node.expected_ms, node.age_ms) for node in nodes]
        return max((wave_ms - age_ms for wave_ms, age_ms in expected if wave_ms is not None), default=None)


def _learn(node: _Node, ends_ms: Collection[int], *, starting: bool) -> None:
    """Learn from a look at a wave.

    If only some have ended, either the others go on, which shows by nobody having ended for a quarter of the time, or
    it was looked at too soon: then the wave is taken to last a quarter longer than until now.

    Args:
        node: whose wave it is.
        ends_ms: after how long those ended that were short.
        starting: whether some are starting still.
    """
    last_ms, later_ms = max(ends_ms, default=None), 5 * node.age_ms // 4
    if last_ms is None:
        if node.age_ms > _SHORT_MS and not starting:
            node.job_us, node.wave = None, frozenset()
    elif len(ends_ms) == len(node.wave) or 4 * last_ms <= 3 * node.age_ms:
        node.took(last_ms)
    elif later_ms > (node.expected_ms or 0):
        node.took(later_ms)
