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
from tests.switch import Switch, switched

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
        self._switch: Switch
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._made = ExitStack()

    def __enter__(self) -> Self:
        """Make them."""
        addresses = [(f"{self.address(number)}/24",) for number in range(self._count)]
        self._switch = self._made.enter_context(switched(addresses))
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
                [
                    *("ip", "netns", "exec", self._switch.machines[number], *apart, "sh", "-ec", _ENTER, "sh"),
                    *argv,
                ],
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
        self._switch.cut(number)

    def join(self, number: int) -> None:
        """Plug it in again."""
        self._switch.join(number)
