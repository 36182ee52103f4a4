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


class GangBeyondOneMachine(Invalid):
    """Ranks that talk to each other were asked for on more nodes than any machine has, or can have a network."""

    sentence = (
        "{field}: the ranks of this job talk to each other (network: job); it asks for {asked} nodes of {devices} "
        "devices each, and no more than {fitting} such nodes with {models} can have a network together, being on one "
        "machine or on machines that span. Ask for fewer nodes with more devices each, or for network: none if its "
        "ranks need not talk."
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


class NodesTooSmall(Invalid):
    """No node with the devices a job asks for has so many processors or so much memory."""

    sentence = (
        "{field}: a job asks for {asked} {unit} on each node, but the largest node with {models} has {largest}. "
        "Ask for at most {largest}."
    )


class TooSlowAccelerators(Invalid):
    """No acceptable accelerator is stated to be as fast as the job asks."""

    sentence = (
        "{field}: a job asks for devices of at least {asked} PFLOPS, but the fastest it accepts has {fastest}. "
        "Ask for less, or accept other accelerators."
    )


class ArrayTooLarge(Invalid):
    """An array has more jobs and dependencies than one request may bring."""

    sentence = (
        "{field}: an array of {size} jobs that each wait for {count} others is more than {most} dependencies. "
        "Let one job wait for the others, and the array for that job."
    )


class ArrayOfLargeJobs(Invalid):
    """An array whose jobs together have more arguments and variables than one request may bring."""

    sentence = (
        "{field}: {size} jobs with {each} bytes of arguments and variables each are more than {most} bytes. Put what "
        "they have in common into a file of the upload."
    )


class TooManyLiveJobs(Conflict):
    """A tenant has as many jobs that have not ended as it may."""

    sentence = (
        "{asked} more jobs would be more than the {most} that may wait or run at once for one enterprise. Wait until "
        "some have ended, or cancel some."
    )


class DependencyNotFound(NotFound):
    """A job to wait for that is not there, or is another tenant's."""

    sentence = "{field}: there is no job or array {job_id} of yours to wait for. `hub job list` shows yours."


class DependencyWillNotSucceed(Conflict):
    """A job to wait for that has already ended without success."""

    sentence = (
        "{field}: job {job_id} has already ended ({state}), so waiting for it would never end. Leave it out."
    )


class DependencyCycle(Invalid):
    """Jobs that would wait for each other."""

    sentence = "{field}: job {job_id} would wait for itself: {cycle}. Leave one of these out."


class TooManyDependencies(Invalid):
    """More jobs to wait for than one job may have."""

    sentence = "{field}: {count} jobs to wait for are more than {most}. Wait for fewer."


class TemplateNotFound(NotFound):
    """There is no template of that name for the caller."""

    sentence = "There is no job template {name!r}. `hub template list` shows those you can use."


class TooManyTemplates(Conflict):
    """An owner keeps as many templates as it may."""

    sentence = "{most} templates are kept already. Delete one you no longer need."


class UnknownSecret(Invalid):
    """A job names a secret its tenant has not stored."""

    sentence = "{field}: there is no secret {name!r} of yours. Store it with `hub secret put`, or leave it out."


class TooManySecrets(Conflict):
    """A tenant keeps as many secrets as it may."""

    sentence = "{most} secrets are kept already. Delete one you no longer need."


class SecretsTooLarge(Invalid):
    """The secrets of one job are larger than a node takes."""

    sentence = "{field}: the secrets of a job have {total} bytes; at most {most} are allowed. Name fewer."


class SecretTooLargeForJob(Conflict):
    """A new value with which a job that has not ended would get more than a node takes."""

    sentence = (
        "With this value the secrets of job {job_id}, which has not ended, would have {total} bytes; at most {most} "
        "are allowed. Store less, or wait for the job's end."
    )


class SecretNotFound(NotFound):
    """There is no such secret of the tenant."""

    sentence = "There is no secret {name!r} of yours. `hub secret list` shows them."


class SecretInUse(Conflict):
    """A job that has not ended still needs the secret."""

    sentence = (
        "Secret {name!r} is named by job {job_id}, which has not ended. Cancel the job or wait for its end."
    )


class JobNotWaiting(Conflict):
    """Only jobs that wait can be held, released or told what to wait for."""

    sentence = "Job {job_id} is not waiting ({state}). Only a job that waits can be held, released or changed."


class ArrayNotFound(NotFound):
    """There is no such array, or it is another tenant's."""

    sentence = "There is no array of jobs {array_id}. `hub job list` shows the arrays of yours."


class JobNotFound(NotFound):
    """There is no such job, or it is another tenant's."""

    sentence = "There is no job {job_id}. `hub job list` shows yours."


class JobAlreadyEnded(Conflict):
    """The job is over; nothing can be done to it any more."""

    sentence = "Job {job_id} has already ended ({state}); it can no longer be cancelled."


class LeadershipLost(Conflict):
    """Another controller holds the lease; whatever this one wanted to write is void."""

    sentence = "Controller {holder} of epoch {epoch} is no longer the leader; nothing was written."


class NodeNotFound(NotFound):
    """The centre has no node of that name."""

    sentence = "There is no node {node!r}. `hub node list` shows those that have joined."


class DeviceNotFound(NotFound):
    """A node has no device of that index."""

    sentence = "Node {node!r} has no device {index}. `hub node list` shows its devices."


class LabelTaken(Invalid):
    """An operator's label by which a node says how it is reached."""

    sentence = "{field}: label {label!r} is stated by the node itself. Choose another name."


class ReservationInThePast(Invalid):
    """A reservation that is over when it is made."""

    sentence = (
        "{field}: a reservation must end after it begins and after now, not at {ends_at}. Choose a later end."
    )


class WholeNodesOnly(Invalid):
    """A tenant's reservation names some devices of a node."""

    sentence = (
        "{field}: a tenant's reservation keeps whole nodes; of {node!r} it names some devices only. Leave the devices "
        "out, or reserve them for maintenance."
    )


class AlreadyReserved(Conflict):
    """A device is kept for something else at that time."""

    sentence = (
        "{field}: device {index} of node {node!r} is already reserved in that time ({reservation_id}). Choose another "
        "time or node, or cancel the other reservation first."
    )


class ReservationNotFound(NotFound):
    """There is no such reservation, or it is another tenant's."""

    sentence = "There is no reservation {reservation_id}. `hub node reservations` lists them."


class ReservationOver(Conflict):
    """A reservation that has ended or was cancelled."""

    sentence = "Reservation {reservation_id} is over; there is nothing to cancel."
