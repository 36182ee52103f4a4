"""What nodes are asked, and whether an answer is theirs: what the database says they should run becomes requests."""

from collections.abc import Collection
from dataclasses import dataclass

import structlog
from sqlalchemy import Engine

from kernel.database import glance
from scheduler.controller.desired import Wanted, desired_runs
from scheduler.controller.nodes import Nodes
from scheduler.controller.observing import Observed
from scheduler.node.protocol import OverRequest, Report, SyncRequest
from scheduler.store import Store

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Question:
    """What a node is asked.

    Args:
        wanted: what it should run, when it was last looked up.
        request: the same, as it is told.
    """

    wanted: Wanted
    request: SyncRequest

    def once_over(self, runs: Collection[str], within_ms: int) -> OverRequest:
        """The same, to be asked when none of these runs lives on the node any more, unless that takes longer."""
        return OverRequest(tuple(sorted(runs)), within_ms, self.request)

    def is_answered(self, name: str, report: Report) -> bool:
        """Whether a report is this node's: of its name, and of its host, until what ran there is certainly dead."""
        if report.node != name:
            _log.error("node_answers_for_another", asked=name, answered=report.node)
        elif self.wanted.host not in {None, report.host_id}:
            _log.error(
                "node_answers_from_another_host", node=name, host=self.wanted.host, answered=report.host_id
            )
            return False
        return report.node == name

    def observed(self, report: Report) -> Observed:
        """What was asked and what was said to it."""
        return Observed(report, self.wanted.asked, self.wanted.states)


def questions(
    engine: Engine, store: Store, nodes: Nodes, epoch: int, names: Collection[str]
) -> dict[str, Question]:
    """By node, what it is to be asked now; the next request to it overtakes this one.

    Args:
        engine: to read with.
        store: where the jobs' files lie.
        nodes: what is known of them.
        epoch: in which they are asked.
        names: whom to ask.
    """
    with glance(engine) as session:
        desired = desired_runs(session, store, names, nodes.reported(names))
    return {
        name: Question(wanted, nodes.request(name, epoch, wanted.runs, wanted.going_on, wanted.notices))
        for name, wanted in sorted(desired.items())
    }
