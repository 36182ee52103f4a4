"""What is said over the supervisor's socket: one JSON object per line, a request and then its answer.

`{"method": "sync", "params": {…}}` is answered by `{"ok": {…}}` or `{"error": {"code", "message", "field"}}`.
Every type here is frozen, counts in integers with the unit last in the name, and is decoded strictly
(`scheduler.node.codec`). Times called `_unix_ms` label events for people; `_boot_ms` are CLOCK_BOOTTIME and
comparable only under the same `boot_id`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from typing import Final

SLOTS_PER_DEVICE: Final = 1000
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
PROTOCOL_VERSION: Final = 1

UNAVAILABLE: Final = "unavailable"
"""The level of isolation of a node that starts nothing."""

RANK_NETWORK: Final = IPv4Network("10.0.0.0/16")
"""Where ranks have their addresses in a gang that spans hosts: each gang has one of its own."""

PIDS: Final = 512
"""Processes and threads a run may have, unless its specification says otherwise."""


class Network(StrEnum):
    """Whom a run may talk to."""

    NONE = "none"
    JOB = "job"
    HOST = "host"


class RunState(StrEnum):
    """Where a run is in its life; it only moves forward."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a run ended; `exited` is the only one the job chose itself."""

    EXITED = "exited"
    STOPPED = "stopped"
    TIMED_OUT = "timed_out"
    LEASE_LOST = "lease_lost"
    START_FAILED = "start_failed"
    NODE_FAILED = "node_failed"
    OOM = "oom"
    DISK_FULL = "disk_full"
    JOURNAL_FULL = "journal_full"
    DEVICE_HELD = "device_held"
    SUPERVISOR_LOST = "supervisor_lost"


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """Slots `[slot_lo, slot_hi)` of the node's device `index`; [0, 1000) is the whole card."""

    index: int
    slot_lo: int = 0
    slot_hi: int = SLOTS_PER_DEVICE


@dataclass(frozen=True, slots=True)
class Bundle:
    """The tenant's working directory: a .tar or .tar.gz in the workspace store, named by its SHA-256."""

    path: str
    sha256: str


def rank_address(rank: int) -> str:
    """A rank's own address in the network of a gang that spans hosts."""
    return str(RANK_NETWORK[1 + rank])


