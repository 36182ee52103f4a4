"""Machines of a centre on one machine: network namespaces with an address each, joined by a switch. Root can make them.

What runs on one has its own network, processes, host name and the hub's run directory; the files else are shared, as a
store is that all machines of a centre mount.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from compute_hub.stack.run_directory import run_directory

_NETWORK: Final = "10.77.0"
_STOP_S: Final = 60
_ENTER: Final = """
echo "$NAME" > /proc/sys/kernel/hostname
mount -t proc proc /proc
mount --bind "$OWN" "$SHARED"
exec "$@"
"""


class Machines:
    """So many machines, numbered from 0. A context manager: leaving ends what runs on them, and them.

    Args:
        folder: for the logs of what runs on them.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._count = count
        self._name = f"hub{os.getpid()}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._made = ExitStack()

    def __enter__(self) -> Self:
        """Make them."""
        with self._made:
            switch = self._namespace("switch")
            _ip("-n", switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", switch, "link", "set", "switch", "up")
            for number in range(self._count):
                machine = self._namespace(str(number))
                port = f"port{number}"
                _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine)
                _ip("-n", switch, "link", "set", port, "master", "switch", "up")
                _ip("-n", machine, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
                for interface in ("lo", "eth0"):
                    _ip("-n", machine, "link", "set", interface, "up")
            self._made = self._made.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what runs, in the order it was started, and remove the machines."""
        with self._made:
            for what in list(self._running):
                self.stop(what)

    def address(self, number: int) -> str:
        """Of a machine."""
        return f"{_NETWORK}.{10 + number}"

    def start(self, what: str, number: int, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a program on a machine, as if that had just been switched on."""
        own = self._folder / f"run-{number}"
        own.mkdir(mode=0o700, exist_ok=True)
        apart = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private")
        entering = {"NAME": f"machine-{number}", "OWN": str(own), "SHARED": str(run_directory())}
        with self.log(what).open("ab") as log:
            self._running[what] = subprocess.Popen(
                [*("ip", "netns", "exec", self._of(str(number)), *apart, "sh", "-ec", _ENTER, "sh"), *argv],
                env={**os.environ, **environment, **entering},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self, what: str) -> Path:
        """What a program said."""
        return self._folder / f"{what}.log"

    def stop(self, what: str) -> int:
        """SIGTERM, as an operator would; its exit status."""
        process = self._running.pop(what)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        try:
            return process.wait(_STOP_S)
        finally:
            process.kill()
            process.wait()

    def lose(self, what: str) -> None:
        """Take the power from it: it and all that it started are gone at once."""
        process = self._running.pop(what)
        process.kill()
        process.wait()

    def cut(self, number: int) -> None:
        """Pull a machine's cable."""
        _ip("-n", self._of("switch"), "link", "set", f"port{number}", "down")

    def join(self, number: int) -> None:
        """Plug it in again."""
        _ip("-n", self._of("switch"), "link", "set", f"port{number}", "up")

    def _of(self, part: str) -> str:
        return f"{self._name}-{part}"

    def _namespace(self, part: str) -> str:
        name = self._of(part)
        _ip("netns", "add", name)
        self._made.callback(_ip, "netns", "delete", name)
        return name


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
