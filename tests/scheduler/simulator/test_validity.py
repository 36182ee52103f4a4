"""Whatever cluster and workload hypothesis makes, the event log is valid, complete and the same twice."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.policy.model import Job, Queue, Quota, Topology
from scheduler.policy.settings import POLICIES
from scheduler.simulator.engine import Simulation
from scheduler.simulator.generator import WorkloadShape, generate
from scheduler.simulator.workload import Cluster, Failure, TraceJob, uniform_cluster
from tests.scheduler.policy.builders import node
from tests.scheduler.simulator.logs import judged
from tests.scheduler.validity import differences, faults

QUEUES = (
    Queue("firms", quotas={"A100": Quota(8000), "910B": Quota(4000)}),
    Queue("alpha", "firms", {"A100": Quota(4000, borrow_milli=6000)}),
    Queue("beta", "firms", {"A100": Quota(2000, lend_milli=1000)}, running_max=6),
    Queue("gamma", quotas={"A100": Quota(0, borrow_milli=8000)}),
)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[TraceJob, ...]:
    rows = []
    for number in range(draw(st.integers(1, 24))):
        duration = draw(st.integers(1, 4000)) * 1000
        devices = draw(st.sampled_from([0, 1, 1, 2, 4]))
        fraction = devices == 1 and draw(st.booleans())
        job = Job(
            id=f"j{number:02d}",
            queue=draw(st.sampled_from(["alpha", "beta", "gamma"])),
            submitted_ms=draw(st.integers(0, 3000)) * 1000,
            time_limit_ms=round(duration * draw(st.sampled_from([0.5, 1, 1.5, 3]))),
            estimate_ms=draw(st.one_of(st.none(), st.integers(1000, 5_000_000))),
            models=draw(st.sampled_from([(), ("A100",), ("910B",), ("910B", "A100")])),
            nodes=draw(st.sampled_from([1, 1, 1, 2, 3])),
            devices_per_node=devices,
            slots_milli=draw(st.sampled_from([250, 500, 700])) if fraction else 1000,
            cpu_milli=draw(st.sampled_from([0, 1000, 3000])),
            memory_mib=draw(st.sampled_from([0, 100])),
            priority=draw(st.integers(0, 2)),
            preemptible=draw(st.booleans()),
            topology=draw(st.sampled_from(list(Topology))),
            depends_on=(f"j{draw(st.integers(0, number - 1)):02d}",) if number and draw(st.booleans()) else (),
            not_before_ms=draw(st.sampled_from([0, 2_000_000])),
        )
        rows.append(TraceJob(job, duration))
    return tuple(rows)


def cluster(failures: tuple[Failure, ...] = ()) -> Cluster:
    machines = [
        node(f"a{i}", 4, "A100", cpu_milli=8000, memory_mib=500, topology=("z", f"s{i // 2}")) for i in range(4)
    ]
    machines += [node(f"h{i}", 4, "910B", cpu_milli=8000, memory_mib=500) for i in range(2)]
    return Cluster(tuple(machines), QUEUES, failures=failures)


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs(), FAILURES, st.sampled_from(["default", "default", "easy", "srsf", "fifo"]))
def test_every_log_is_valid_and_repeatable(
    work: tuple[TraceJob, ...], failures: tuple[Failure, ...], policy: str
) -> None:
    place = cluster(failures)
    rules = replace(POLICIES[policy], min_run_ms=60_000, grace_ms=5000)
    log, _ = judged(place, work, QUEUES, rules)
    assert faults(log) == []
    assert differences(log, judged(place, work, QUEUES, rules)[0]) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs())
def test_every_job_that_can_run_ends(work: tuple[TraceJob, ...]) -> None:
    place = cluster()
    rules = replace(POLICIES["default"], min_run_ms=60_000, grace_ms=5000)
    outcome = Simulation(place, work, QUEUES, rules).run()
    ended = {run.job.id for run in outcome.runs if run.end_reason in {"finished", "timed_out"}}
    hopeless = {run.job.id for run in outcome.runs if run.end_reason == "timed_out"} | set(outcome.impossible)
    for job, _ in work:
        if any(needed in hopeless for needed in job.depends_on):
            hopeless.add(job.id)
    assert {job.id for job, _ in work} - ended - hopeless == set()


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_generated_month_is_valid_under_every_policy(policy: str) -> None:
    shape = WorkloadShape(jobs=250, nodes=4, load_percent=95, preemptible_percent=30)
    work = generate(shape, 3)
    place = uniform_cluster(4, 8)
    log, _ = judged(place, work, (Queue("main"),), POLICIES[policy])
    assert faults(log) == []
    assert {one.job for one in log.attempts} == {job.id for job, _ in work}
    assert not log.impossible


def test_the_judge_sees_a_slot_sold_twice_and_a_gang_that_is_not_whole() -> None:
    work = generate(WorkloadShape(jobs=60, nodes=2, load_percent=95), 1)
    place = uniform_cluster(2, 8)
    log, _ = judged(place, work, (Queue("main"),), POLICIES["default"])
    first, *rest = log.attempts
    twin = replace(first, job=rest[-1].job)
    assert any("share slots" in fault for fault in faults(replace(log, attempts=(*log.attempts, twin))))
    torn = replace(first, pieces=first.pieces[1:])
    assert any("got" in fault for fault in faults(replace(log, attempts=(torn, *rest))))
