"""One rank of a job's private Ray cluster: starts Ray inside the rank's own sandbox, then runs the tenant's program.

Sent as source to the environment's Python (`private.py`), so it imports nothing but the standard library. Rank 0 runs
the head and the program, the others a raylet each. The ranks share a network that nobody else is in: neither can they
reach the hub's Ray, nor can another tenant reach theirs. A token made here is asked of everybody all the same.
Nothing has to be cleaned up: Ray's processes end with the sandbox they run in.

    rank 0: start head ── token ──► others: start raylet ── ready ──► rank 0: program … ends ── end ──► others end
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address
from typing import NoReturn

GCS_PORT = 6379
PATIENCE_S = 300
STORE_BYTES_MIN = 80 << 20
LOST, NOT_FOUND, NOT_EXECUTABLE, SIGNALLED = 1, 127, 126, 128


def address_of(rank: int) -> str:
    """The rank's own address, so that raylets beside each other in one namespace share no port.

    Over several hosts ranks have one each, from that of rank 0 on; on one host they take one of the loopback network's.
    """
    first = ip_address(os.environ["MASTER_ADDR"])
    return str((ip_address("127.0.0.2") if first.is_loopback else first) + rank)


class Ray:
    """This rank's part of Ray, begun when this is made.

    Attributes:
        environment: in which a program finds Ray and is let in.
    """

    def __init__(self, rank: int, cpus: int, memory_mib: int, token: str) -> None:
        where = f"{address_of(0)}:{GCS_PORT}"
        self.environment = dict(
            os.environ,
            RAY_ADDRESS=where,
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=token,
            RAY_USAGE_STATS_ENABLED="0",
            RAY_memory_monitor_refresh_ms="0",  # it would watch the machine's memory instead of the job's
        )
        head = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false"]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"),
            *(head if rank == 0 else [f"--address={where}"]),
            f"--node-ip-address={address_of(rank)}",
            f"--num-cpus={cpus}",
            f"--memory={memory_mib << 20}",
            *accelerators(),
            f"--object-store-memory={store_bytes()}",
        ]
        self._rank = rank
        self._starting = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def stands(self) -> None:
        """Wait until it does; what Ray said is printed if it does not."""
        said, _ = self._starting.communicate()
        if self._starting.returncode != 0:
            give_up(f"Ray did not start on rank {self._rank}: {said}")


def accelerators() -> list[str]:
    """Ray's resources for the devices allocated here: GPU and NPU where Ray can show them, `hub_device` for all."""
    seen = {
        name: len([index for index in os.environ.get(variable, "").split(",") if index])
        for name, variable in (
            ("hub_device", "HUB_DEVICES"),
            ("NPU", "ASCEND_RT_VISIBLE_DEVICES"),
            ("GPU", "CUDA_VISIBLE_DEVICES"),
        )
    }
    gpus = seen.pop("GPU")
    return [f"--num-gpus={gpus}", f"--resources={json.dumps({name: n for name, n in seen.items() if n})}"]


def store_bytes() -> int:
    """Most of what the sandbox has of shared memory, for Ray's objects."""
    shared = os.statvfs("/dev/shm")  # noqa: S108 - the sandbox's own
    return max(STORE_BYTES_MIN, shared.f_bavail * shared.f_frsize * 7 // 10)


def lead(world_size: int, cpus: int, memory_mib: int, argv: list[str]) -> int:
    """Rank 0: the head, then the program; the others are let go when it has ended. The program's exit status."""
    token = secrets.token_hex(32)
    where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    with socket.create_server(where, backlog=world_size) as listener:
        ray = Ray(0, cpus, memory_mib, token)
        listener.settimeout(PATIENCE_S)
        others = [listener.accept()[0] for _ in range(world_size - 1)]
    for other in others:
        other.settimeout(PATIENCE_S)
        other.sendall(f"{token}\n".encode())
    ray.stands()
    for other in others:
        if other.recv(1) != b"r":
            give_up("a rank of the Ray cluster was lost before the program began")
    signal.signal(signal.SIGTERM, lambda *_: None)  # the program has it, too, and has its grace period
    try:
        program = subprocess.Popen(argv, env=ray.environment)
    except OSError as error:
        print(f"hub: {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    status = program.wait()
    for other in others:
        other.sendall(b"e")
    return status if status >= 0 else SIGNALLED - status


def follow(rank: int, cpus: int, memory_mib: int) -> int:
    """Another rank: a raylet for as long as rank 0 has use for it."""
    with connected(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])) as leader:
        words = leader.makefile("rb")
        token = words.readline().decode().strip()
        if not token:
            give_up("rank 0 was lost before Ray began")
        connected(address_of(0), GCS_PORT).close()  # Ray itself would not wait for its head
        Ray(rank, cpus, memory_mib, token).stands()
        leader.settimeout(None)
        leader.sendall(b"r")
        return 0 if words.read(1) == b"e" else LOST


def connected(host: str, port: int) -> socket.socket:
    """A connection to rank 0, which may still be on its way."""
    for _ in range(PATIENCE_S * 10):
        try:
            return socket.create_connection((host, port), timeout=PATIENCE_S)
        except OSError:
            signal.sigtimedwait([], 0.1)
    return give_up("rank 0 never came")


def give_up(why: str) -> NoReturn:
    """Say why and leave."""
    print(f"hub: {why}", file=sys.stderr, flush=True)
    raise SystemExit(LOST)


def main() -> int:
    """Arguments: processors, MiB of memory, then the tenant's program."""
    cpus, memory_mib, *argv = sys.argv[1:]
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank == 0:
        return lead(world_size, int(cpus), int(memory_mib), argv)
    return follow(rank, int(cpus), int(memory_mib))


if __name__ == "__main__":
    sys.exit(main())
