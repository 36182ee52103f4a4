"""A job of kind `ray`: a real Ray of its own across two nodes, out of reach of everybody's, gone with the job."""

import socket

import pytest

from tests.scheduler.controller.cluster import Cluster, log_of

pytestmark = pytest.mark.slow

PROGRAM = """
import os, socket, sys
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

for port in map(int, sys.argv[1:]):
    try:
        socket.create_connection(("127.0.0.2", port), timeout=2)
    except OSError:
        continue
    sys.exit("the host's port could be reached")

ray.init(log_to_driver=False)
nodes = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
print("nodes", *nodes)

@ray.remote(num_cpus=0)
def where():
    return ray.util.get_node_ip_address()

@ray.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.count = 0
    def add(self, some):
        self.count += some
        return self.count

ids = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes()}
answers = ray.get([where.options(scheduling_strategy=On(ids[one], soft=False)).remote() for one in nodes])
print("tasks on", *answers)
counter = Counter.remote()
print("counted", ray.get([counter.add.remote(step) for step in (1, 2, 3)])[-1])
print("devices", int(ray.cluster_resources()["hub_device"]), "token", os.environ["RAY_AUTH_MODE"])
sys.exit(3)
"""


def test_a_ray_program_has_a_cluster_of_its_own_on_all_its_nodes(cluster: Cluster) -> None:
    cluster.node("a")
    cluster.node("b")
    with socket.create_server(("127.0.0.2", 0)) as hubs_own:
        job_id = cluster.submit(
            *("python", "-c", PROGRAM, str(hubs_own.getsockname()[1])),
            kind="ray",
            network="job",
            node_count=2,
            topology="spread",
            devices_per_node=2,
            cpu_milli=1000,
            memory_mib=4096,
            grace_ms=60_000,
        )
        cluster.until_state(job_id, "running")
        cluster.patience_ms = 240_000
        job = cluster.ended(job_id)
    said = log_of(cluster, job_id)
    assert "nodes 127.0.0.2 127.0.0.3\ntasks on 127.0.0.2 127.0.0.3\ncounted 6\ndevices 4 token token\n" in said
    # The program's own status is the job's, and the other rank ended because the first did.
    assert (job.state, job.exit_code, [run.exit_code for run in cluster.runs(job_id)]) == (
        "failed",
        3,
        [3, 0],
    ), said
