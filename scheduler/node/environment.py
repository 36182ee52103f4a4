"""The environment variables of a job: nothing of ours, what its tenant asked for, then what the hub promises.

The hub's own variables win over the tenant's, so that a rank cannot be lied to about who it is.
"""

import re
from typing import Final

from scheduler.node.config import Environment, NodeConfig, SandboxMode
from scheduler.node.devices import device_environment
from scheduler.node.errors import InvalidRun
from scheduler.node.overlay import INTERFACE
from scheduler.node.protocol import Gang, RunSpec

JOB_HOME: Final = "/job"
CHECKPOINTS: Final = "/checkpoints"
SYSTEM_PATH: Final = ("/usr/local/bin", "/usr/bin", "/bin")

_INTERFACE_VARIABLES: Final = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME")
"""Where frameworks are told which interface leads to the other ranks; left alone they may try the loopback one."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOADER = re.compile(r"LD_\w+|GLIBC_TUNABLES|BASH_ENV|ENV")


def rank_environment(spec: RunSpec) -> dict[str, str]:
    """What torchrun users expect, and the hub's names for it."""
    gang = spec.gang or Gang(id=spec.job_id)
    return {
        "HUB_JOB_ID": spec.job_id,
        "HUB_RUN_ID": spec.run_id,
        "HUB_ATTEMPT": str(spec.attempt),
        "HUB_RANK": str(spec.rank),
        "HUB_NODE_RANK": str(spec.node_rank),
        "HUB_LOCAL_RANK": str(spec.local_rank),
        "HUB_WORLD_SIZE": str(spec.world_size),
        "HUB_LOCAL_WORLD_SIZE": str(spec.local_world_size),
        "RANK": str(spec.rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_RANK": str(spec.local_rank),
        "LOCAL_WORLD_SIZE": str(spec.local_world_size),
        "GROUP_RANK": str(spec.node_rank),
        "MASTER_ADDR": gang.master_addr,
        "MASTER_PORT": str(gang.master_port),
        **(dict.fromkeys(_INTERFACE_VARIABLES, INTERFACE) if gang.peers else {}),
        **({"TRACEPARENT": spec.traceparent} if spec.traceparent else {}),
    }


def job_environment(spec: RunSpec, config: NodeConfig, software: Environment) -> dict[str, str]:
    """The whole environment of the job's first process. Raises InvalidRun."""
    _check(spec.env, config.limits.env_bytes)
    path = ":".join((*software.path, *SYSTEM_PATH))
    return {
        "PATH": path,
        "HOME": JOB_HOME,
        "TMPDIR": "/tmp",  # noqa: S108 - the job's own private /tmp
        "USER": "job",
        "LANG": "C.UTF-8",
        "HUB_SECRETS": "/run/secrets",
        **_checkpoints(spec, config),
        **software.env,
        **spec.env,
        **rank_environment(spec),
        **device_environment(config.devices, spec.devices),
    }


def _checkpoints(spec: RunSpec, config: NodeConfig) -> dict[str, str]:
    if not spec.checkpoints:
        return {}
    shown = spec.checkpoints if config.sandbox is SandboxMode.PROCESS else CHECKPOINTS
    return {"HUB_CHECKPOINTS": shown}


def loader_variables(env: dict[str, str]) -> dict[str, str]:
    """Those that would make a program of ours run the tenant's code; only the job itself may be started with them."""
    return {name: value for name, value in env.items() if _LOADER.fullmatch(name)}


def _check(env: dict[str, str], bytes_max: int) -> None:
    for name, value in env.items():
        if not _NAME.fullmatch(name):
            raise InvalidRun(field=f"env.{name}", problem="is not the name of a variable")
        if "\0" in value:
            raise InvalidRun(field=f"env.{name}", problem="contains a NUL")
    size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in env.items())
    if size > bytes_max:
        raise InvalidRun(field="env", problem=f"has {size} bytes; at most {bytes_max} are allowed")