@dataclass(frozen=True, slots=True)
class Gang:
    """How the ranks of one attempt find each other (network `job`).

    `id` names the attempt: ranks on one host with the same id share one network namespace. Where the gang spans hosts,
    `peers` are by rank the `Spanning.address` of the host that the rank is on; where it does not, there are none.
    """

    id: str
    master_port: int = 29500
    peers: tuple[str, ...] = ()

    @property
    def master_addr(self) -> str:
        """Where the ranks find rank 0."""
        return rank_address(0) if self.peers else "127.0.0.1"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One process tree to run on this node: one rank of one attempt of a job. Never changes under its id.

    `workspace` is the host directory that becomes /job; `log` the host file that receives stdout and stderr;
    `checkpoints`, unless empty, the host directory that every attempt of this rank finds again. All lie below the
    node's workspace root and `log` in neither of the others. `secrets` become files in /run/secrets and are never
    written to disk. `traceparent` is what the job's submission belongs to. Zero means no limit for `time_limit_ms` and
    `cpu_milli`, and no signal for `notice_signal`, which accompanies a notice.
    """

    run_id: str
    job_id: str
    tenant_id: str
    attempt: int
    argv: tuple[str, ...]
    workspace: str
    log: str
    checkpoints: str = ""
    rank: int = 0
    node_rank: int = 0
    local_rank: int = 0
    local_world_size: int = 1
    world_size: int = 1
    env: dict[str, str] = field(default_factory=dict)
    environment: str = ""
    bundle: Bundle | None = None
    devices: tuple[DeviceShare, ...] = ()
    cpu_milli: int = 0
    memory_mib: int = 512
    pids: int = PIDS
    time_limit_ms: int = 0
    grace_ms: int = 5000
    network: Network = Network.NONE
    gang: Gang | None = None
    traceparent: str = ""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    notice_signal: int = 0


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What has become of a run. `reason` is a sentence for people; facts are in the other fields."""

    run_id: str
    job_id: str
    attempt: int
    rank: int
    state: RunState
    pid: int | None = None
    started_unix_ms: int | None = None
    started_boot_ms: int | None = None
    ended_unix_ms: int | None = None
    ended_boot_ms: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    end_reason: EndReason | None = None
    reason: str = ""
    log_bytes: int = 0
    log_truncated: bool = False


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """The k-th stretch of metered time of a run; contiguous from 0 to the one marked final.

    `offset_ms` is where it begins after the run's start, `duration_ms` how long it is, both from
    CLOCK_BOOTTIME. `slot_ms` is duration × the sum of slots held: 1000 slot_ms are one card-millisecond.
    `memory_bytes_max` is the most its processes were seen to keep so far. `device_busy_ms` (card milliseconds) and
    `energy_mj` are what the devices themselves say, None where they say nothing, as is `device_memory_bytes_max`, the
    most that the run's share of their own memory was seen to hold so far.
    """

    id: str
    run_id: str
    job_id: str
    tenant_id: str
    attempt: int
    rank: int
    k: int
    boot_id: str
    offset_ms: int
    duration_ms: int
    started_unix_ms: int
    devices: tuple[DeviceShare, ...]
    slot_ms: int
    cpu_ms: int
    final: bool
    memory_bytes_max: int = 0
    device_busy_ms: int | None = None
    energy_mj: int | None = None
    device_memory_bytes_max: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One accelerator of the node: an unhealthy one takes no new jobs, what runs on one that has failed must stop."""

    index: int
    model: str
    vendor: str
    healthy: bool
    reason: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Isolation:
    """How well this node keeps tenants apart: full, user, process or unavailable, and what is missing."""

    level: str
    weaknesses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spanning:
    """Whether gangs of this host and others can have a network together.

    `address` is where the other hosts reach it, empty if they cannot; `problem` is why, a sentence for people.
    """

    address: str = ""
    problem: str = "This node does not say where other hosts reach it."


@dataclass(frozen=True, slots=True)
class Refusal:
    """A desired run that this node will not start, and why; it has neither status nor usage here."""

    run_id: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """What the controller of an epoch wants on this node: exactly these runs, for `lease_ms` from `as_of` on.

    Args:
        desired: what is to run here and was not seen here yet.
        going_on: ids of runs that this node has reported and that are to go on; one that is not known here
            is not started, and is missing from the report.
        as_of_boot_ms: `boot_ms` of the node's last report that the sender has; None counts from the arrival. A request
            that was so long on its way that its lease is over, or is older than the supervisor, is only answered,
            never obeyed: whatever was delayed, no lease goes on longer than `lease_ms` after the sender last heard
            of the node, and a run that an answer does not name is not started by what was asked before.
        instance: whose report that was. A request that follows another supervisor's report (an earlier one of this
            node, or one of the same name elsewhere) is only answered, too.
        number: counts the requests of an epoch; one that was overtaken by a later one is only answered, too.
        acknowledged_usage: ids of usage records that are safe with the controller.
        acknowledged_exits: run ids whose end is safe with the controller.
        notices: by run id, a sentence the job is told once, in the file /job/HUB_NOTICE.
    """

    epoch: int
    lease_ms: int
    desired: tuple[RunSpec, ...] = ()
    going_on: tuple[str, ...] = ()
    acknowledged_usage: tuple[str, ...] = ()
    acknowledged_exits: tuple[str, ...] = ()
    notices: dict[str, str] = field(default_factory=dict)
    as_of_boot_ms: int | None = None
    instance: str = ""
    number: int = 0

    def is_for(self, instance: str, began_ms: int, now_ms: int) -> bool:
        """Whether a supervisor may obey it: it follows a report of its own, and its lease is not over."""
        if self.as_of_boot_ms is None:
            return True
        own = began_ms <= self.as_of_boot_ms <= now_ms and self.instance in {"", instance}
        return own and now_ms < self.as_of_boot_ms + self.lease_ms


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the node knew at `boot_ms`; `seq` is what `wait_for_change` waits beyond."""

    node: str
    host_id: str
    boot_id: str
    boot_ms: int
    epoch_seen: int
    instance: str
    seq: int
    runs: tuple[RunStatus, ...]
    usage: tuple[UsageRecord, ...]
    usage_pending: int
    refused: tuple[Refusal, ...]
    devices: tuple[DeviceStatus, ...]
    isolation: Isolation
    labels: dict[str, str]
    cpu_milli: int
    memory_mib: int
    spanning: Spanning = field(default_factory=Spanning)


@dataclass(frozen=True, slots=True)
class Hello:
    """Who answers on the socket."""

    node: str
    host_id: str
    boot_id: str
    instance: str
    protocol: int
    pid: int
    isolation: Isolation


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """Answer as soon as any run changed state after `after_seq`, or after `timeout_ms`."""

    after_seq: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class OverRequest:
    """Sync as soon as none of these runs lives any more; after `timeout_ms` do nothing.

    To the node it is a request that was long on its way: one that was overtaken meanwhile is only answered.
    """

    runs: tuple[str, ...]
    timeout_ms: int
    sync: SyncRequest


@dataclass(frozen=True, slots=True)
class Over:
    """What the sync reports; None if some of the runs still live, and nothing was done."""

    report: Report | None


@dataclass(frozen=True, slots=True)
class Change:
    """The sequence number now; `instance` changes with every start of the supervisor (numbers start anew)."""

    seq: int
    instance: str
