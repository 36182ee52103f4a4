"""Whether a voucher pays for a kind of usage, at which ratio, and when it burns."""

from dataclasses import dataclass
from datetime import datetime

from vouchers.domain.coverage import Candidate
from vouchers.domain.facts import ChargeFacts, EnterpriseFacts
from vouchers.domain.terms import CNY, RatioTier, Terms, in_region


@dataclass(frozen=True)
class HeldVoucher:
    """A voucher as the rules see it; `remaining` is what can be set aside for the usage in question."""

    voucher: str
    number: str
    version: str
    terms: Terms
    holder: EnterpriseFacts
    issued_at: datetime
    use_by_at: datetime
    remaining: int


@dataclass(frozen=True)
class NotApplicable:
    """Why a voucher does not pay, and by which clause."""

    reason: str
    clause: str


def ratio_for(voucher: HeldVoucher, charge: ChargeFacts) -> RatioTier | NotApplicable:
    """The tier by which a voucher pays for a charge, or why it does not. Dates are not looked at."""
    eligible = voucher.terms.eligible
    refusals = (
        (
            charge.cost_kind not in eligible.cost_kinds,
            f"its programme does not pay for {charge.cost_kind}",
        ),
        (not in_region(charge.region, eligible.centre_regions), f"region {charge.region} is outside its scope"),
        (
            bool(eligible.hardware) and charge.hardware not in eligible.hardware,
            f"its programme does not pay for {charge.hardware} hardware",
        ),
        (
            eligible.centre_pflops_above is not None and charge.centre_pflops <= eligible.centre_pflops_above,
            f"the centre must have more than {eligible.centre_pflops_above} PFLOPS",
        ),
        (
            voucher.terms.asset not in {CNY, f"card_ms:{charge.model}"},
            f"it counts {voucher.terms.asset}, not time on {charge.model}",
        ),
    )
    for refused, reason in refusals:
        if refused:
            return NotApplicable(reason, eligible.clause)
    tier = voucher.terms.ratio_for(voucher.holder, charge)
    return tier or NotApplicable("no ratio tier fits its holder and this usage", eligible.clause)


def candidate(voucher: HeldVoucher, tier: RatioTier, charge: ChargeFacts) -> Candidate:
    """The voucher as the coverage solver sees it. It burns by priority, last usage, width of scope, age and id."""
    terms = voucher.terms
    return Candidate(
        voucher=voucher.voucher,
        number=voucher.number,
        version=voucher.version,
        programme=terms.programme,
        level=terms.level,
        asset=terms.asset,
        ratio=tier.ratio,
        limit=voucher.remaining,
        clause=tier.clause,
        burn=(
            terms.priority,
            voucher.use_by_at.isoformat(),
            terms.scope_width,
            voucher.issued_at.isoformat(),
            voucher.voucher,
        ),
        direction=terms.settlement.direction,
        ceilings=terms.ceilings_for(voucher.holder, charge),
        exclusions=terms.exclusions,
    )
