"""How the simulator refuses its input: always with the file, the line and the field."""

from kernel.errors import Invalid, NotFound


class MalformedTrace(Invalid):
    """A line of a trace or cluster file that cannot be read."""

    sentence = "{file}, line {line}, field {field!r}: {value!r} {why}."


class EmptyTrace(Invalid):
    """A trace without a single job, or a cluster without a node."""

    sentence = "{file}: {field} holds no {noun}."


class UnknownFormat(NotFound):
    """A trace format that no reader knows."""

    sentence = "{field}: there is no trace format {name!r}; known formats are {known}."


class MalformedOption(Invalid):
    """A value of a command's option that cannot be meant."""

    sentence = "{field}: {value!r} is not possible; {why}."
