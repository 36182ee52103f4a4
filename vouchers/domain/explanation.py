"""A coverage in words: who pays which part of a cost, by which clause, and what was in the way of more."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

from kernel.money import MICROS_PER_YUAN, format_yuan
from vouchers.domain.coverage import BUYER_REIMBURSED, Plan, Share
from vouchers.domain.terms import CNY, MS_PER_HOUR

VOUCHER: Final = "voucher"
PREPAID: Final = "prepaid"
CREDIT: Final = "credit"
ROUNDING: Final = "rounding"

OWN_WORDS: Final = {PREPAID: "the prepaid balance", CREDIT: "the credit line"}


@dataclass(frozen=True)
class Line:
    """Who pays which part.

    `amount_micros` is money; `quantity` is what leaves the source, in its `asset`'s smallest unit. `voucher`,
    `version` and `payer` are ids. A line of direction `buyer_reimbursed` is paid back to the tenant later and is
    not part of what makes up the cost now.
    """

    source: str
    amount_micros: int
    quantity: int
    asset: str
    clause: str
    sentence: str
    voucher: str = ""
    number: str = ""
    version: str = ""
    programme: str = ""
    payer: str = ""
    direction: str = ""
    segment: int = 0

    @property
    def paid_later(self) -> bool:
        """Whether the tenant pays first and is reimbursed."""
        return self.direction == BUYER_REIMBURSED


@dataclass(frozen=True)
class Coverage:
    """Who pays a cost. The lines that are not paid later add up to it exactly."""

    cost_micros: int
    lines: tuple[Line, ...]

    @property
    def public_micros(self) -> int:
        """What vouchers pay, reimbursements included."""
        return sum(line.amount_micros for line in self.lines if line.source == VOUCHER)

    @property
    def tenant_micros(self) -> int:
        """What the tenant pays now out of its own money."""
        return sum(line.amount_micros for line in self.lines if line.source in OWN_WORDS)

    @property
    def reimbursed_micros(self) -> int:
        """What the tenant gets back later."""
        return sum(line.amount_micros for line in self.lines if line.paid_later)

    @property
    def sentence(self) -> str:
        """The whole coverage in one sentence."""
        words = [line.sentence for line in self.lines if line.source == VOUCHER]
        return "; ".join([*words, f"you pay {yuan(self.tenant_micros)}."])


def voucher_line(
    plan: Plan,
    share: Share,
    exact: Fraction,
    cost_micros: int,
    *,
    amount: int,
    quantity: int,
    segment: int = 0,
) -> Line:
    """The line of one voucher for a charge of `cost_micros`, of which it pays `exact`, rounded down to `amount`."""
    candidate = share.candidate
    part = exact / cost_micros if cost_micros else Fraction(0)
    allowed = "" if part == candidate.ratio else f"up to {percent_of(candidate.ratio)}, "
    words = [
        f"{candidate.level} voucher {candidate.number} pays {percent_of(part)} ({allowed}{candidate.clause})"
    ]
    if candidate.asset != CNY:
        words[0] += f" with {_hours(quantity)} card-hours"
    if share.bound_by != candidate.clause:
        words.append(f"bound by: {share.bound_by}")
    words += [
        f"ceiling {percent_of(ceiling.ratio)} reached ({ceiling.clause})"
        for ceiling in plan.ceilings_reached(plan.cost_micros)
    ]
    words.append(yuan(amount))
    if candidate.direction == BUYER_REIMBURSED:
        words.append("paid back to you on invoice and proof of delivery")
    return Line(
        source=VOUCHER,
        amount_micros=amount,
        quantity=quantity,
        asset=candidate.asset,
        clause=candidate.clause
        if share.bound_by == candidate.clause
        else f"{candidate.clause}; {share.bound_by}",
        sentence=", ".join(words),
        voucher=candidate.voucher,
        number=candidate.number,
        version=candidate.version,
        programme=candidate.programme,
        direction=candidate.direction,
        segment=segment,
    )


def own_line(source: str, payer: str, amount: int, segment: int = 0) -> Line:
    """The line of one of the tenant's own sources."""
    return Line(
        source=source,
        amount_micros=amount,
        quantity=amount,
        asset=CNY,
        clause="what vouchers leave is the tenant's",
        sentence=f"{OWN_WORDS[source]} pays {yuan(amount)}",
        payer=payer,
        segment=segment,
    )


def rounding_line(amount: int, segment: int = 0) -> Line:
    """The line of what rounding leaves, which the centre bears."""
    return Line(
        source=ROUNDING,
        amount_micros=amount,
        quantity=abs(amount),
        asset=CNY,
        clause="shares are rounded down, the centre bears the rest",
        sentence=f"rounding {format_yuan(amount)}",
        segment=segment,
    )


def yuan(micros: int) -> str:
    """An amount for people: two places, or six where fewer would hide something."""
    text = format_yuan(micros)
    return f"¥{text[:-4]}" if micros % (MICROS_PER_YUAN // 100) == 0 else f"¥{text}"


@lru_cache(maxsize=4096)
def percent_of(ratio: Fraction) -> str:
    """A ratio in per cent: exactly where four places suffice, as for every ratio of a programme, else two of them."""
    places = 4 if (ratio * 10**6).denominator == 1 else 2
    units = int(ratio * 10 ** (places + 2))
    text = f"{units // 10**places}.{units % 10**places:0{places}d}".rstrip("0").rstrip(".")
    return f"{text} %"


def _hours(card_ms: int) -> str:
    thousandths = card_ms * 1000 // MS_PER_HOUR
    return f"{thousandths // 1000}.{thousandths % 1000:03d}"
