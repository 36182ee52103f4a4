"""Why a job waits, in words its owner understands; asked for per job, so that cycles do not pay for it."""

from datetime import UTC, datetime

from scheduler.policy.capacity import Pool
from scheduler.policy.model import WHOLE_MILLI, Topology, Waiting
from scheduler.policy.pending import QueuedJob
from scheduler.policy.placement import find, fitting_nodes, networks_smallest_first
from scheduler.policy.queues import whole_devices
from scheduler.policy.rights import usable_milli
from scheduler.policy.shapes import Shape
from scheduler.policy.state import RunningJob, SchedulerState


def explain(state: SchedulerState, job_id: str, now_ms: int, start_estimate_ms: int | None = None) -> Waiting:
    """The first rule that keeps the job from running. Raises UnknownJob when it is not queued.

    The codes, in the order they are tested: `held`, `dependency_failed`, `dependency`, `not_before`,
    `no_such_device`, `too_large`, `beyond_quota`, `queue_limit`, `user_limit`, `array_limit`, `nominated`,
    `quota`, `capacity`, `reservation`, `nomination`, `promise`, `order`.
    """
    queued = state.waiting(job_id)
    code, sentence = _first_reason(state, queued, now_ms)
    return Waiting(job_id, code, sentence, start_estimate_ms)


def clock(at_ms: int, now_ms: int) -> str:
    """A time for people: hours and minutes, with the date unless it is today (UTC)."""
    at, now = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (at_ms, now_ms))
    return f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"


