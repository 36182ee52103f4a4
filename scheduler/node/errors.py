"""How the supervisor refuses, by name."""

from kernel.errors import Conflict, HubError, Invalid


class StaleEpoch(Conflict):
    """A controller that has been replaced still talks."""

    sentence = "Epoch {epoch} is over: this node has already obeyed epoch {seen}."


class StartFailed(HubError):
    """A run could not be started; the sentence becomes the run's reason."""

    sentence = "{why}"


class NodeFailed(HubError):
    """A run could not be started for a reason that the next one would meet here, too: nothing the job has done."""

    sentence = "{why}"


class MissingHere(NodeFailed):
    """What this run needs and was promised is not on this node; runs that do not need it can start."""


class DeviceHeld(HubError):
    """What a run needs is held by another one that was killed and does not end."""

    sentence = "{why}: {run} was killed {seconds} s ago and still holds its devices or directories."


class NestedTooDeep(HubError):
    """Folders of a job deeper within each other than anybody walks."""

    sentence = "Its folders lie more than {most} deep within each other."


class FolderClosed(HubError):
    """A folder that its job closed to everybody, where the supervisor is an ordinary user."""

    sentence = "Its folder {path} is closed to whoever counts what its workspace holds."


class InvalidRun(Invalid):
    """A run that cannot be meant."""

    sentence = "{field}: {problem}."


class StateDirectoryInUse(Conflict):
    """Another supervisor already works on this state directory."""

    sentence = "Another supervisor holds {directory}; stop it or give this one its own state directory."


class SocketPathTooLong(Invalid):
    """The kernel allows 107 bytes for the path of a Unix socket."""

    sentence = "{path} has {length} bytes; a socket path may have 107. Set `socket` to a shorter one."


class SupervisorUnreachable(HubError):
    """Nobody answers on the supervisor's socket, or not in time."""

    sentence = "The supervisor at {socket} does not answer: {reason}."


class SupervisorRefused(HubError):
    """The supervisor answered with a refusal."""

    sentence = "The supervisor refused {method}: {code}: {message}"
