"""A programme version as frozen values: every rule with the clause it stands in.

Terms are data a government published. They are read from a document that the JSON Schema has accepted; what a
schema cannot say (order of dates, known time zone, tranches) is refused here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kernel.errors import Invalid
from kernel.money import parse_yuan
from vouchers.domain.facts import ChargeFacts, EnterpriseFacts

CNY: Final = "CNY"
MS_PER_HOUR: Final = 3_600_000
RETURNED: Final = "returned"
CARRIED_OVER: Final = "carried_over"

YEAR_MIN: Final = 1949
YEAR_MAX: Final = 2199
"""Days outside these years are slips of the keyboard, and the calendar's arithmetic ends not far beyond."""


class ProgrammeInvalid(Invalid):
    """A programme document that contradicts itself or the schema."""

    sentence = "{field}: {reason}."


@dataclass(frozen=True)
class Condition:
    """Which enterprise and usage a tier is for; an empty set asks nothing."""

    size_classes: frozenset[str] = frozenset()
    industries: frozenset[str] = frozenset()
    hardware: frozenset[str] = frozenset()
    cost_kinds: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    yearly_contract_max_micros: int | None = None

    def holds(self, enterprise: EnterpriseFacts, charge: ChargeFacts | None) -> bool:
        """Whether the facts meet it. Without a charge, what it asks of the usage counts as met."""
        limit = self.yearly_contract_max_micros
        return (
            _open_or_has(self.size_classes, enterprise.size_class)
            and _open_or_has(self.industries, enterprise.industry)
            and (not self.roles or not self.roles.isdisjoint(enterprise.roles))
            and (limit is None or enterprise.yearly_contract_micros <= limit)
            and (charge is None or _open_or_has(self.hardware, charge.hardware))
            and (charge is None or _open_or_has(self.cost_kinds, charge.cost_kind))
        )


def _open_or_has(allowed: frozenset[str], value: str) -> bool:
    return not allowed or value in allowed


@dataclass(frozen=True)
class Split:
    """One government's part of the budget, in parts of the sum of all parts."""

    level: str
    authority: str
    parts: int


@dataclass(frozen=True)
class Budget:
    """What the programme may issue in a cycle, in its asset's smallest unit, and what becomes of the rest of it."""

    clause: str
    cycle: str
    amount: int
    split: tuple[Split, ...]
    unspent: str = RETURNED


@dataclass(frozen=True)
class RatioTier:
    """The share of a charge that a voucher pays, for those who meet the condition."""

    clause: str
    ratio: Fraction
    when: Condition


@dataclass(frozen=True)
class Cap:
    """The most that one enterprise, or all enterprises of one actual controller, may be issued in a cycle."""

    clause: str
    per: str
    cycle: str
    amount: int
    when: Condition


@dataclass(frozen=True)
class Eligible:
    """Who may apply, and for what a voucher pays. Regions are prefixes of codes; `any` is everywhere."""

    clause: str
    enterprise_regions: tuple[str, ...]
    centre_regions: tuple[str, ...]
    cost_kinds: frozenset[str]
    industries: frozenset[str]
    size_classes: frozenset[str]
    hardware: frozenset[str]
    clean_years_min: int
    centre_pflops_above: int | None
    contract_days_max: int | None
    unrelated_supplier: bool
    one_voucher_per_contract: bool


@dataclass(frozen=True)
class Exclusion:
    """A programme, or every programme of a level, that may not pay for the same charge."""

    clause: str
    programme: str
    level: str

    def hits(self, programme: str, level: str) -> bool:
        """Whether that programme of that level is meant."""
        return programme == self.programme if self.programme else level == self.level


@dataclass(frozen=True)
class Ceiling:
    """The most public money may pay of a charge this programme pays for; an empty level means all levels."""

    clause: str
    level: str
    ratio: Fraction


@dataclass(frozen=True)
class CeilingTier:
    """A ceiling, for those who meet the condition."""

    ceiling: Ceiling
    when: Condition


@dataclass(frozen=True)
class Validity:
    """How long a voucher lasts, or until when usage counts: exactly one of days, months and a last day."""

    clause: str
    days: int
    months: int
    until: date | None


@dataclass(frozen=True)
class Tranche:
    """A part of the face value and what it waits for: the award, or an accepted progress report."""

    clause: str
    parts: int
    needs: str


