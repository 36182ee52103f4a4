"""The lines of the supervisor's protocol: questions and answers as they travel, whoever hands them on.

Only the controller and the supervisor read them; what is between (a courier, Ray, an agent, a relay) carries bytes.
"""

import json
from typing import Any, TypeVar

from scheduler.node.codec import MalformedMessage, decode, to_json
from scheduler.node.errors import SupervisorRefused

T = TypeVar("T")


def question(method: str, params: object) -> bytes:
    """What is asked: a frozen dataclass of `protocol.py`, or nothing but an empty object."""
    return to_json({"method": method, "params": params}) + b"\n"


def answer(kind: type[T], method: str, line: bytes) -> T:
    """What a supervisor's answer to a method says.

    Raises:
        SupervisorRefused: with the supervisor's code and sentence among the facts.
        MalformedMessage: it is not what the protocol says.
    """
    said = read(line, "answer")
    if "ok" in said:
        return decode(kind, said["ok"], method)
    if "error" in said:
        raise SupervisorRefused(method=method, **said["error"])
    raise MalformedMessage(field="answer", problem="is neither an answer nor a refusal")


def read(line: bytes, field: str) -> dict[str, Any]:
    """What stands in a line, which is called `field` where it is refused. Raises MalformedMessage."""
    try:
        said = json.loads(line)
    except ValueError as error:
        raise MalformedMessage(field=field, problem=f"is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise MalformedMessage(field=field, problem="must be an object")
    return said
