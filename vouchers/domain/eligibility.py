"""The automatic checks of an application: each a named rule with a verdict, its clause and the facts it saw.

A `fail` keeps an application from being submitted to review; a `look` is for a person to decide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vouchers.domain.facts import ContractFacts, EnterpriseFacts
from vouchers.domain.terms import CNY, Cap, Terms, in_region

PASS: Final = "pass"  # noqa: S105 - a verdict
FAIL: Final = "fail"
LOOK: Final = "look"


@dataclass(frozen=True)
class Check:
    """What one rule found."""

    rule: str
    verdict: str
    clause: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """All that the checks look at.

    `issued_enterprise` and `issued_controller` are what has been issued in the cycle, and `issued_left` is what was
    issued to enterprises that have left the controller's group since; `contract_used_by` and `duplicates` are numbers
    of other applications; `relation` is how supplier and applicant are related.
    """

    terms: Terms
    enterprise: EnterpriseFacts
    contract: ContractFacts
    requested: int
    issued_enterprise: int = 0
    issued_controller: int = 0
    issued_left: int = 0
    contract_used_by: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    relation: tuple[str, ...] = ()
    in_round: bool = True


def run_checks(case: Case) -> tuple[Check, ...]:
    """Every rule on a case, in a fixed order."""
    checks = [rule(case) for rule in _RULES]
    return (*checks, *_caps(case))


def _verdict(passed: bool) -> str:  # noqa: FBT001 - the verdict of one comparison
    return PASS if passed else FAIL


def enterprise_eligible(case: Case) -> Check:
    """The enterprise's region, industry and size are those the programme is for."""
    eligible, enterprise = case.terms.eligible, case.enterprise
    passed = (
        in_region(enterprise.region, eligible.enterprise_regions)
        and (not eligible.industries or enterprise.industry in eligible.industries)
        and (not eligible.size_classes or enterprise.size_class in eligible.size_classes)
    )
    facts = {
        "region": enterprise.region,
        "industry": enterprise.industry,
        "size_class": enterprise.size_class,
        "regions": list(eligible.enterprise_regions),
        "industries": sorted(eligible.industries),
        "size_classes": sorted(eligible.size_classes),
    }
    return Check("enterprise_eligible", _verdict(passed), eligible.clause, facts)


def clean_record(case: Case) -> Check:
    """The enterprise has kept its record clean for as long as the programme asks."""
    asked = case.terms.eligible.clean_years_min
    facts = {"clean_years": case.enterprise.clean_years, "asked": asked}
    return Check(
        "clean_record", _verdict(case.enterprise.clean_years >= asked), case.terms.eligible.clause, facts
    )


def not_dishonest(case: Case) -> Check:
    """The enterprise is not on the list of dishonest enterprises."""
    facts = {"dishonest": case.enterprise.dishonest}
    return Check("not_dishonest", _verdict(not case.enterprise.dishonest), case.terms.eligible.clause, facts)


def contract_eligible(case: Case) -> Check:
    """A named contract's term, cost kind and centre are those the programme pays for."""
    eligible, contract = case.terms.eligible, case.contract
    days_max, pflops = eligible.contract_days_max, eligible.centre_pflops_above
    passed = not contract.number or (
        contract.cost_kind in eligible.cost_kinds
        and (days_max is None or contract.days <= days_max)
        and (pflops is None or contract.centre_pflops > pflops)
        and (not contract.centre_region or in_region(contract.centre_region, eligible.centre_regions))
    )
    facts = {
        "cost_kind": contract.cost_kind,
        "cost_kinds": sorted(eligible.cost_kinds),
        "days": contract.days,
        "days_max": days_max,
        "centre_region": contract.centre_region,
        "centre_pflops": contract.centre_pflops,
        "centre_pflops_above": pflops,
    }
    return Check("contract_eligible", _verdict(passed), eligible.clause, facts)


