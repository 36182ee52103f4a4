"""How the hub refuses: a stable code, the facts, and a sentence that says what to change.

A refusal says what kind it is (`Invalid`, `NotFound`, …), never an HTTP status: only `compute_hub.api.problems`
knows HTTP.
"""

import re
from typing import ClassVar


class HubError(Exception):
    """A refusal with a name.

    Subclasses set `sentence`, a template over the facts they are raised with; `code` is the class name in
    snake case and part of the public contract.
    """

    sentence: ClassVar[str]
    code: ClassVar[str] = "hub_error"

    def __init_subclass__(cls) -> None:
        """Derive the public code from the class name."""
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        super().__init__(self.sentence.format(**facts))

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling (Ray carries errors between processes)."""
        return (_rebuild, (type(self), self.facts))


def _rebuild(cls: type[HubError], facts: dict[str, object]) -> HubError:
    return cls(**facts)


class Invalid(HubError):
    """What was asked cannot be meant: a malformed or impossible value. `field` among the facts names it."""


class NotFound(HubError):
    """There is no such thing, or the caller may not know that there is."""


class Conflict(HubError):
    """The thing is not in a state that allows this, or somebody else was first."""


class Forbidden(HubError):
    """The caller is known and may not do this."""


class Unauthenticated(HubError):
    """The caller is not known."""


class Unfunded(HubError):
    """Money or quota does not suffice."""
