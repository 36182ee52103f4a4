"""A centre of three machines on a network, set up with the commands an operator has: one leads, two compute."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from compute_hub.sdk import HubClient
from compute_hub.stack.asking import StrangeAnswer, ask
from compute_hub.stack.children import Child, stop_all
from compute_hub.stack.ports import free_port
from kernel.clock import boottime_ms
from kernel.postgres import OWNER_ROLE, PrivatePostgres
from tests.end_to_end.conftest import HUB, ROOT, processes_mentioning
from tests.end_to_end.waiting import PATIENCE_MS, wait_until
from tests.machines import Machines

pytestmark = pytest.mark.slow

_SCRIPT = "until [ -e go-on ]; do cut -d ' ' -f 1 /proc/uptime; sleep 0.1; done"
_SETTINGS = f"""
default_environment = "python"
[environments.python]
directory = "{sys.prefix}"
[models.X]
precision = "fp16"
tflops = 96
[[prices]]
model = "X"
price_cny_per_card_hour = "36.00"
"""
_TALK = """
import os, socket, time
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if os.environ["RANK"] == "0":
    with socket.create_server(place) as listener:
        print("rank 0 heard of rank", listener.accept()[0].recv(10).decode())
else:
    while True:
        try:
            socket.create_connection(place).sendall(os.environ["RANK"].encode())
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
"""
_NODE = """
[[nodes]]
name = "node-{number}"
devices = [{{ model = "X", vendor = "nvidia", count = 2 }}]
cpu_milli = 4000
memory_mib = 4096
"""


class Centre:
    """Machine 0 runs the controller with Ray's head and no node; machines 1 and 2 are nodes of the same number."""

    def __init__(self, machines: Machines, environment: dict[str, str], tenant: HubClient) -> None:
        self.machines = machines
        self._environment = environment
        self._workspaces = Path(environment["HUB_STATE_DIRECTORY"]) / "workspaces"
        self.tenant = tenant

    def lead(self) -> None:
        """Start the controller's machine."""
        self._start("controller", 0, "controller", "--head")

    def compute(self, number: int) -> None:
        """Start a node's machine."""
        self._start(f"node-{number}", number, "node", "--name", f"node-{number}")

    def states(self) -> dict[str, str]:
        return {node["name"]: node["state"] for node in self.tenant.get("/v1/cluster")["nodes"]}

    def submit(self, **facts: object) -> str:
        """A job that takes a whole machine and writes down the time until it is told to go on."""
        job = {"name": "j", "argv": ["/bin/sh", "-c", _SCRIPT], "accelerator": "X", "devices_per_node": 2}
        return str(self.tenant.post("/v1/jobs", job | {"time_limit_s": 600, **facts})["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.tenant.get(f"/v1/jobs/{job_id}"))

    def runs_on(self, job_id: str) -> int:
        """The machine of a running job."""
        (node,) = {device["node"] for device in wait_until(self.tenant, job_id, "running")["devices"]}
        return int(node.removeprefix("node-"))

    def let_go_on(self, job_id: str) -> None:
        (self._attempt(job_id, self.job(job_id)["attempt"]) / "rank-0" / "go-on").touch()

    def times(self, job_id: str, attempt: int) -> list[float]:
        """When an attempt was there, in seconds since the boot of the machine that all of them are."""
        log = self._attempt(job_id, attempt) / "rank-0.log"
        return [float(line) for line in log.read_text(encoding="ascii").split()]

    def _attempt(self, job_id: str, number: int) -> Path:
        (folder,) = self._workspaces.glob(f"*/{job_id}/attempt-{number}")
        return folder

    def _start(self, what: str, number: int, *command: str) -> None:
        own = {"HUB_NODE_ADDRESS": self.machines.address(number)}
        self.machines.start(what, number, [str(HUB), *command], self._environment | own)


def _run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [str(HUB), *command],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _tenant_key(environment: dict[str, str], url: str) -> str:
    with HubClient(url, _run(environment, "key", "first", "Operator")) as operator:
        firm = {"credit_code": "91331003MA0EXAMPL0", "name": "Example Ltd.", "region": "331003"}
        enterprise = operator.post("/v1/enterprises", firm)
        deposit = {"amount_cny": "1000.00", "reference": "opening"}
        operator.post(f"/v1/enterprises/{enterprise['id']}/deposits", deposit)
        asked = {"role": "tenant", "person": "Engineer", "tenant_id": enterprise["id"]}
        return str(operator.post("/v1/api-keys", asked)["key"])


def _await(true: Callable[[], bool]) -> None:
    never, deadline_ms = threading.Event(), boottime_ms() + PATIENCE_MS
    while not true():
        assert boottime_ms() < deadline_ms
        never.wait(0.1)


def _is_ready(url: str) -> bool:
    try:
        return ask(f"{url}/readyz") == {"status": "ready"}
    except (httpx.TransportError, StrangeAnswer):
        return False


@contextmanager
def _centre(folder: Path) -> Iterator[Centre]:
    settings = folder / "hub.toml"
    settings.write_text(_SETTINGS + "".join(_NODE.format(number=number) for number in (1, 2)), encoding="utf-8")
    server = PrivatePostgres(folder / "postgres", durable=False)
    server.start()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "HUB_CONFIG": str(settings),
        "HUB_STATE_DIRECTORY": str(folder / "state"),
        "HUB_DATABASE_URL": server.url("hub"),
        "HUB_MIGRATION_URL": server.url("hub", OWNER_ROLE),
        "HUB_API_PORT": str(port),
        "HUB_NODE_LEASE_MS": "12000",  # a controller's machine takes a while to start again
    }
    children: list[Child] = []
    try:
        server.create_database("hub")
        _run(environment, "migrate")
        for name in ("api", "biller"):
            log = folder / f"{name}.log"
            children.append(Child(name, [str(HUB), name], log=log, environment=os.environ | environment))
        _await(lambda: _is_ready(url))
        with Machines(folder, 3) as machines:
            ray = {"HUB_RAY_HEAD_HOST": machines.address(0)}
            with HubClient(url, _tenant_key(environment, url)) as tenant:
                yield Centre(machines, environment | ray, tenant)
    finally:
        stop_all(children)
        server.stop()


@pytest.mark.usefixtures("root")
def test_machines_of_a_network_are_led_from_one_that_computes_nothing(tmp_path: Path) -> None:
    """Until it is told to go on, each job writes down the time: what ran when is seen from that."""
    with _centre(tmp_path) as centre:
        centre.lead()
        centre.compute(1)
        centre.compute(2)
        _await(lambda: centre.states() == {"node-1": "up", "node-2": "up"})
        talk = ["python", "-c", _TALK]
        gang = centre.submit(argv=talk, nodes=2)
        assert len({device["node"] for device in wait_until(centre.tenant, gang, "succeeded")["devices"]}) == 2
        assert centre.tenant.log(gang) == b"rank 0 heard of rank 1\n"

        jobs = [centre.submit(max_retries=1) for _ in range(2)]
        assert {centre.runs_on(job) for job in jobs} == {1, 2}

        centre.machines.cut(1)
        centre.machines.lose("node-2")
        _await(lambda: centre.states() == {"node-1": "down", "node-2": "down"})
        centre.machines.join(1)
        centre.compute(2)
        _await(lambda: all(centre.job(job)["attempt"] == 2 for job in jobs))
        assert {centre.runs_on(job) for job in jobs} == {1, 2}

        centre.machines.lose("controller")
        centre.lead()
        late = centre.submit()
        for job in jobs:
            centre.let_go_on(job)
            ended = wait_until(centre.tenant, job, "succeeded")
            assert ended["attempt"] == 2
            assert centre.times(job, 1)[-1] < centre.times(job, 2)[0]
        centre.runs_on(late)
        centre.let_go_on(late)
        wait_until(centre.tenant, late, "succeeded")
        assert [centre.machines.stop(what) for what in ("node-1", "node-2", "controller")] == [0, 0, 0]
    assert processes_mentioning(tmp_path) == []
