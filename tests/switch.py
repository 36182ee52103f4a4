"""Network namespaces that stand for machines, joined by a switch. Only root can make them."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

WIRE: Final = "wire"
"""The machines' interface."""

_NUMBERS: Final = count()


@dataclass(frozen=True)
class Switch:
    """The machines' namespaces by number, and the switch's own."""

    machines: tuple[str, ...]
    _name: str

    def cut(self, number: int) -> None:
        """Pull a machine's cable."""
        ip("-n", self._name, "link", "set", f"port{number}", "down")

    def join(self, number: int) -> None:
        """Plug it in again."""
        ip("-n", self._name, "link", "set", f"port{number}", "up")


@contextmanager
def switched(addresses: Sequence[Sequence[str]]) -> Iterator[Switch]:
    """A machine for each of these lists of addresses, such as 10.0.0.1/24; all are removed when the block ends."""
    name = f"hub{os.getpid()}s{next(_NUMBERS)}"
    machines = tuple(f"{name}-{number}" for number in range(len(addresses)))
    with ExitStack() as made:
        for namespace in (name, *machines):
            ip("netns", "add", namespace)
            made.callback(ip, "netns", "delete", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "switch", "type", "bridge")
        ip("-n", name, "link", "set", "switch", "up")
        for number, (machine, own) in enumerate(zip(machines, addresses, strict=True)):
            port = f"port{number}"
            ends = ("link", "add", port, "netns", name, "type", "veth", "peer", "name", WIRE, "netns", machine)
            ip(*ends)
            ip("-n", name, "link", "set", port, "master", "switch", "up")
            for address in own:
                early = ("nodad",) if ":" in address else ()
                ip("-n", machine, "address", "add", address, "dev", WIRE, *early)
            ip("-n", machine, "link", "set", WIRE, "up")
        yield Switch(machines, name)


def ip(*words: str) -> None:
    """A command of iproute2's that must succeed."""
    subprocess.run(["ip", *words], check=True)