def within_contract(case: Case) -> Check:
    """The face value is no more than the best ratio of the contract it is for, where there is one."""
    eligible, contract = case.terms.eligible, case.contract
    tiers = [tier for tier in case.terms.ratios if tier.when.holds(case.enterprise, None)]
    best = max(tiers, key=lambda tier: tier.ratio, default=None)
    needs_contract = eligible.one_voucher_per_contract
    share = 0 if best is None else int(best.ratio * contract.amount_micros)
    named = bool(contract.number and contract.amount_micros)
    passed = case.requested <= share if named and case.terms.asset == CNY else not needs_contract
    facts = {
        "contract": contract.number,
        "amount_micros": contract.amount_micros,
        "share_micros": share,
        "requested": case.requested,
    }
    return Check("within_contract", _verdict(passed), best.clause if best else eligible.clause, facts)


def supplier_unrelated(case: Case) -> Check:
    """Buyer and supplier are not related, through the controller graph or otherwise."""
    asked = case.terms.eligible.unrelated_supplier
    verdict = PASS if not case.relation else FAIL if asked else LOOK
    facts = {"supplier": case.contract.supplier, "path": list(case.relation), "asked": asked}
    return Check("supplier_unrelated", verdict, case.terms.eligible.clause, facts)


def no_other_subsidy(case: Case) -> Check:
    """The contract gets no subsidy that the programme excludes."""
    named = set(case.contract.other_subsidies)
    hit = [
        entry.clause
        for entry in case.terms.exclusions
        if entry.programme in named or (entry.level and f"level:{entry.level}" in named)
    ]
    verdict = FAIL if hit else LOOK if named else PASS
    facts = {"other_subsidies": sorted(named), "excluded_by": hit}
    return Check("no_other_subsidy", verdict, hit[0] if hit else case.terms.eligible.clause, facts)


def no_duplicate(case: Case) -> Check:
    """The enterprise has no other open application to this programme, and its contract none anywhere."""
    once = case.terms.eligible.one_voucher_per_contract
    clash = list(case.duplicates) + (list(case.contract_used_by) if once else [])
    verdict = FAIL if clash else LOOK if case.contract_used_by else PASS
    facts = {
        "contract": case.contract.number,
        "same_contract": list(case.contract_used_by),
        "open_applications": list(case.duplicates),
    }
    return Check("no_duplicate", verdict, case.terms.eligible.clause, facts)


def within_round(case: Case) -> Check:
    """Where the programme calls for applications in rounds, this one came before the cut-off."""
    facts = {"rounds": case.terms.review.rounds, "in_round": case.in_round}
    return Check("within_round", _verdict(case.in_round), case.terms.review.clause, facts)


def _caps(case: Case) -> list[Check]:
    """What was issued to the enterprise, and to its actual controller's group as it is now, stays within the cap.

    Where only what left the group keeps it within, a person looks whether firms are passed on to be issued more.
    """
    return [_cap(case, cap) for cap in case.terms.caps_for(case.enterprise)]


def _cap(case: Case, cap: Cap) -> Check:
    facts: dict[str, Any] = {
        "issued": case.issued_enterprise,
        "requested": case.requested,
        "cap": cap.amount,
        "controller": case.enterprise.controller,
    }
    left = 0
    if cap.per == "controller":
        left = case.issued_left
        facts |= {"issued": case.issued_controller, "issued_to_who_left": left}
    room = cap.amount - facts["issued"] - case.requested
    verdict = FAIL if room < 0 else LOOK if room < left else PASS
    return Check(f"cap_per_{cap.per}", verdict, cap.clause, facts)


_RULES: Final[tuple[Callable[[Case], Check], ...]] = (
    enterprise_eligible,
    clean_record,
    not_dishonest,
    contract_eligible,
    within_contract,
    supplier_unrelated,
    no_other_subsidy,
    no_duplicate,
    within_round,
)
