"""The hub as the benchmarks drive it: through its HTTP API, as an enterprise that pays for every job."""

import json
import os
import re
import shutil
import socket
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import psutil
import psycopg

from benchmarks.peers import accounts
from compute_hub.identity.roles import Role
from compute_hub.sdk import ENDED, HubClient
from compute_hub.settings import Settings
from compute_hub.stack.database import private_server
from compute_hub.stack.ports import free_port
from compute_hub.stack.up import LocalStack
from kernel.clock import boottime_ms, unix_ms, utc_now
from kernel.errors import HubError
from kernel.ids import new_id

MODEL: Final = "MLU370-X8"
_CLIENTS: Final = 8
_PATIENCE_S: Final = 300
_LOOK_S: Final = 0.05
_SELDOM_S: Final = 0.5
_WATCHED_S: Final = 20
_LIVE: Final = ("queued", "starting", "running", "stopping")
_LENGTH: Final = re.compile(rb"(?i)content-length: *(\d+)")
_CREDIT_CODE: Final = "91331003MA0EXAMPL0"


class NotDone(HubError):
    """A job of the benchmark did not do what it should."""

    sentence = "{what} after {seconds} s; the logs are in {logs}."


class Hub:
    """A hub of 2 nodes × 8 devices with one enterprise that has money; a context manager that leaves nothing.

    Args:
        folder: where its state goes; emptied first.
        say: is told what is being started.
        changes: more `HUB_*` variables, without the prefix and in lower case.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], **changes: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        plain = folder.resolve() / "plain"
        plain.mkdir(parents=True)
        nodes = [
            {
                "name": f"node-{number}",
                "devices": [{"model": MODEL, "vendor": "cambricon", "count": 8}],
                "cpu_milli": 16_000,
                "memory_mib": 32_768,
            }
            for number in (1, 2)
        ]
        facts = {
            "state_directory": str(folder.resolve() / "state"),
            "api_port": str(free_port()),
            "ray_port": str(free_port()),
            "nodes": json.dumps(nodes),
            "environments": json.dumps({"plain": {"directory": str(plain)}}),
            "prices": json.dumps([{"model": MODEL, "price_cny_per_card_hour": "12.50"}]),
        } | changes
        parsed: dict[str, Any] = {
            name: json.loads(value) if value.startswith(("[", "{")) else value for name, value in facts.items()
        }
        variables = {f"HUB_{name.upper()}": value for name, value in facts.items()}
        self.stack = LocalStack(Settings(**parsed), variables, say)
        self._key = ""
        self.used_ms_per_job: dict[str, float] = {}
        self.submitted: list[str] = []

    @property
    def node_names(self) -> list[str]:
        """Of its nodes."""
        return [node.name for node in self.stack.settings.nodes]

    def __enter__(self) -> Self:
        self.stack.__enter__()
        with HubClient(self.stack.url, self.stack.key(Role.OPERATOR, "benchmark")) as operator:
            firm = operator.post(
                "/v1/enterprises", {"credit_code": _CREDIT_CODE, "name": "Benchmark Ltd.", "region": "331003"}
            )
            request = {"role": "tenant", "person": "benchmark", "tenant_id": firm["id"]}
            self._key = operator.post("/v1/api-keys", request)["key"]
            deposit = {"amount_cny": "1000000.00", "reference": "benchmark"}
            operator.post(f"/v1/enterprises/{firm['id']}/deposits", deposit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def client(self) -> HubClient:
        """A connection of the enterprise."""
        return HubClient(self.stack.url, self._key)

    def submit(self, client: HubClient, *argv: str, key: str | None = None, **changes: object) -> str:
        """Submit a job of one device; returns its id, which is kept. The `key` makes it safe to ask again."""
        job_id = str(client.post("/v1/jobs", self.job(*argv, **changes), key=key)["id"])
        self.submitted.append(job_id)
        return job_id

    def start_ms(self, count: int) -> dict[str, float]:
        """One job after the other on the idle cluster: from before the submission to the program's own first word."""
        found = []
        with self.client() as client:
            for _ in range(count):
                submitted_ms = unix_ms(utc_now())
                job_id = self.submit(client, "/usr/bin/date", "+%s%3N")
                self.await_ended(client, [job_id])
                found.append(int(client.log(job_id).decode()) - submitted_ms)
        found.sort()
        return {
            "start_p50_ms": round(statistics.median(found), 1),
            "start_p99_ms": float(found[max(0, -(-99 * count // 100) - 1)]),
        }

    def throughput(self, count: int) -> dict[str, float]:
        """Submit so many jobs from several connections at once; from the first submission to the last end.

        The processor time is that of all processes of the hub, for a job that is submitted, run and metered (charging
        may be going on after it); unlike the rate it says something on a busy machine, too.
        """
        os.sync()
        began, before = utc_now(), self.account()
        ids = self._submit_all(self.job("/usr/bin/true"), count, _CLIENTS)
        submitted = utc_now()
        last = self._last_end(ids, before)
        return {
            "ours_jobs_per_s": round(count / (last - began).total_seconds(), 2),
            "ours_submissions_per_s": round(count / (submitted - began).total_seconds(), 2),
            "ours_cpu_ms_per_job": accounts.total(self.used_ms_per_job),
            "machine_cpu_ms_per_job": accounts.machine(self.used_ms_per_job),
        }

    def submissions(self, count: int, clients: int) -> dict[str, float]:
        """What so many submissions cost that start nothing, from so many connections at once."""
        before, began_ms = self.account(), boottime_ms()
        self._submit_all(self.job("/usr/bin/true", held=True), count, clients)
        took_ms = boottime_ms() - began_ms
        used = accounts.per_job(before, self.account(), count)
        return {
            "submissions_per_s": 1000 * count / took_ms,
            "api_cpu_ms": used.get("API", 0),
            "postgresql_cpu_ms": used.get("PostgreSQL for compute-hub api", 0),
            "machine_cpu_ms": accounts.machine(used),
        }

    def array_throughput(self, count: int) -> dict[str, float]:
        """The same for one submission of an array of so many jobs."""
        os.sync()
        began, before = utc_now(), self.account()
        with self.client() as client:
            array = client.post("/v1/job-arrays", {"job": self.job("/usr/bin/true"), "size": count})
        last = self._last_end([f"{array['id']}.{index}" for index in range(count)], before)
        return {
            "ours_array_jobs_per_s": round(count / (last - began).total_seconds(), 2),
            "ours_array_cpu_ms_per_job": accounts.total(self.used_ms_per_job),
            "machine_array_cpu_ms_per_job": accounts.machine(self.used_ms_per_job),
        }

    def _last_end(self, ids: Sequence[str], before: accounts.Account) -> datetime:
        """When the last of them ended, all well; what a job used since `before` is in `used_ms_per_job` then."""
        with self.client() as client:
            self._await_idle(client)
            self.used_ms_per_job = accounts.per_job(before, self.account(), len(ids))
            jobs = self.await_ended(client, ids)
        bad = [job for job in jobs if job["state"] != "succeeded"]
        if bad:
            raise NotDone(
                what=f"{len(bad)} jobs failed, one says {bad[0]['reason']!r}", seconds=0, logs=self.stack.logs
            )
        return max(datetime.fromisoformat(job["ended_at"]) for job in jobs)

    def await_ended(
        self, client: HubClient, ids: Sequence[str], look_s: float = _LOOK_S
    ) -> list[dict[str, Any]]:
        """The jobs once all have ended; the last is looked at until it has, then all. Raises NotDone."""
        deadline, never = boottime_ms() + _PATIENCE_S * 1000, threading.Event()
        found: dict[str, dict[str, Any]] = {}
        for job_id in reversed(ids):
            while (job := client.get(f"/v1/jobs/{job_id}"))["state"] not in ENDED:
                if boottime_ms() > deadline:
                    raise NotDone(what="jobs had not ended", seconds=_PATIENCE_S, logs=self.stack.logs)
                never.wait(look_s)
            found[job_id] = job
        return [found[job_id] for job_id in ids]

    def supervisor_load(self) -> dict[str, float]:
        """The CPU and memory of one node's supervisor while 8 jobs run there."""
        with self.client() as client:
            ids = [self.submit(client, "/usr/bin/sleep", "600", time_limit_s=700) for _ in range(16)]
            self._await_running(client, ids)
            (supervisor, *_) = self.supervisors()
            before, never = sum(supervisor.cpu_times()[:2]), threading.Event()
            never.wait(_WATCHED_S)
            used = sum(supervisor.cpu_times()[:2]) - before
            for job_id in ids:
                client.post(f"/v1/jobs/{job_id}:cancel")
            self.await_ended(client, ids)
        memory = supervisor.memory_full_info()
        return {
            "supervisor_cpu_percent": round(100 * used / _WATCHED_S, 2),
            "supervisor_rss_mb": round(memory.rss / 1e6, 1),
        }

    def database(self) -> psycopg.Connection:
        """A connection of the database's superuser, in autocommit."""
        return private_server(self.stack.settings).superuser("hub")

    def account(self) -> accounts.Account:
        """What every part of the hub has used of the processors until now."""
        with self.database() as connection:
            found = connection.execute("SELECT pid, application_name FROM pg_stat_activity").fetchall()
        return accounts.read({int(pid): str(name) for pid, name in found if name})

    def supervisors(self) -> list[psutil.Process]:
        """The supervisors' processes, by their configuration's place."""
        state = str(self.stack.settings.state_directory.resolve())
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "scheduler.node.supervisor" in (process.info["cmdline"] or ())
            and any(word.startswith(state) for word in process.info["cmdline"])
            and process.info["cmdline"][0] != "setpriv"
        ]
        return sorted(found, key=lambda process: process.cmdline()[-1])

    def _await_idle(self, client: HubClient) -> None:
        """Until no job waits or runs, looked at seldom and cheaply."""
        deadline, never = boottime_ms() + _PATIENCE_S * 1000, threading.Event()
        while any(client.get("/v1/jobs", limit=1, state=state)["items"] for state in _LIVE):
            if boottime_ms() > deadline:
                raise NotDone(what="jobs had not ended", seconds=_PATIENCE_S, logs=self.stack.logs)
            never.wait(_SELDOM_S)

    def _await_running(self, client: HubClient, ids: Sequence[str]) -> None:
        deadline, never = boottime_ms() + _PATIENCE_S * 1000, threading.Event()
        while any(client.get(f"/v1/jobs/{job_id}")["state"] != "running" for job_id in ids):
            if boottime_ms() > deadline:
                raise NotDone(what="jobs did not run", seconds=_PATIENCE_S, logs=self.stack.logs)
            never.wait(_LOOK_S)

    def _submit_all(self, job: Mapping[str, object], count: int, clients: int) -> list[str]:
        with ThreadPoolExecutor(clients) as pool:
            shares = pool.map(partial(self._submit_some, job), _shares(count, clients))
            return [job_id for ids in shares for job_id in ids]

    def _submit_some(self, job: Mapping[str, object], count: int) -> list[str]:
        """Over one connection, with nothing read but what is needed, so that the client takes little of the machine."""
        address = urlsplit(self.stack.url)
        body = json.dumps(job)
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nIdempotency-Key: "
        )
        found = []
        with socket.create_connection((str(address.hostname), address.port), timeout=60) as connection:
            for _ in range(count):
                connection.sendall(f"{head}{new_id()}\r\n\r\n{body}".encode())
                found.append(str(json.loads(_answer(connection))["id"]))
        return found

    def job(self, *argv: str, **changes: object) -> dict[str, object]:
        """What is submitted: a job of one device that runs a program."""
        facts = {"name": "bench", "argv": list(argv), "accelerator": MODEL, "environment": "plain"}
        limits = {"time_limit_s": 60, "grace_s": 1, "memory_mib": 256, "cpu_milli": 1000}
        return facts | limits | changes


def _answer(connection: socket.socket) -> bytes:
    """The body of the next answer, whose length its head says. Raises ConnectionError."""
    said, length = b"", None
    while length is None or len(said) < length:
        if not (more := connection.recv(65_536)):
            raise ConnectionError(said)
        said += more
        if length is None and (end := said.find(b"\r\n\r\n")) >= 0:
            length = int(_LENGTH.findall(said[:end])[0])
            said = said[end + 4 :]
    return said


def _shares(count: int, parts: int) -> list[int]:
    return [count // parts + (1 if part < count % parts else 0) for part in range(parts)]
