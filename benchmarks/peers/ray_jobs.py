"""Ray's Jobs API: a head of its own with its dashboard, in the environment `make bench-peers` made for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from compute_hub.settings import inherited_environment
from compute_hub.stack.children import Child, end_processes, processes_naming, stop_all
from compute_hub.stack.ports import free_port
from kernel.errors import HubError

PYTHON: Final = Path("var/bench/peers/ray/bin/python")
_START_S: Final = 180
_JOBS_S: Final = 900

_CLIENT: Final = """
import sys, time
from ray.job_submission import JobSubmissionClient
url, count, patience_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def connected():
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return JobSubmissionClient(url)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
client = connected()
began = time.monotonic()
jobs = [client.submit_job(entrypoint="true", entrypoint_num_cpus=1) for _ in range(count)]
while {str(client.get_job_status(job)) for job in jobs} - {"SUCCEEDED", "FAILED", "STOPPED"}:
    time.sleep(0.2)
seconds = time.monotonic() - began
assert all(str(client.get_job_status(job)) == "SUCCEEDED" for job in jobs)
print(count / seconds)
"""


class NoRay(HubError):
    """Ray's Jobs API is not there, or does not do what it should."""

    sentence = "Ray's Jobs API {reason}. `make bench-peers` installs it; its log is {log}."


def ray_jobs_per_s(folder: Path, count: int) -> float:
    """No-op jobs a second, from the first submission to the last end, on 16 CPUs. Raises NoRay."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "head.log"
    if not PYTHON.exists():
        raise NoRay(reason="is not installed", log=log)
    temporary = Path("/tmp") / f"bench-ray-{os.getpid()}"  # noqa: S108 - Ray puts sockets below it; paths are short
    port, dashboard = free_port(), free_port()
    head = Child(
        "ray head",
        [
            *(str(PYTHON.parent.resolve() / "ray"), "start", "--head", "--block", f"--port={port}"),
            *(f"--dashboard-port={dashboard}", f"--temp-dir={temporary}", "--num-cpus=16"),
            *("--disable-usage-stats", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"),
        ],
        log=log,
        environment=inherited_environment(PYTHONPATH="", RAY_TMPDIR=str(temporary)),
    )
    try:
        return _measure(f"http://127.0.0.1:{dashboard}", count, log)
    finally:
        stop_all([head])
        end_processes(processes_naming(temporary))
        shutil.rmtree(temporary, ignore_errors=True)


def _measure(url: str, count: int, log: Path) -> float:
    done = subprocess.run(
        [str(PYTHON.parent.resolve() / PYTHON.name), "-c", _CLIENT, url, str(count), str(_START_S)],
        env=inherited_environment(PYTHONPATH=""),
        capture_output=True,
        text=True,
        timeout=_START_S + _JOBS_S,
        check=False,
    )
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        raise NoRay(reason="failed", log=log)
    return float(done.stdout.splitlines()[-1])
