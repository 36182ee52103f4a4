"""The supervisor's configuration file: what this node is, where it keeps things and what it allows.

Read once at start from one JSON file, strictly. Everything a tenant could exhaust has a bound here.
"""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from scheduler.node.codec import MalformedMessage, decode


class Vendor(StrEnum):
    """Whose accelerator it is, which decides the variable that shows it to a job."""

    NVIDIA = "nvidia"
    ASCEND = "ascend"
    CAMBRICON = "cambricon"
    SIMULATED = "simulated"


class SandboxMode(StrEnum):
    """How jobs are confined; `process` confines hardly at all and is only ever the operator's choice."""

    NAMESPACES = "namespaces"
    PROCESS = "process"


class InventorySource(StrEnum):
    """Where the devices are known from: `devices` of the file, or NVIDIA's library."""

    CONFIGURED = "configured"
    NVML = "nvml"


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. `files` are its device nodes; `imitates` is whose variable a simulated one sets, if anybody's.

    `health_file`, where it exists, says `healthy`, `unhealthy REASON` or `failed REASON`: how simulated devices break,
    and how an operator's own watchdog tells of a real one.
    """

    index: int
    model: str
    vendor: Vendor = Vendor.SIMULATED
    imitates: Vendor = Vendor.NVIDIA
    files: tuple[str, ...] = ()
    health_file: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path shown read-only inside the sandbox, at the same path unless `target` says otherwise."""

    source: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """An operator-provided software environment: read-only directories, path entries and variables."""

    mounts: tuple[Mount, ...] = ()
    path: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one run may take and one sync may ask; bytes, entries and counts, never zero."""

    runs: int = 512
    log_bytes: int = 64 * 1024 * 1024
    log_bytes_per_s: int = 32 * 1024 * 1024
    workspace_bytes: int = 20 * 1024 * 1024 * 1024
    workspace_entries: int = 1_000_000
    workspace_reserve_bytes: int = 1024 * 1024 * 1024
    workspace_step_bytes: int = 64 * 1024 * 1024
    bundle_bytes: int = 2 * 1024 * 1024 * 1024
    bundle_entries: int = 100_000
    env_bytes: int = 128 * 1024
    argv_bytes: int = 128 * 1024
    tmp_bytes: int = 256 * 1024 * 1024
    shm_bytes: int = 256 * 1024 * 1024
    nofile: int = 65_536
    lease_grace_ms: int = 500
    unkillable_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The whole file.

    Args:
        state_directory: spool, socket and run scratch; belongs to exactly one supervisor.
        host_run_directory: shared by all supervisors of this host and user: job uids and gang networks.
        labels: what the node is known by, such as its zone and switch; the policy reads them.
        span_address: an address of this machine at which others reach it; empty: its gangs span no machines.
        cpu_milli, memory_mib: what of the machine jobs may have in all; 0 lets the policy give out none.
        cgroup_parent: an existing cgroup (v2: delegated) below which runs get theirs; empty means our own.
    """

    node: str
    host_id: str
    state_directory: str
    workspace_root: str
    host_run_directory: str
    socket: str = ""
    devices: tuple[Device, ...] = ()
    inventory: InventorySource = InventorySource.CONFIGURED
    environments: dict[str, Environment] = field(default_factory=dict)
    sandbox: SandboxMode = SandboxMode.NAMESPACES
    host_network: bool = False
    span_address: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    cpu_milli: int = 0
    memory_mib: int = 0
    uid_base: int = 700_000
    uid_count: int = 10_000
    cgroup_parent: str = ""
    meter_interval_ms: int = 60_000
    heartbeat_ms: int = 5000
    limits: Limits = field(default_factory=Limits)

    @property
    def socket_path(self) -> Path:
        """Where the supervisor listens."""
        return Path(self.socket) if self.socket else Path(self.state_directory) / "supervisor.sock"


def read_config(path: Path) -> NodeConfig:
    """The configuration in a file. Raises MalformedMessage with the path of the bad field, OSError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MalformedMessage(field=str(path), problem=f"is not JSON: {error}") from error
    config = decode(NodeConfig, data, "config")
    _check(config)
    return config


def _check(config: NodeConfig) -> None:
    for name in ("state_directory", "workspace_root", "host_run_directory"):
        if not Path(getattr(config, name)).is_absolute():
            raise MalformedMessage(field=f"config.{name}", problem="must be an absolute path")
    indices = [device.index for device in config.devices]
    if len(set(indices)) != len(indices):
        raise MalformedMessage(field="config.devices", problem="two devices have the same index")
    if config.uid_base <= 0 or config.uid_count <= 0:
        raise MalformedMessage(field="config.uid_base", problem="job uids must be positive")
    if config.devices and config.inventory is not InventorySource.CONFIGURED:
        raise MalformedMessage(field="config.devices", problem=f"come from {config.inventory}; leave them out")
    for name in ("meter_interval_ms", "heartbeat_ms"):
        if getattr(config, name) <= 0:
            raise MalformedMessage(field=f"config.{name}", problem="must be positive")
