"""How the policy refuses: each refusal names the thing, the field and what is known instead."""

from kernel.errors import Conflict, Invalid, NotFound


class UnknownQueue(NotFound):
    """A job or a queue names a queue that is not there."""

    sentence = "{field}: there is no queue {queue!r}; known queues are {known}."


class UnknownModel(NotFound):
    """A job, a quota or a cluster names an accelerator model no node has."""

    sentence = "{field}: no node has accelerator model {model!r}; known models are {known}."


class UnknownPolicy(NotFound):
    """A policy or placement name that does not exist."""

    sentence = "{field}: there is no {kind} {name!r}; known names are {known}."


class UnknownNode(NotFound):
    """An event names a node that has not joined."""

    sentence = "{field}: there is no node {node!r}."


class UnknownJob(NotFound):
    """An event names a job that is neither queued nor running."""

    sentence = "{field}: job {job!r} is not {expected}."


class CyclicQueues(Invalid):
    """Following parents from a queue comes back to it."""

    sentence = "{field}: the parents of queue {queue!r} form a cycle: {cycle}."


class GuaranteeAboveCapacity(Invalid):
    """Guarantees of siblings add up to more than there is to give."""

    sentence = (
        "{field}: the queues under {parent!r} are guaranteed {guaranteed_milli} milli-devices of {pool!r}, "
        "but only {capacity_milli} exist there."
    )


class QueueIsNotALeaf(Invalid):
    """Jobs are queued at leaves only."""

    sentence = "{field}: queue {queue!r} has children; queue the job at one of {known}."


class ImpossibleJob(Invalid):
    """No cluster state could ever run the job."""

    sentence = "{field}: job {job!r} can never run here: {why}."


class MalformedJob(Invalid):
    """A field of a job holds a value that cannot be meant."""

    sentence = "{field}: {value!r} of job {job!r} is not possible: {why}."


class SliceTaken(Conflict):
    """An allocation event claims milli-slots that are not free."""

    sentence = "{field}: slots [{slot_lo}, {slot_hi}) of device {device} on node {node!r} are not free."


class DuplicateQueue(Conflict):
    """A queue name that is taken."""

    sentence = "{field}: there is a queue {queue!r} already."


class DuplicateJob(Conflict):
    """A job id that is already queued or running."""

    sentence = "{field}: job {job!r} is already here."
