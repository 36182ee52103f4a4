"""The roles of the house; what each may do is in `duties`.

A key carries exactly one role, but a person keeps one principal under all of them, so nobody approves what the same
person has reviewed; the database holds that too.
"""

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a key is for."""

    AUTHORITY = "authority"
    FIRST_REVIEWER = "first_reviewer"
    APPROVER = "approver"
    OPERATOR = "operator"
    TENANT = "tenant"
    AUDITOR = "auditor"


OFFICIAL: Final = (Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER)
"""Who decides about programmes for an authority."""
