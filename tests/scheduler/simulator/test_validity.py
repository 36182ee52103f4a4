"""Whatever cluster and workload hypothesis makes, the event log is valid, complete and the same twice."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.policy.model import Job, Queue, Quota, Reservation, Topology
from scheduler.policy.settings import POLICIES
from scheduler.simulator.generator import WorkloadShape, generate
from scheduler.simulator.workload import Cluster, Failure, TraceJob, uniform_cluster
from tests.scheduler.policy.builders import node
from tests.scheduler.simulator.logs import judged
from tests.scheduler.validity import differences, faults, reclaims

QUOTAS = st.builds(
    Quota,
    st.just(0),
    st.sampled_from([None, 0, 2000, 6000]),
    st.sampled_from([None, None, 0, 1000]),
    st.sampled_from([1, 2]),
)
FREE = (Queue("alpha", max_wait_ms=600_000), Queue("beta", max_wait_ms=3_000_000), Queue("gamma"))


@st.composite
def trees(draw: st.DrawFn) -> tuple[Queue, ...]:
    """Queues without any bound, or two levels of guarantees, borrow and lend limits, and limits on jobs."""
    if draw(st.booleans()):
        return FREE
    alpha, beta, gamma = (
        replace(draw(QUOTAS), guarantee_milli=guarantee)
        for guarantee in (4000, 2000, draw(st.sampled_from([0, 4000])))
    )
    firms = Quota(8000, draw(st.sampled_from([None, 2000, 8000])))
    return (
        Queue("firms", quotas={"A100": firms, "910B": Quota(4000)}),
        Queue("alpha", "firms", {"A100": alpha}),
        Queue(
            "beta", "firms", {"A100": beta}, running_max=draw(st.sampled_from([None, 6])), user_running_max=3
        ),
        Queue("gamma", quotas={"A100": gamma}),
    )


@st.composite
def jobs(draw: st.DrawFn) -> tuple[TraceJob, ...]:
    rows = []
    priorities = draw(st.sampled_from([0, 2]))
    for number in range(draw(st.integers(1, 24))):
        duration = draw(st.integers(1, 4000)) * 1000
        devices, nodes = draw(st.sampled_from([0, 1, 1, 2, 4])), draw(st.sampled_from([1, 1, 1, 2, 3]))
        fraction = devices == 1 and draw(st.booleans())
        in_array = draw(st.integers(0, 4)) == 0
        job = Job(
            id=f"j{number:02d}",
            queue=draw(st.sampled_from(["alpha", "beta", "gamma"])),
            submitted_ms=draw(st.integers(0, 3000)) * 1000,
            time_limit_ms=round(duration * draw(st.sampled_from([0.5, 1, 1.5, 3]))),
            user=draw(st.sampled_from(["u", "v"])),
            estimate_ms=draw(st.one_of(st.none(), st.integers(1000, 5_000_000))),
            models=draw(st.sampled_from([(), ("A100",), ("910B",), ("910B", "A100")])),
            min_pflops_milli=draw(st.sampled_from([0, 0, 0, 315])),
            nodes=nodes,
            devices_per_node=devices,
            tail_devices=2 if (nodes, devices) == (2, 4) else 0,
            slots_milli=draw(st.sampled_from([250, 500, 700])) if fraction else 1000,
            cpu_milli=draw(st.sampled_from([0, 1000, 3000])),
            memory_mib=draw(st.sampled_from([0, 100])),
            priority=draw(st.integers(0, priorities)),
            preemptible=draw(st.booleans()),
            topology=draw(st.sampled_from(list(Topology))),
            depends_on=(f"j{draw(st.integers(0, number - 1)):02d}",) if number and draw(st.booleans()) else (),
            not_before_ms=draw(st.sampled_from([0, 2_000_000])),
            array_id="array" if in_array else "",
            array_running_max=2 if in_array else 0,
        )
        rows.append(TraceJob(job, duration))
    return tuple(rows)


MACHINES = (
    *(
        node(f"a{i}", 4, "A100", cpu_milli=8000, memory_mib=500, pflops_milli=312, topology=("z", f"s{i // 2}"))
        for i in range(4)
    ),
    *(node(f"h{i}", 4, "910B", cpu_milli=8000, memory_mib=500, pflops_milli=320) for i in range(2)),
)
FAILURES = st.lists(
    st.builds(
        Failure,
        st.sampled_from(["a0", "a3", "h1"]),
        st.integers(0, 4000).map(lambda second: second * 1000),
        st.just(5_000_000),
    ),
    max_size=2,
    unique_by=lambda failure: failure.node,
).map(tuple)
RESERVATIONS = st.lists(
    st.builds(
        Reservation,
        st.just("r"),
        st.sampled_from([("a1",), ("a1", "a2"), ("h0",)]),
        st.integers(0, 2000).map(lambda second: second * 1000),
        st.just(3_000_000),
        st.sampled_from([frozenset(), frozenset({"j00", "j01"})]),
    ),
    max_size=1,
).map(tuple)
RULES = {"min_run_ms": 60_000, "grace_ms": 5000}


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(jobs(), trees(), FAILURES, RESERVATIONS, st.sampled_from(["default", "default", "easy", "srsf", "fifo"]))
def test_every_log_is_valid_and_repeatable(
    work: tuple[TraceJob, ...],
    queues: tuple[Queue, ...],
    failures: tuple[Failure, ...],
    reservations: tuple[Reservation, ...],
    policy: str,
) -> None:
    place = Cluster(MACHINES, queues, reservations, failures)
    rules = replace(POLICIES[policy], **RULES)
    log, _ = judged(place, work, queues, rules)
    assert faults(log) == []
    assert differences(log, judged(place, work, queues, rules)[0]) == []


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Cluster, tuple[TraceJob, ...]]:
    """Jobs alike but for limit and owner, in queues that tenants share, beside reservations for all kinds of people."""
    machines = (*(node(f"a{i}", 4, "A100") for i in range(2)), node("h0", 4, "910B"))
    models = draw(st.sampled_from([("A100",), ("A100", "910B")]))
    rows = []
    for number in range(draw(st.integers(2, 16))):
        duration = draw(st.integers(1, 4000)) * 1000
        job = Job(
            id=f"j{number:02d}",
            queue=draw(st.sampled_from(["alpha", "alpha", "beta"])),
            tenant=draw(st.sampled_from(["x", "y"])),
            submitted_ms=draw(st.integers(0, 1500)) * 1000,
            time_limit_ms=duration * draw(st.sampled_from([1, 1, 3])),
            models=models,
            devices_per_node=draw(st.sampled_from([1, 1, 1, 2])),
        )
        rows.append(TraceJob(job, duration))
    kept = [
        Reservation(
            f"r{number}",
            draw(st.sampled_from([("a0", "a1"), ("a1",), ("a0", "a1", "h0")])),
            from_ms := draw(st.integers(0, 4000)) * 1000,
            from_ms + draw(st.integers(1, 9000)) * 1000,
            draw(st.sampled_from([frozenset(), frozenset(), frozenset({"j00", "j03", "j07"})])),
            draw(st.sampled_from(["", "", "x"])),
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    bound = Quota(0, draw(st.sampled_from([None, 0])))
    queues = (Queue("alpha", max_wait_ms=900_000), Queue("beta", quotas={"910B": bound}))
    return Cluster(machines, queues, tuple(kept)), tuple(rows)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(crowds(), st.sampled_from(["default", "easy", "srsf"]))
def test_who_is_kept_from_reserved_nodes_keeps_nobody_else_from_them(
    made: tuple[Cluster, tuple[TraceJob, ...]], policy: str
) -> None:
    place, work = made
    log, _ = judged(place, work, place.queues, replace(POLICIES[policy], **RULES))
    assert faults(log) == []


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(jobs(), trees())
def test_every_job_that_can_run_ends(work: tuple[TraceJob, ...], queues: tuple[Queue, ...]) -> None:
    log, _ = judged(Cluster(MACHINES, queues), work, queues, replace(POLICIES["default"], **RULES))
    ended = {one.job for one in log.attempts if one.reason in {"finished", "timed_out"}}
    hopeless = {one.job for one in log.attempts if one.reason == "timed_out"} | log.impossible
    for job, _ in work:
        if any(needed in hopeless for needed in job.depends_on):
            hopeless.add(job.id)
    assert {job.id for job, _ in work} - ended - hopeless == set()


@st.composite
def guaranteed(draw: st.DrawFn) -> tuple[Cluster, tuple[TraceJob, ...]]:
    """Nodes all of which are guaranteed to somebody, and jobs of which all are single devices or whole nodes."""
    nodes, devices = draw(st.sampled_from([(1, 4), (2, 4), (4, 1), (4, 4)]))
    whole = draw(st.booleans())
    total = nodes * devices
    first = draw(st.integers(0, total))
    second = draw(st.integers(0, total - first))
    borrow, lend = st.sampled_from([None, 0, 2000]), st.sampled_from([None, None, 0])
    shares = [Quota(one * 1000, draw(borrow), draw(lend)) for one in (first, second, total - first - second)]
    firms = Queue("firms", quotas={"device": Quota((first + second) * 1000, draw(borrow))})
    queues = (
        firms,
        Queue("a", "firms", {"device": shares[0]}),
        Queue("b", "firms", {"device": shares[1]}),
        Queue("c", quotas={"device": shares[2]}),
    )
    rows = []
    for number in range(draw(st.integers(2, 24))):
        duration = draw(st.integers(1, 4000)) * 1000
        job = Job(
            id=f"j{number:02d}",
            queue=draw(st.sampled_from("abc")),
            submitted_ms=draw(st.integers(0, 2000)) * 1000,
            time_limit_ms=round(duration * draw(st.sampled_from([1, 1.5, 3]))),
            devices_per_node=devices if whole else 1,
            nodes=min(nodes, draw(st.sampled_from([1, 1, 2]))) if whole else 1,
            preemptible=draw(st.booleans()),
            priority=draw(st.sampled_from([0, 0, 1])),
        )
        rows.append(TraceJob(job, duration))
    return replace(uniform_cluster(nodes, devices), queues=queues), tuple(rows)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(guaranteed(), st.sampled_from([0, 60_000, 300_000]), st.sampled_from([0, 5000]))
def test_a_claim_inside_its_guarantee_starts_within_the_minimum_run_and_the_grace(
    made: tuple[Cluster, tuple[TraceJob, ...]], min_run_ms: int, grace_ms: int
) -> None:
    place, work = made
    rules = replace(POLICIES["default"], min_run_ms=min_run_ms, grace_ms=grace_ms)
    log, _ = judged(place, work, place.queues, rules)
    assert faults(log) == []
    assert reclaims(log, {one.job: one for one in log.asked}) == []


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_generated_month_is_valid_under_every_policy(policy: str) -> None:
    shape = WorkloadShape(jobs=250, nodes=4, load_percent=95, preemptible_percent=30)
    work = generate(shape, 3)
    place = uniform_cluster(4, 8)
    log, _ = judged(place, work, (Queue("main"),), POLICIES[policy])
    assert faults(log) == []
    assert {one.job for one in log.attempts} == {job.id for job, _ in work}
    assert not log.impossible


@pytest.mark.parametrize("queues", [("main",), ("firms", "labs", "start-ups")])
def test_a_busy_month_with_guarantees_fractions_and_failures_is_valid(queues: tuple[str, ...]) -> None:
    shape = WorkloadShape(jobs=300, nodes=6, load_percent=110, preemptible_percent=40, queues=queues)
    tree = tuple(Queue(name, quotas={"device": Quota(12_000, 8000, 8000)}) for name in queues)
    failures = tuple(Failure(f"node-000{i}", 40_000_000 * (i + 1), 40_000_000 * (i + 2)) for i in range(3))
    place = replace(uniform_cluster(6, 8), queues=tree, failures=failures)
    log, _ = judged(place, generate(shape, 5), tree, POLICIES["default"])
    assert faults(log) == []
    assert {one.job for one in log.attempts} == {one.job for one in log.asked} - log.impossible
