"""What jobs may run in the operator's environments: anything, or a service by the operator's own command.

What kind of cost usage is decides which public money pays for it, so a tenant must not be able to say it: in an
environment with a command nothing else is run, and no variable of the tenant's changes what the command loads.
"""

from collections.abc import Mapping

from compute_hub.settings import Environment
from kernel.errors import Invalid
from scheduler.jobs import JobRequest


class ServiceOnly(Invalid):
    """A job of a service that would run something else than the service."""

    sentence = (
        "{field}: environment {environment!r} is a service whose jobs begin with {command!r} and bring no variables of "
        "their own; give arguments after it, or choose another environment."
    )


def check_use(environments: Mapping[str, Environment], request: JobRequest) -> None:
    """Refuse a job that is not the service of its environment. Raises ServiceOnly."""
    offered = environments.get(request.environment)
    if offered is None or not offered.command:
        return
    broken = (
        ("argv", tuple(request.argv[: len(offered.command)]) != offered.command),
        ("env", bool(request.env)),
        ("kind", bool(request.kind)),
    )
    for field, wrong in broken:
        if wrong:
            raise ServiceOnly(field=field, environment=request.environment, command=" ".join(offered.command))
