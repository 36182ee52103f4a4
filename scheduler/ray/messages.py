"""What a controller and its courier say to each other over their socket pair; pickled by `multiprocessing`.

What nodes are asked and what they answer is carried as it is: lines of the supervisor's protocol (`../node/lines.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.ray.sealing import Sealed


@dataclass(frozen=True, slots=True)
class Ask:
    """From the controller: sync these nodes. Answered by an `Answer` of the same number, in order."""

    number: int
    requests: Mapping[str, Sealed]


@dataclass(frozen=True, slots=True)
class Answer:
    """From the courier: what the nodes answered that did in time."""

    number: int
    lines: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Members:
    """From the courier: the hub nodes that are in the cluster now."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Changed:
    """From the courier: a run of a node changed state, which is watched no longer.

    Args:
        node: its name.
        after: the sequence number that was said when it was to be watched.
        seq: the one it has now.
    """

    node: str
    after: int
    seq: int


@dataclass(frozen=True, slots=True)
class Watch:
    """From the controller: say of each of these nodes once when its sequence number is not this one any more."""

    seqs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AskAhead:
    """From the controller: have each of these nodes sync when something is over there (`OverRequest`).

    It takes the place of a `Watch` of the node, and a later one takes its place.
    """

    number: int
    requests: Mapping[str, Sealed]
    within_ms: int


@dataclass(frozen=True, slots=True)
class Over:
    """From the courier: what a node said to the `AskAhead` of that number."""

    number: int
    node: str
    line: bytes


Order = Ask | Watch | AskAhead
Word = Answer | Members | Changed | Over
