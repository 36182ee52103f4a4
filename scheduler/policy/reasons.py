"""Why a job waits, in words its owner understands; asked for per job, so that cycles do not pay for it."""

from scheduler.policy.capacity import Pool
from scheduler.policy.model import WHOLE_MILLI, Topology, Waiting
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import find, fitting_nodes
from scheduler.policy.queues import whole_devices
from scheduler.policy.shapes import Shape
from scheduler.policy.state import SchedulerState


def explain(state: SchedulerState, job_id: str, now_ms: int, start_estimate_ms: int | None = None) -> Waiting:
    """The first rule that keeps the job from running. Raises UnknownJob when it is not queued.

    The codes, in the order they are tested: `held`, `dependency_failed`, `dependency`, `not_before`,
    `no_such_device`, `too_large`, `queue_limit`, `user_limit`, `array_limit`, `quota`, `capacity`, `order`.
    """
    queued = state.waiting(job_id)
    code, sentence = _first_reason(state, queued, now_ms)
    return Waiting(job_id, code, sentence, start_estimate_ms)


def _first_reason(state: SchedulerState, queued: QueuedJob, now_ms: int) -> tuple[str, str]:
    return (
        _not_ready(state, queued, now_ms)
        or impossible(state, queued)
        or _limited(state, queued)
        or _over_quota(state, queued)
        or _no_room(queued)
        or ("order", "fits now and is next in order at the coming cycle, or gives way to a reservation")
    )


def _not_ready(state: SchedulerState, queued: QueuedJob, now_ms: int) -> tuple[str, str] | None:
    job = queued.job
    if job.id in state.held:
        return "held", "held; it starts after it is released"
    failed = [needed for needed in job.depends_on if needed in state.failed]
    if failed:
        return "dependency_failed", f"depends on job {failed[0]}, which failed; withdraw it or submit it anew"
    missing = [needed for needed in job.depends_on if needed not in state.succeeded]
    if missing:
        return "dependency", f"waiting for job {missing[0]} and {len(missing) - 1} others to succeed" if len(
            missing
        ) > 1 else f"waiting for job {missing[0]} to succeed"
    if job.not_before_ms > now_ms:
        return "not_before", f"asked not to start for another {(job.not_before_ms - now_ms) // 1000} s"
    return None


def impossible(state: SchedulerState, queued: QueuedJob) -> tuple[str, str] | None:
    """Why no state of this cluster could run the job, or None."""
    shape = queued.shape
    pools = shape.resolve(state.capacity)
    if not pools:
        wanted = " or ".join(shape.models) or f"devices of at least {shape.min_pflops_milli / 1000:g} PFLOPS"
        return "no_such_device", f"no node has {wanted}"
    if shape.possible is None:
        shape.possible = any(could_ever_fit(shape, pool) for pool in pools)
    if not shape.possible:
        return "too_large", f"asks for {wording(shape)}, more than this cluster has even when it is empty"
    return None


def could_ever_fit(shape: Shape, pool: Pool) -> bool:
    """Whether an empty pool would hold the gang."""
    fitting = 0
    for node in pool.states:
        facts = node.node
        roomy = facts.cpu_milli >= shape.cpu_milli and facts.memory_mib >= shape.memory_mib
        if roomy and node.healthy_mask.bit_count() >= shape.devices_per_node:
            fitting |= node.bit
    needed = shape.nodes + bool(shape.tail_devices)
    if shape.topology is Topology.SAME_SWITCH and pool.domains:
        innermost = max(len(path) for path in pool.domains)
        return any(
            (fitting & nodes).bit_count() >= needed
            for path, nodes in pool.domains.items()
            if len(path) == innermost
        )
    return fitting.bit_count() >= needed


def _limited(state: SchedulerState, queued: QueuedJob) -> tuple[str, str] | None:
    job = queued.job
    full = state.queues.full_for(queued.leaf, job.user)
    if full is not None:
        most = full.queue.running_max
        if most is not None and full.running >= most:
            return "queue_limit", f"queue {full.name!r} runs {full.running} jobs, which is its limit"
        most = full.queue.user_running_max
        return "user_limit", f"user {job.user!r} runs {most} jobs in queue {full.name!r}, which is the limit"
    if job.array_running_max and state.array_running[job.array_id] >= job.array_running_max:
        return "array_limit", f"{job.array_running_max} jobs of its array run, which is its limit"
    return None


def _over_quota(state: SchedulerState, queued: QueuedJob) -> tuple[str, str] | None:
    job = queued.job
    refusing = None
    for pool in queued.shape.pools:
        refusing = state.queues.refusal(queued.leaf, pool.model, job.devices_milli, pool.capacity_milli)
        if refusing is None:
            return None
    if refusing is None:
        return None
    pool = queued.shape.pools[-1]
    used = whole_devices(refusing.used.get(pool.model, 0))
    if refusing.parent is None:
        return "quota", (
            f"waiting for {whole_devices(job.devices_milli)} {pool.model}; {used} are in use and the idle rest "
            "is a guarantee that is not lent"
        )
    quota = refusing.quota(pool.model)
    bound = whole_devices(quota.guarantee_milli + (quota.borrow_milli or 0))
    return "quota", (
        f"queue {refusing.name!r} uses {used} of at most {bound} {pool.model} (guarantee and borrow limit); "
        f"the job needs {whole_devices(job.devices_milli)} more"
    )


def _no_room(queued: QueuedJob) -> tuple[str, str] | None:
    shape = queued.shape
    if any(find(shape, pool) is not None for pool in shape.pools):
        return None
    pool = shape.pools[0]
    fitting = fitting_nodes(shape, pool).bit_count()
    free = whole_devices(pool.free_milli)
    where = " in one switch" if shape.topology is Topology.SAME_SWITCH else ""
    sentence = f"waiting for {wording(shape)}{where}; {free} devices of {pool.model} are free"
    if shape.nodes > 1:
        sentence += f", {fitting} nodes could take a part"
    return "capacity", sentence


def wording(shape: Shape) -> str:
    """What a shape asks for, for people."""
    model = " or ".join(shape.models) or "device"
    if not shape.devices_per_node:
        return f"{shape.cpu_milli / 1000:g} processors and {shape.memory_mib} MiB on {shape.nodes} nodes"
    each = (
        f"{shape.devices_per_node} free {model}"
        if shape.slots_milli == WHOLE_MILLI
        else f"{shape.devices_per_node} × {shape.slots_milli}/1000 of {model}"
    )
    if shape.nodes == 1:
        return f"{each} on one node"
    tail = f" and {shape.tail_devices} more on an empty node" if shape.tail_devices else ""
    return f"{shape.nodes} nodes with {each} each{tail}"
