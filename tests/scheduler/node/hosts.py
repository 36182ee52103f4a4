"""Network namespaces that stand for hosts on one underlay, each with a supervisor of its own, and what they leave."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernel.clock import boottime_ms
from scheduler.node.overlay import PORT
from tests.scheduler.node.harness import DEADLINE_MS, Machine, Node
from tests.switch import switched

_UIDS: Final = 300


@dataclass(frozen=True)
class Host:
    """One of them: the name of its namespace, and its addresses on the underlay."""

    name: str
    number: int

    @property
    def address(self) -> str:
        return f"198.51.100.{self.number}"

    @property
    def address6(self) -> str:
        return f"2001:db8::{self.number}"

    @property
    def wrapper(self) -> tuple[str, ...]:
        """What a command is started by to be on this host; mounts stay, as `ip netns exec` would not let them."""
        return ("nsenter", f"--net=/run/netns/{self.name}", "--")

    def node(self, machine: Machine, name: str = "", **changes: Any) -> Node:  # noqa: ANN401 - any field
        """A supervisor on this host."""
        facts: dict[str, Any] = {
            "host_id": self.name,
            "span_address": self.address,
            "host_run_directory": str(self._run_directory(machine)),
            "uid_base": 750_000 + _UIDS * self.number,
            "uid_count": _UIDS,
        }
        return machine.node(name or self.name, wrapper=self.wrapper, **facts | changes)

    def run(self, *command: str) -> str:
        """What a command says that is run on this host."""
        return subprocess.run([*self.wrapper, *command], check=True, capture_output=True, text=True).stdout

    def gangs(self, machine: Machine) -> list[Path]:
        """The folders of this host's gangs."""
        return list((self._run_directory(machine) / "gangs").glob("*"))

    def _run_directory(self, machine: Machine) -> Path:
        return machine.folder / f"{self.name}-run"

    def listens(self) -> bool:
        """Whether there is a device of a gang's network: as long as there is, the host listens."""
        return f":{PORT} " in self.run("ss", "--udp", "--listening", "--numeric")

    def await_end_of_gangs(self, machine: Machine) -> None:
        """Wait until nothing is left of them."""
        deadline = boottime_ms() + DEADLINE_MS
        while self.listens() or self.gangs(machine):
            assert boottime_ms() < deadline, (self.listens(), self.gangs(machine))
            os.sched_yield()


@contextmanager
def some_hosts(machine: Machine, size: int) -> Iterator[Sequence[Host]]:
    """So many hosts on one switch; when the block ends nothing of any gang may be left on them."""
    numbers = range(1, size + 1)
    with switched([(f"198.51.100.{at}/24", f"2001:db8::{at}/64") for at in numbers]) as switch:
        hosts = [Host(name, at) for at, name in enumerate(switch.machines, 1)]
        yield hosts
        for node in machine.nodes:
            if node.process is not None and node.process.poll() is None:
                assert node.stop() == 0, node.log.read_text()
        for host in hosts:
            host.await_end_of_gangs(machine)
            assert not host.run("ip", "-brief", "link", "show", "type", "vxlan")
