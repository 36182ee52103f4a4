"""The roles of the house and what each may do; the API asks nowhere else.

An officer's key carries exactly one role: first review and final approval are different people, and the database
holds that too.
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


EVERYBODY: Final = frozenset(Role)
OFFICERS: Final = frozenset({Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.OPERATOR, Role.AUDITOR})
