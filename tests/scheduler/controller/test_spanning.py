"""A gang whose ranks are on machines of their own: placed, told where to find each other, and gone afterwards."""

from collections.abc import Sequence
from typing import Any

import pytest

from scheduler.refusals import GangBeyondOneMachine
from tests.scheduler.controller.cluster import Cluster, log_of
from tests.scheduler.node.hosts import Host

pytestmark = pytest.mark.slow

SUM = """
import os, socket
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    listener = socket.create_server(where)
    total = 0
    for _ in range(size - 1):
        other, (address, _) = listener.accept()
        total += int(other.makefile().readline())
        print("told by", address)
    print("total", total, "at", where[0])
else:
    while True:
        try:
            leader = socket.create_connection(where, 5)
            break
        except OSError:
            pass
    leader.sendall(f"{rank}\\n".encode())
"""
RAY = """
import ray
ray.init(log_to_driver=False)
print("nodes", *sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def half(numbers):
    return sum(numbers)

print("sum", sum(ray.get([half.remote(range(at, 1000, 2)) for at in (0, 1)])))
"""


def of_hosts(cluster: Cluster, hosts: Sequence[Host], **changes: Any) -> None:  # noqa: ANN401 - any field
    for name, host in zip("abc", hosts, strict=False):
        host.node(cluster.machine, name, cpu_milli=16_000, memory_mib=16_384, **changes)
        cluster.tick()


def test_a_gang_over_three_machines_talks_and_ends(cluster: Cluster, hosts: Sequence[Host]) -> None:
    of_hosts(cluster, hosts)
    job_id = cluster.submit("python3", "-c", SUM, node_count=3, devices_per_node=4, network="job")
    assert cluster.ended(job_id).state == "succeeded", log_of(cluster, job_id)
    assert sorted(run.node for run in cluster.runs(job_id)) == ["a", "b", "c"]
    told = sorted(log_of(cluster, job_id).splitlines())
    assert told == ["told by 10.0.0.2", "told by 10.0.0.3", "total 3 at 10.0.0.1"]
    # A second attempt would be another gang, of another number.
    gangs = {spec.gang.id for _, request in cluster.sockets.requests for spec in request.desired if spec.gang}
    assert gangs == {f"{job_id}-1"}


def test_a_ray_job_has_its_cluster_over_two_machines(cluster: Cluster, hosts: Sequence[Host]) -> None:
    of_hosts(cluster, hosts[:2])
    job_id = cluster.submit(
        *("python", "-c", RAY),
        kind="ray",
        network="job",
        node_count=2,
        devices_per_node=4,
        cpu_milli=1000,
        memory_mib=4096,
        grace_ms=60_000,
    )
    cluster.patience_ms = 240_000
    job = cluster.ended(job_id)
    said = log_of(cluster, job_id)
    assert job.state == "succeeded", said
    assert said.endswith("nodes 10.0.0.1 10.0.0.2\nsum 499500\n"), said


def test_machines_that_cannot_span_are_not_given_parts_of_one_gang(
    cluster: Cluster, hosts: Sequence[Host]
) -> None:
    of_hosts(cluster, (*hosts[:2], hosts[0]), span_address="")
    asked: dict[str, Any] = {"devices_per_node": 4, "network": "job"}
    job_id = cluster.submit("python3", "-c", SUM, node_count=2, **asked)
    assert cluster.ended(job_id).state == "succeeded", log_of(cluster, job_id)
    assert sorted(run.node for run in cluster.runs(job_id)) == ["a", "c"]
    assert sorted(log_of(cluster, job_id).splitlines()) == ["told by 127.0.0.1", "total 1 at 127.0.0.1"]
    with pytest.raises(GangBeyondOneMachine, match="no more than 2 such nodes"):
        cluster.submit("python3", "-c", SUM, node_count=3, **asked)
