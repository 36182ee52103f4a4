"""The whole hub on one machine: PostgreSQL, nodes, controller, biller, keeper and API, each a process of its own."""

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import psycopg
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from compute_hub.identity.keys import issue_key
from compute_hub.identity.roles import Role
from compute_hub.settings import Settings, inherited_environment
from compute_hub.stack.asking import StrangeAnswer, ask, nodes_up
from compute_hub.stack.children import GRACE_MS, Child, ChildEnded, end_processes, processes_naming, stop_all
from compute_hub.stack.database import application_url, prepare_database
from compute_hub.stack.monitoring import Program, monitoring
from compute_hub.stack.ray_node import ray_directory, ray_environment
from compute_hub.telemetry.serving import targets_directory
from kernel.clock import boottime_ms, utc_now
from kernel.database import open_engine, transaction
from kernel.errors import HubError
from kernel.postgres import PostgresDidNotStart, PrivatePostgres
from scheduler.tables import JobRow

_READY_S: Final = 120
_LOOK_S: Final = 0.2
_NODE: Final = "node-"
"""What the names of the processes of nodes begin with."""


class NotReady(HubError):
    """A part of the hub did not come up in time."""

    sentence = "{what} was not ready after {seconds} s{why}. Look into the logs in {logs}."


class AlreadyUp(HubError):
    """Another hub runs on this state directory."""

    sentence = (
        "A hub is already running on {directory}; end it first, or set HUB_STATE_DIRECTORY to another folder."
    )


