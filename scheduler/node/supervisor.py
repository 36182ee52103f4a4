"""The process that runs tenants' code on one machine: `python -m scheduler.node.supervisor --config FILE.json`.

One thread, one event loop: it starts what the controller desires, stops what it does not, meters, enforces
limits and leases, and reports. Its jobs die with it; what it knew does not (`spool`). It is started outside
Ray's process tree, so that no restart of Ray or of the agent touches a job. SIGTERM stops all jobs in order; SIGINT
does, too, and once they are being stopped it cuts their graces short: who sends it does not want to wait.
"""

import argparse
import asyncio
import fcntl
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from kernel.clock import boot_id, boottime_ms, unix_ms, utc_now
from kernel.collecting import collect_seldom
from kernel.errors import HubError
from kernel.ids import new_secret
from kernel.logs import configure_logs
from scheduler.node.cgroups import CgroupTree, RunCgroup
from scheduler.node.config import NodeConfig, SandboxMode, read_config
from scheduler.node.enclosure import make_room
from scheduler.node.errors import StateDirectoryInUse
from scheduler.node.etc import make_etc
from scheduler.node.fleet import Fleet
from scheduler.node.gangs import GangNetworks
from scheduler.node.identities import UidPool
from scheduler.node.inventory import open_inventory
from scheduler.node.isolation import Examination, examine
from scheduler.node.launching import Launcher
from scheduler.node.networks import LoneNetworks
from scheduler.node.nursery import Nursery
from scheduler.node.recovery import bury
from scheduler.node.server import Server
from scheduler.node.spool import Spool

_EXIT_REFUSED: Final = 2
_READY_MAX: Final = 16
"""So many processes are made ahead at most; each holds some 0.6 MB."""

_REMOVE_ROUNDS: Final = 100
_REMOVE_PAUSE_S: Final = 0.02


async def supervise(config: NodeConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises StateDirectoryInUse, NvmlMissing, OSError."""
    stop, hurry = _stop_signals()
    inventory = open_inventory(config)
    config = replace(config, devices=inventory.devices())
    _outlast_jobs()
    _have_files_open()
    state, host = Path(config.state_directory), Path(config.host_run_directory)
    for folder in (state, Path(config.workspace_root), host):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _own(state)
    config.socket_path.unlink(missing_ok=True)
    cgroups = CgroupTree(state, config.cgroup_parent)
    stuck = await _clear(cgroups)
    spool = Spool(state / "spool")
    leftovers = bury(spool, stuck, wall_ms=unix_ms(utc_now()), boot_ms=boottime_ms())
    uids = UidPool(host / "uids", config.uid_base, config.uid_count) if os.geteuid() == 0 else None
    gangs = GangNetworks(host)
    await gangs.try_to_span(config)
    etc = make_etc(state)
    encloses = uids is not None and config.sandbox is not SandboxMode.PROCESS
    nursery = Nursery(make_room(config, etc) if encloses else None)
    found = _examine(config, etc, uids, cgroups, nursery)
    networks = LoneNetworks() if encloses else None
    launcher = Launcher(config, etc, cgroups, uids, gangs, networks, nursery, found.problem)
    instance = new_secret()[:16]
    fleet = Fleet(
        config,
        boot_id(),
        instance,
        spool,
        launcher,
        found.isolation,
        gangs.spanning,
        os.getpid(),
        inventory,
        leftovers,
    )
    if encloses and not found.problem:
        nursery.keep_ready(min(len(config.devices), _READY_MAX))
    server = Server(config.socket_path, fleet)
    collect_seldom()
    await server.open()
    await stop.wait()
    await fleet.stop_all(hurry)  # still heard and answered, so that everybody has his grace
    await server.close()
    await _clear(cgroups)
    nursery.close()
    if networks is not None:
        networks.close()
    if uids is not None:
        uids.close()
    cgroups.close()
    await gangs.close()
    spool.close()
    os.close(lock)


def _stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """What is set when we are to stop, and when we are to hurry.

    Not by a second SIGTERM: that comes without anybody's haste when the process that started us ends, too.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        (hurry if stop.is_set() else stop).set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    return stop, hurry


def _outlast_jobs() -> None:
    # When the host runs out of memory; jobs put themselves first. Only root may.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-500", encoding="ascii")


def _have_files_open() -> None:
    # Some ten for each run: with the usual soft limit of 1024 nobody would be answered any more when a hundred run.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _own(state: Path) -> int:
    lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StateDirectoryInUse(directory=state) from None
    return lock


async def _clear(cgroups: CgroupTree) -> dict[str, RunCgroup]:
    """Kill what earlier runs left; by run, the groups that are not empty a little later."""
    left = list(cgroups.leftovers())
    for _ in range(_REMOVE_ROUNDS):
        for group in left:
            group.kill()
        left = [group for group in left if not group.remove()]
        if not left:
            break
        await asyncio.sleep(_REMOVE_PAUSE_S)
    return {group.run_id: group for group in left}


def _examine(
    config: NodeConfig, etc: Path, uids: UidPool | None, cgroups: CgroupTree, nursery: Nursery
) -> Examination:
    if uids is None:
        return examine(config, etc, None, nursery, cgroups=cgroups.available)
    lease = uids.lease()
    try:
        return examine(config, etc, lease.uid, nursery, cgroups=cgroups.available)
    finally:
        lease.release()


def main() -> int:
    """Read the configuration and serve; 2 when we may not or cannot."""
    parser = argparse.ArgumentParser(prog="scheduler.node.supervisor", description="Run jobs on this machine.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file, see scheduler/node/README.md")
    arguments = parser.parse_args()
    try:
        config = read_config(arguments.config)
        configure_logs(f"supervisor {config.node}")
        asyncio.run(supervise(config))
    except (HubError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the reason we do not start belongs on standard error
        return _EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
