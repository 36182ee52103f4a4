"""The tables of vouchers, from an enterprise's profile to the last claim line.

Amounts that were decided are never updated; what changes is a state, a cursor or the end of a version's effect.
The application role has exactly these rights.
"""

from vouchers.tables.parties import Controller, Enterprise, EnterpriseVersion, GroupMember, RelatedParty
from vouchers.tables.programmes import (
    Application,
    ApplicationCheck,
    ApplicationStep,
    Appropriation,
    CycleClosing,
    Objection,
    Programme,
    ProgrammeVersion,
    ProjectBudget,
    Round,
    Voucher,
    VoucherPart,
)
from vouchers.tables.redemption import (
    ChargeStretch,
    CoverageLine,
    CoveredCharge,
    HoldLine,
    HoldSegment,
    JobHold,
    Restoration,
)
from vouchers.tables.settlement import Claim, ClaimLine, ClaimStep, ReserveAdvance

__all__ = [
    "Application",
    "ApplicationCheck",
    "ApplicationStep",
    "Appropriation",
    "ChargeStretch",
    "Claim",
    "ClaimLine",
    "ClaimStep",
    "Controller",
    "CoverageLine",
    "CoveredCharge",
    "CycleClosing",
    "Enterprise",
    "EnterpriseVersion",
    "GroupMember",
    "HoldLine",
    "HoldSegment",
    "JobHold",
    "Objection",
    "Programme",
    "ProgrammeVersion",
    "ProjectBudget",
    "RelatedParty",
    "ReserveAdvance",
    "Restoration",
    "Round",
    "Voucher",
    "VoucherPart",
]
