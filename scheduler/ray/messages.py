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
    """From the courier: a run of a node changed state; this is the node's sequence number now."""

    node: str
    seq: int


Word = Answer | Members | Changed
