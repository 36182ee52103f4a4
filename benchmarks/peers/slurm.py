"""Slurm from Debian's slurm-wlm: munge, one controller and two slurmd on this host, configured below one folder.

It gets its best chance: no delay between a submission or an end and the next scheduling, no cgroups, no accounting,
no output files, warm caches and a disk that owes nobody anything. Jobs are submitted one by one from several clients,
as ours are, and as one array. Its rate varies from round to round, so there are several and their median counts.
"""

import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from compute_hub.settings import inherited_environment
from compute_hub.stack.children import Child, stop_all
from kernel.clock import boottime_ms
from kernel.errors import HubError

_NODES: Final = ("n1", "n2")
_DEVICES: Final = 8
_CLIENTS: Final = 8
_PATIENCE_S: Final = 300
_READY_S: Final = 60
_LOOK_S: Final = 0.25
"""Each look is a process and a listing of all jobs, on the machine that runs them."""
_WARM_UP: Final = 40
_PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")

_CONFIG: Final = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,bf_interval=1,default_queue_depth=1000
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=accel
MinJobAge=600
PartitionName=p Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(HubError):
    """Slurm is not installed, or does not come up."""

    sentence = "Slurm {reason}. `make bench-peers` installs it; its logs are in {folder}."


def slurm_jobs_per_s(folder: Path, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """No-op jobs a second from the first submission to the last end, by round: one by one, as an array.

    Raises NoSlurm.
    """
    missing = [name for name in _PROGRAMS if not _program(name)]
    if missing:
        raise NoSlurm(reason=f"lacks {', '.join(missing)}", folder=folder)
    if os.geteuid() != 0:
        raise NoSlurm(reason="needs root here", folder=folder)
    with _cluster(folder.resolve()) as environment:
        script = folder.resolve() / "job.sh"
        script.write_text("#!/bin/sh\ntrue\n", encoding="ascii")
        one = "sbatch --parsable --gres=accel:1 -n1 -o /dev/null"
        array = [*one.split(), f"--array=1-{count}", str(script)]

        def each(jobs: int) -> list[str]:
            return ["sh", "-c", f"seq {jobs} | xargs -P {_CLIENTS} -I@ {one} {script}"]

        _rate(each(_WARM_UP), _WARM_UP, environment, folder)
        singles, arrays = [], []
        for _ in range(rounds):
            singles.append(_rate(each(count), count, environment, folder))
            arrays.append(_rate(array, count, environment, folder))
        return singles, arrays


def _rate(submit: list[str], count: int, environment: Mapping[str, str], folder: Path) -> float:
    os.sync()
    began = boottime_ms()
    subprocess.run(submit, env=dict(environment), stdout=subprocess.DEVNULL, check=True)
    _until(lambda: not _ask("squeue -h -o %i", environment), _PATIENCE_S, "does not finish its jobs", folder)
    return count / ((boottime_ms() - began) / 1000)


@contextmanager
def _cluster(folder: Path) -> Iterator[dict[str, str]]:
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state", *(f"spool-{node}" for node in _NODES)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    _configure(folder)
    environment = inherited_environment(SLURM_CONF=str(folder / "slurm.conf"))
    children: list[Child] = []

    def start(name: str, *argv: str) -> None:
        children.append(
            Child(name, [_program(argv[0]), *argv[1:]], log=folder / f"{name}.log", environment=environment)
        )

    with ExitStack() as ending:
        ending.callback(stop_all, children)
        files = {"key": key, "socket": folder / "munge.socket", "pid": folder / "munged.pid"}
        files |= {"log": folder / "munged.log", "seed": folder / "munge.seed"}
        options = [f"--{name}-file={path}" for name, path in files.items() if name != "socket"]
        start("munge", "munged", "--foreground", "--force", f"--socket={files['socket']}", *options)
        _until(files["socket"].exists, _READY_S, "has no munge", folder)
        start("controller", "slurmctld", "-D")
        for node in _NODES:
            start(node, "slurmd", "-D", "-N", node)
        idle = {f"{node} idle" for node in _NODES}
        asked = "sinfo -h -N -o %N_%T"
        _until(
            lambda: set(_ask(asked, environment).replace("_", " ").splitlines()) == idle,
            _READY_S,
            "does not come up",
            folder,
        )
        yield environment


def _configure(folder: Path) -> None:
    host, ports = socket.gethostname(), _free_ports(1 + len(_NODES))
    text = _CONFIG.format(host=host, ports=ports, folder=folder, nodes=",".join(_NODES))
    facts = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=32000 Gres=accel:{_DEVICES}"
    lines = [f"NodeName={node} Port={port} {facts}\n" for node, port in zip(_NODES, ports[1:], strict=True)]
    (folder / "slurm.conf").write_text(text.replace("PartitionName", "".join(lines) + "PartitionName"))
    (folder / "gres.conf").write_text(f"NodeName={','.join(_NODES)} Name=accel Count={_DEVICES}\n")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _program(name: str) -> str:
    return shutil.which(name, path="/usr/sbin:/usr/bin") or ""


def _ask(command: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command.split(), env=dict(environment), capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip() if done.returncode == 0 else "?"


def _until(done: Callable[[], bool], seconds: int, what: str, folder: Path) -> None:
    deadline, never = boottime_ms() + seconds * 1000, threading.Event()
    while not done():
        if boottime_ms() > deadline:
            raise NoSlurm(reason=what, folder=folder)
        never.wait(_LOOK_S)
