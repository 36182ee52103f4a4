"""The operator's queues in the policy's words: devices become milli-slots, seconds milliseconds."""

from compute_hub.settings import Quota, Settings
from scheduler.policy import model
from scheduler.policy.model import WHOLE_MILLI, Queue


def live_queues(settings: Settings) -> tuple[Queue, ...]:
    """What the operator guarantees, bounds and weighs; each queue bears its tenant's id as its name."""
    return tuple(
        Queue(
            name=str(queue.tenant),
            quotas={name: _quota(quota) for name, quota in sorted(queue.quotas.items())},
            max_wait_ms=None if queue.max_wait_s is None else queue.max_wait_s * 1000,
            running_max=queue.running_max,
        )
        for queue in settings.queues
    )


def _quota(quota: Quota) -> model.Quota:
    return model.Quota(
        guarantee_milli=quota.guaranteed * WHOLE_MILLI,
        borrow_milli=None if quota.borrowed_max is None else quota.borrowed_max * WHOLE_MILLI,
        lend_milli=None if quota.lent_max is None else quota.lent_max * WHOLE_MILLI,
        weight=quota.weight,
    )