def _first_reason(state: SchedulerState, queued: QueuedJob, now_ms: int) -> tuple[str, str]:
    known = (
        _not_ready(state, queued, now_ms)
        or impossible(state, queued)
        or _limited(state, queued)
        or _nominated(state, queued)
    )
    if known is not None:
        return known
    job, model_allows = queued.job, state.queues.refusal
    pools = [
        pool
        for pool in queued.shape.pools
        if model_allows(
            queued.leaf,
            pool.model,
            job.devices_milli,
            usable_milli(state, pool),
            opportunistic=job.preemptible,
        )
        is None
    ]
    if not pools:
        return _over_quota(state, queued, now_ms)
    if all(find(queued.shape, pool) is None for pool in pools):
        return _no_room(state, queued, pools, now_ms)
    return _kept_for_others(state, queued, pools, now_ms) or (
        "order",
        "fits now and is next in order at the coming cycle",
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
        return "not_before", f"asked not to start before {clock(job.not_before_ms, now_ms)}"
    return None


def impossible(state: SchedulerState, queued: QueuedJob) -> tuple[str, str] | None:
    """Why no state of this cluster could run the job, or None."""
    shape = queued.shape
    pools = shape.resolve(state.capacity)
    if not pools:
        wanted = " or ".join(shape.models) or f"devices of at least {shape.min_pflops_milli / 1000:g} PFLOPS"
        return "no_such_device", f"no node has {wanted}"
    if shape.possible is None:
        shape.possible = tuple(pool for pool in pools if could_ever_fit(shape, pool))
    if not shape.possible:
        return "too_large", f"asks for {wording(shape)}, more than this cluster has even when it is empty"
    if state.queues.plain and not shape.tail_devices:
        return None  # what holds the gang has as many devices, and no queue has a bound
    milli, spare = queued.job.devices_milli, queued.job.preemptible
    if not any(
        state.queues.ever_allows(queued.leaf, pool.model, milli, pool.installed_milli, opportunistic=spare)
        for pool in shape.possible
    ):
        return (
            "beyond_quota",
            f"asks for {_counted(whole_devices(milli), 'device')}, more than its queue may ever use",
        )
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
    return any(_holds(shape, pool, nodes, needed) for nodes in networks_smallest_first(shape, pool, fitting))


def _holds(shape: Shape, pool: Pool, fitting: int, needed: int) -> bool:
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
            return (
                "queue_limit",
                f"queue {full.name!r} runs {_counted(full.running, 'job')}, which is its limit",
            )
        most = full.queue.user_running_max
        runs = _counted(most or 0, "job")
        return "user_limit", f"user {job.user!r} runs {runs} in queue {full.name!r}, which is the limit"
    if job.array_running_max and state.array_running[job.array_id] >= job.array_running_max:
        return "array_limit", f"its array runs {_counted(job.array_running_max, 'job')}, which is its limit"
    return None


def _nominated(state: SchedulerState, queued: QueuedJob) -> tuple[str, str] | None:
    known = state.promises.nominations.by_job.get(queued.job.id)
    if known is None:
        return None
    victims = _counted(len(known.victims), "running job")
    if known.due_ms is None:
        return "nominated", f"room is being made for it: {victims} told to stop"
    return "nominated", f"room will be made for it by {victims} at the end of the minimum run time"


def _over_quota(state: SchedulerState, queued: QueuedJob, now_ms: int) -> tuple[str, str]:
    """Every pool is refused: by a queue's bound, by what is not lent, or because it is simply all in use."""
    job, pools = queued.job, queued.shape.pools
    milli = job.devices_milli
    for pool in pools:
        there_milli = usable_milli(state, pool)
        refusing = state.queues.refusal(
            queued.leaf, pool.model, milli, there_milli, opportunistic=job.preemptible
        )
        if refusing is None or refusing.parent is None:
            continue
        used, bound = refusing.used.get(pool.model, 0), refusing.bound(pool.model) or 0
        kept = " and keeps a guarantee that is not lent" if used + milli <= bound else ""
        return "quota", (
            f"queue {refusing.name!r} uses {whole_devices(used)} of at most {whole_devices(bound)} {pool.model} "
            f"(guarantee and borrow limit){kept}; the job needs {whole_devices(milli)} more"
        )
    idle = [pool for pool in pools if find(queued.shape, pool) is not None]
    if not idle:
        return _no_room(state, queued, list(pools), now_ms)
    free = whole_devices(idle[0].free_milli)
    return "quota", (
        f"waiting for {whole_devices(milli)} {idle[0].model}; the {free} that are idle are guaranteed to queues "
        "that do not lend them"
    )


def _no_room(state: SchedulerState, queued: QueuedJob, pools: list[Pool], now_ms: int) -> tuple[str, str]:
    shape = queued.shape
    if not shape.devices_per_node:
        return "capacity", f"waiting for {wording(shape)}{_expected(state, pools, now_ms)}"
    total = whole_devices(shape.demand_milli)
    model = " or ".join(shape.models) or " or ".join(pool.model for pool in pools)
    parts = [f"waiting for {total} free {model}{_where(shape)}"]
    free = max(_free_together(shape, pool) for pool in pools)
    parts.append(f"{whole_devices(free)} free")
    if free >= shape.demand_milli:
        parts.append(_fitting(shape, pools) if shape.nodes > 1 else "on no node together")
    closed = sum(pool.installed_milli - pool.capacity_milli for pool in pools)
    if closed:
        parts.append(f"{whole_devices(closed)} installed on nodes that take no new jobs")
    return "capacity", "; ".join(parts) + _expected(state, pools, now_ms)


def _fitting(shape: Shape, pools: list[Pool]) -> str:
    sets = [networks_smallest_first(shape, pool, fitting_nodes(shape, pool)) for pool in pools]
    most = max(nodes.bit_count() for of_pool in sets for nodes in of_pool)
    among = " that can have a network together" if any(len(of_pool) > 1 for of_pool in sets) else ""
    return f"on {most} of the nodes{among} a part would fit"


def _where(shape: Shape) -> str:
    together = " in one switch" if shape.topology is Topology.SAME_SWITCH and shape.nodes > 1 else ""
    beside = _beside(shape)
    if shape.nodes > 1 or shape.tail_devices:
        tail = f" and {shape.tail_devices} on an empty node" if shape.tail_devices else ""
        return f"{together} ({shape.devices_per_node} on each of {shape.nodes} nodes{tail}{beside})"
    if shape.slots_milli != WHOLE_MILLI:
        return f" on one node ({shape.devices_per_node} × {shape.slots_milli}/1000{beside})"
    return f" on one node{f' ({beside[2:]})' if beside else ''}"


def _beside(shape: Shape) -> str:
    """Processors and memory, where asked for."""
    wanted = [f"{shape.cpu_milli / 1000:g} processors"] if shape.cpu_milli else []
    wanted += [f"{shape.memory_mib} MiB"] if shape.memory_mib else []
    return f", with {' and '.join(wanted)} per node" if wanted else ""


def _free_together(shape: Shape, pool: Pool) -> int:
    """Free milli-slots of the pool, or of its roomiest switch where the job must lie in one."""
    if shape.topology is not Topology.SAME_SWITCH or shape.nodes == 1 or not pool.domains:
        return pool.free_milli
    innermost = max(len(path) for path in pool.domains)
    return max(
        sum(state.whole_free * WHOLE_MILLI for state in pool.states if state.opened and state.bit & nodes)
        for path, nodes in pool.domains.items()
        if len(path) == innermost
    )


def _expected(state: SchedulerState, pools: list[Pool], now_ms: int) -> str:
    """When something is next expected to be free there, as predicted and by limits once predictions are past."""
    models = {pool.model for pool in pools}
    ends_ms = [expected_end_ms(running, now_ms) for running in state.running.values() if running.pool in models]
    return f"; next expected {clock(min(ends_ms), now_ms)}" if ends_ms else ""


def _kept_for_others(
    state: SchedulerState, queued: QueuedJob, pools: list[Pool], now_ms: int
) -> tuple[str, str] | None:
    """There is room, but it is promised to somebody else before the job would be gone."""
    job, shape, promises = queued.job, queued.shape, state.promises
    end_ms = now_ms + job.time_limit_ms
    for pool in pools:
        barred = promises.barred(pool.model, job.id, now_ms, end_ms)
        if find(shape, pool, barred) is not None:
            return None
    pool = next(pool for pool in pools if find(shape, pool) is not None)
    limit = f"a limit of {job.time_limit_ms // 60_000} min would run into it"
    if find(shape, pool, promises.reserved_from(pool.model, job.id, now_ms, end_ms)) is None:
        return "reservation", f"what is free is reserved or about to be drained; {limit}"
    promise = promises.by_pool.get(pool.model)
    if promise is not None and find(shape, pool, promise.nodes) is None:
        from_at = clock(promise.from_ms, now_ms)
        return "promise", f"what is free is promised to an earlier job from {from_at} on; {limit}"
    return "nomination", "what is free is being cleared for a stronger claim"


def expected_end_ms(running: RunningJob, now_ms: int) -> int:
    """When a running job will probably end: as predicted, or by its limit once it has outlived the prediction."""
    predicted_ms = running.started_ms + running.predicted_ms
    return max(now_ms + 1, predicted_ms if predicted_ms > now_ms else running.ends_by_ms)


def wording(shape: Shape) -> str:
    """What a shape asks for, for people."""
    model = " or ".join(shape.models) or ("device" if shape.devices_per_node == 1 else "devices")
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
    together = " that can have a network together" if shape.talks else ""
    return f"{shape.nodes} nodes with {each} each{tail}{together}"


def _counted(count: int | str, what: str) -> str:
    return f"{count} {what}" if str(count) == "1" else f"{count} {what}s"
