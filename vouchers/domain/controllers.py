"""Who controls whom: the actual controller of a party, and whether two parties are related.

Each party has at most one direct controller, so control is a forest; its roots are the actual controllers.
Two parties are related when they have the same actual controller or when a related pair joins their groups.
"""

from collections.abc import Iterable, Mapping

from kernel.errors import Invalid


class ControllerCycle(Invalid):
    """Control that leads back to where it started."""

    sentence = (
        "controller: {controlled} cannot be controlled by {controller}, which it controls itself ({chain}); "
        "name another controller for one of them first."
    )


def control_chain(party: str, controllers: Mapping[str, str]) -> tuple[str, ...]:
    """The party, its controller, that one's controller, and so on to the actual controller."""
    chain = [party]
    while chain[-1] in controllers and controllers[chain[-1]] not in chain:
        chain.append(controllers[chain[-1]])
    return tuple(chain)


def actual_controller(party: str, controllers: Mapping[str, str]) -> str:
    """The end of the chain of control; a party nobody controls is its own."""
    return control_chain(party, controllers)[-1]


def group_of(controller: str, controllers: Mapping[str, str]) -> frozenset[str]:
    """All parties that one actual controller controls, itself among them."""
    return frozenset(
        party for party in {controller, *controllers} if actual_controller(party, controllers) == controller
    )


def check_acyclic(controlled: str, controller: str, controllers: Mapping[str, str]) -> None:
    """Refuse a new edge that would close a cycle. Raises ControllerCycle."""
    chain = control_chain(controller, controllers)
    if controlled in chain:
        raise ControllerCycle(controlled=controlled, controller=controller, chain=" → ".join(chain))


def related(
    one: str, other: str, controllers: Mapping[str, str], pairs: Iterable[tuple[str, str]]
) -> tuple[str, ...]:
    """How two parties are related, as the parties on the way, or nothing if they are not."""
    root, other_root = actual_controller(one, controllers), actual_controller(other, controllers)
    if root == other_root:
        return (one, root, other)
    groups = {root, other_root}
    for left, right in sorted(pairs):
        if {actual_controller(left, controllers), actual_controller(right, controllers)} == groups:
            return (one, left, right, other)
    return ()
