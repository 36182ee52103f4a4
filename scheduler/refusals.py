"""Everything the scheduler refuses, each with the facts and what to change."""

from kernel.errors import Conflict, Invalid, NotFound


class UnknownAccelerator(Invalid):
    """The centre has no device of that model."""

    sentence = "{field}: the centre has no accelerator {model!r}; it has {known}. Choose one of these."


class TooManyDevicesPerNode(Invalid):
    """No node of the centre has that many devices of the model."""

    sentence = (
        "{field}: a job asks for {asked} devices on one node, but the largest node with {models} has {largest}. "
        "Ask for at most {largest} per node, or for more nodes."
    )


class TooManyNodes(Invalid):
    """The centre has fewer nodes that could ever hold one part of the job."""

    sentence = (
        "{field}: a job asks for {asked} nodes of {devices} devices each, but only {fitting} nodes of the centre have "
        "that many {models}. Ask for fewer nodes."
    )


class FractionOfGang(Invalid):
    """A slice of a device was asked for together with several devices."""

    sentence = (
        "{field}: a fraction of a device ({slots_milli} of 1000 slots) can be had only by a job with one device on one "
        "node. Ask for whole devices, or for one device."
    )


class UnknownEnvironment(Invalid):
    """The operator offers no environment of that name."""

    sentence = "{field}: there is no environment {environment!r}; there are {known}. Choose one of these."


class JobNotFound(NotFound):
    """There is no such job, or it is another tenant's."""

    sentence = "There is no job {job_id}. `hub job list` shows yours."


class JobAlreadyEnded(Conflict):
    """The job is over; nothing can be done to it any more."""

    sentence = "Job {job_id} has already ended ({state}); it can no longer be cancelled."


class LeadershipLost(Conflict):
    """Another controller holds the lease; whatever this one wanted to write is void."""

    sentence = "Controller {holder} of epoch {epoch} is no longer the leader; nothing was written."