@dataclass(frozen=True)
class Review:
    """Which desks decide, and how many days the public may object."""

    clause: str
    first_review: str
    final_approval: str
    notice_days: int
    rounds: bool


@dataclass(frozen=True)
class Settlement:
    """Who is paid (the centre claims, or the buyer is reimbursed), how often, on what evidence."""

    clause: str
    direction: str
    cycle: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Reserve:
    """Money advanced to the centre, drawn down before anything is disbursed."""

    clause: str
    amount: int


@dataclass(frozen=True)
class Terms:
    """One programme version."""

    programme: str
    version: int
    name: str
    authority: str
    level: str
    effective_from: date
    effective_until: date | None
    supersedes: int | None
    time_zone: str
    asset: str
    priority: int
    budget: Budget
    ratios: tuple[RatioTier, ...]
    caps: tuple[Cap, ...]
    eligible: Eligible
    exclusions: tuple[Exclusion, ...]
    ceilings: tuple[CeilingTier, ...]
    validity: Validity
    use_by: Validity | None
    tranches: tuple[Tranche, ...]
    review: Review
    settlement: Settlement
    reserve: Reserve | None

    @property
    def scope_width(self) -> int:
        """How much it can be spent on: fewer cost kinds, regions and hardware are narrower."""
        eligible = self.eligible
        return (
            len(eligible.cost_kinds)
            + sum(1000 if region == "any" else 100 // len(region) for region in eligible.centre_regions)
            + (len(eligible.hardware) or 10)
        )

    def ratio_for(self, enterprise: EnterpriseFacts, charge: ChargeFacts) -> RatioTier | None:
        """The first tier, in the written order, that the facts meet."""
        return next((tier for tier in self.ratios if tier.when.holds(enterprise, charge)), None)

    def ceilings_for(self, enterprise: EnterpriseFacts, charge: ChargeFacts) -> tuple[Ceiling, ...]:
        """Per level the first ceiling, in the written order, whose condition the facts meet."""
        chosen: dict[str, Ceiling] = {}
        for tier in self.ceilings:
            if tier.when.holds(enterprise, charge):
                chosen.setdefault(tier.ceiling.level, tier.ceiling)
        return tuple(chosen.values())

    def caps_for(self, enterprise: EnterpriseFacts) -> tuple[Cap, ...]:
        """Per kind of holder the first cap, in the written order, whose condition the enterprise meets."""
        chosen: dict[str, Cap] = {}
        for cap in self.caps:
            if cap.when.holds(enterprise, None):
                chosen.setdefault(cap.per, cap)
        return tuple(chosen.values())


def in_region(region: str, prefixes: Iterable[str]) -> bool:
    """Whether a division code lies in one of the regions."""
    return any(prefix == "any" or region.startswith(prefix) for prefix in prefixes)


def parse_amount(text: str, asset: str, field: str) -> int:
    """Micro-yuan, or milliseconds of card-hours. Raises MalformedAmount, ProgrammeInvalid."""
    if asset == CNY:
        return parse_yuan(text, field=field)
    if not text.isdigit():
        raise ProgrammeInvalid(field=field, reason=f"{text!r} must be whole card-hours")
    return int(text) * MS_PER_HOUR


def read_terms(document: dict[str, Any]) -> Terms:
    """The terms of a document that meets the schema.

    Raises:
        ProgrammeInvalid: dates reversed, unknown time zone, or a tranche that can never be released.
        MalformedAmount: an amount that cannot be represented.
    """
    asset = document["asset"]
    effective = document["effective"]
    start, end = (
        _date(effective["from"], "effective.from"),
        _optional_date(effective, "until", "effective.until"),
    )
    if end is not None and end < start:
        raise ProgrammeInvalid(
            field="effective", reason=f"it ends on {end} before it starts on {start}; exchange the days"
        )
    _check_time_zone(document["time_zone"])
    tranches = tuple(Tranche(**tranche) for tranche in document.get("tranches", ()))
    if tranches and tranches[0].needs != "award":
        raise ProgrammeInvalid(field="tranches", reason="the first part must be released by the award")
    return Terms(
        programme=document["programme"],
        version=document["version"],
        name=document["name"],
        authority=document["authority"],
        level=document["level"],
        effective_from=start,
        effective_until=end,
        supersedes=document.get("supersedes"),
        time_zone=document["time_zone"],
        asset=asset,
        priority=document.get("priority", 100),
        budget=_budget(document["budget"], asset),
        ratios=tuple(
            RatioTier(tier["clause"], Fraction(tier["ratio"]), _condition(tier)) for tier in document["ratios"]
        ),
        caps=tuple(_cap(cap, asset) for cap in document["caps"]),
        eligible=_eligible(document["eligible"]),
        exclusions=tuple(
            Exclusion(entry["clause"], entry.get("programme", ""), entry.get("level", ""))
            for entry in document.get("exclusions", ())
        ),
        ceilings=tuple(
            CeilingTier(
                Ceiling(entry["clause"], entry.get("level", ""), Fraction(entry["ratio"])), _condition(entry)
            )
            for entry in document.get("ceilings", ())
        ),
        validity=_validity(document, "validity"),
        use_by=_validity(document, "use_by") if "use_by" in document else None,
        tranches=tranches or (Tranche(document["validity"]["clause"], 1, "award"),),
        review=Review(**({"rounds": False} | document["review"])),
        settlement=_settlement(document["settlement"]),
        reserve=_reserve(document, asset),
    )


def _budget(entry: dict[str, Any], asset: str) -> Budget:
    split = tuple(Split(**part) for part in entry.get("split", ()))
    if len({part.authority for part in split}) < len(split):
        raise ProgrammeInvalid(field="budget.split", reason="an authority is named twice; add its parts up")
    amount = parse_amount(entry["amount"], asset, "budget.amount")
    return Budget(entry["clause"], entry["cycle"], amount, split, entry.get("unspent", RETURNED))


def _cap(entry: dict[str, Any], asset: str) -> Cap:
    amount = parse_amount(entry["amount"], asset, "caps.amount")
    return Cap(entry["clause"], entry["per"], entry["cycle"], amount, _condition(entry))


def _condition(entry: dict[str, Any]) -> Condition:
    when = entry.get("when", {})
    words = {
        name: frozenset(when.get(name, ()))
        for name in ("size_classes", "industries", "hardware", "cost_kinds", "roles")
    }
    limit = when.get("yearly_contract_at_most")
    return Condition(
        **words,
        yearly_contract_max_micros=None
        if limit is None
        else parse_yuan(limit, field="yearly_contract_at_most"),
    )


def _eligible(entry: dict[str, Any]) -> Eligible:
    return Eligible(
        clause=entry["clause"],
        enterprise_regions=tuple(entry["enterprise_regions"]),
        centre_regions=tuple(entry["centre_regions"]),
        cost_kinds=frozenset(entry["cost_kinds"]),
        industries=frozenset(entry.get("industries", ())),
        size_classes=frozenset(entry.get("size_classes", ())),
        hardware=frozenset(entry.get("hardware", ())),
        clean_years_min=entry.get("clean_years_min", 0),
        centre_pflops_above=entry.get("centre_pflops_above"),
        contract_days_max=entry.get("contract_days_max"),
        unrelated_supplier=entry.get("unrelated_supplier", False),
        one_voucher_per_contract=entry.get("one_voucher_per_contract", False),
    )


def _validity(document: dict[str, Any], field: str) -> Validity:
    entry = document[field]
    until = _optional_date(entry, "until", f"{field}.until")
    return Validity(entry["clause"], entry.get("days", 0), entry.get("months", 0), until)


def _settlement(entry: dict[str, Any]) -> Settlement:
    return Settlement(entry["clause"], entry["direction"], entry["cycle"], tuple(entry.get("evidence", ())))


def _reserve(document: dict[str, Any], asset: str) -> Reserve | None:
    entry = document.get("reserve")
    if entry is None:
        return None
    return Reserve(entry["clause"], parse_amount(entry["amount"], asset, "reserve.amount"))


def _date(text: str, field: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ProgrammeInvalid(field=field, reason=f"{text!r} is not a day of the calendar") from None
    if not YEAR_MIN <= day.year <= YEAR_MAX:
        raise ProgrammeInvalid(field=field, reason=f"{text!r} does not lie between {YEAR_MIN} and {YEAR_MAX}")
    return day


def _optional_date(entry: dict[str, Any], name: str, field: str) -> date | None:
    return _date(entry[name], field) if name in entry else None


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ProgrammeInvalid(field="time_zone", reason=f"{name!r} is not a known time zone") from None