class LocalStack:
    """Everything `hub up` runs. A context manager: entering starts all, leaving ends all and leaves no process.

    Args:
        settings: of all its processes; those that differ from the file are handed on by environment variables.
        variables: `HUB_*` variables for the processes.
        tell: is told sentences of what is being done, for a person who waits.
        monitored: also run Prometheus, and Alertmanager and Grafana where they are installed.
    """

    def __init__(
        self,
        settings: Settings,
        variables: dict[str, str],
        tell: Callable[[str], None],
        *,
        monitored: bool = False,
    ) -> None:
        self.settings = settings
        self._variables = variables
        self._tell = tell
        self._monitored = monitored
        self.monitors: list[Program] = []
        self._children: list[Child] = []
        self._database: PrivatePostgres | None = None
        self._lock: int | None = None
        self.logs = settings.state_directory.resolve() / "logs"

    @property
    def url(self) -> str:
        """Where the API answers."""
        return f"http://{self.settings.api_host}:{self.settings.api_port}"

    def __enter__(self) -> Self:
        """Start everything and wait until every node of the settings is up."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self.stop()

    def key(self, role: Role, person: str) -> str:
        """A fresh API key of an officer, made directly in the database by whoever may start the hub."""
        engine = open_engine(application_url(self.settings), pool_size=1)
        with transaction(engine) as session:
            made = issue_key(session, role, person, at=utc_now())
        engine.dispose()
        return made

    def check(self) -> None:
        """Raise ChildEnded if a process has ended by itself."""
        for child in self._children:
            child.check()

    def mend(self) -> list[str]:
        """Start every process again that has ended by itself, the database first; returns what was done, in words."""
        mended = self._mend_database()
        for position, child in enumerate(self._children):
            try:
                child.check()
            except ChildEnded as ended:
                self._children[position] = child.again()
                mended.append(f"Started again: {ended}")
        return mended

    def _mend_database(self) -> list[str]:
        """One that cannot be started now, because its disk is full or its last processes linger, is tried again."""
        if self._database is None or not self._database.has_ended():
            return []
        try:
            self._database.start()
        except (PostgresDidNotStart, psycopg.OperationalError) as refusal:
            return [str(refusal)]
        return ["Started again: PostgreSQL had ended."]

    def stop(self) -> None:
        """End all processes, the database last, and before them nodes on which jobs run.

        Their leases are renewed while they save what they have.
        """
        nodes = [child for child in self._children if child.name.startswith(_NODE)]
        if nodes and (longest_ms := self._longest_grace_ms()):
            stop_all(nodes, grace_ms=longest_ms + 2 * GRACE_MS)  # the jobs' own, the supervisor's and Ray's
        stop_all(self._children)
        self._children.clear()
        # Ray's own daemons are grandchildren that outlive a killed parent.
        end_processes(processes_naming(ray_directory(self.settings)))
        shutil.rmtree(ray_directory(self.settings), ignore_errors=True)
        if self._database is not None:
            self._database.stop()
            self._database = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def hurry(self) -> None:
        """While it is being stopped: let the nodes cut the graces of their jobs short. A signal's handler may do it."""
        for child in self._children:
            if child.name.startswith(_NODE):
                child.signal(signal.SIGINT)

    def _longest_grace_ms(self) -> int:
        """Of the jobs that run, which is said to whoever waits; 0 if none does or the database is away."""
        engine = open_engine(application_url(self.settings), pool_size=1)
        try:
            with transaction(engine) as session:
                placed = JobRow.state.in_(("starting", "running", "stopping"))
                query = select(func.count(), func.coalesce(func.max(JobRow.grace_ms), 0)).where(placed)
                jobs, longest_ms = session.execute(query).one()
        except DBAPIError:
            return 0
        finally:
            engine.dispose()
        if jobs:
            self._tell(
                f"Stopping; what runs (jobs: {jobs}) has up to {-(-longest_ms // 1000)} s to save … (Ctrl-C: less)"
            )
        return int(longest_ms)

    def _starting(self, what: str) -> None:
        self._tell(f"Starting {what} …")

    def _start(self) -> None:
        self._own_state_directory()
        self._starting("PostgreSQL and migrations")
        self._database = prepare_database(self.settings, utc_now())
        self._start_nodes()
        self._starting("API, controller, biller and keeper")
        self._child("api", "api")
        self._child("biller", "biller")
        self._child("keeper", "keeper")
        self._child("controller", *self._controller(), **ray_environment(self.settings))
        self._wait("the API", lambda: ask(f"{self.url}/readyz") == {"status": "ready"})
        auditor = {"Authorization": f"Bearer {self.key(Role.AUDITOR, 'hub up')}"}
        self._wait(
            "the cluster",
            lambda: nodes_up(f"{self.url}/v1/cluster", auditor) == len(self.settings.nodes),
        )
        for number in range(1, self.settings.controllers):
            self._child(f"controller-{number + 1}", *self._controller(), **ray_environment(self.settings))
        self._wait(
            "a standby",
            lambda: (
                len(list(targets_directory(self.settings).glob("controller-*.json")))
                >= self.settings.controllers
            ),
        )
        if self._monitored:
            self._start_monitoring()

    def _start_nodes(self) -> None:
        self._starting(f"{len(self.settings.nodes)} nodes on Ray")
        for position, node in enumerate(self.settings.nodes):
            head = ["--head"] if position == 0 else []
            self._child(f"{_NODE}{node.name}", "node", "--name", node.name, *head)

    def _controller(self) -> Sequence[str]:
        return ("controller",)

    def _start_monitoring(self) -> None:
        self.monitors = list(monitoring(self.settings))
        self._starting(", ".join(program.name for program in self.monitors))
        for program in self.monitors:
            log = self.logs / f"{program.name}.log"
            self._children.append(Child(program.name, program.argv, log=log, environment=program.environment))
        for program in self.monitors:
            self._wait(program.name, program.is_ready)

    def _own_state_directory(self) -> None:
        folder = self.settings.state_directory.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUp(directory=folder) from None

    def _child(self, name: str, *command: str, **variables: str) -> None:
        hub = Path(sys.executable).with_name("hub")
        self._children.append(
            Child(
                name,
                [str(hub), *command],
                log=self.logs / f"{name}.log",
                environment=inherited_environment(**self._variables, **variables),
            )
        )

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline, why = boottime_ms() + _READY_S * 1000, ""
        while boottime_ms() < deadline:
            self.check()
            try:
                if ready():
                    return
                why = ""
            except (httpx.TransportError, StrangeAnswer) as error:
                why = f" ({error})"
            self._children[-1].wait(_LOOK_S)
        raise NotReady(what=what, seconds=_READY_S, why=why, logs=self.logs)
