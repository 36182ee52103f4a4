"""The vouchers' money, from the pool to what the authority has paid; card time where a programme counts that."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.telemetry.centre import Part
from compute_hub.telemetry.families import Bounded, Family, Sample
from compute_hub.telemetry.parts.sizes import AUTHORITIES_MAX, INDUSTRIES_MAX, PROGRAMMES_MAX
from kernel.money import MICROS_PER_YUAN
from ledger.domain.accounts import CNY

STAGES: Final = {
    "budget": "Appropriated to a programme, over all cycles, less what went back to the authority",
    "pool": "What a programme can still issue",
    "issued": "Face value of all vouchers ever issued",
    "remaining": "What is left on vouchers, neither held nor used",
    "held": "Set aside on vouchers for jobs",
    "captured": "Captured from vouchers for usage, less what was given back",
    "returned": "Given back to the pool unused: expired, recalled or clawed back",
    "claimable": "Captured and not claimed yet",
    "claimed": "In claims under review",
    "payable": "Approved and not disbursed yet",
    "disbursed": "Paid out by the authority, less what was taken back",
    "reserve": "Left of what the authority advanced to the centre",
}
YUAN: Final = {
    stage: Family(f"hub_voucher_{stage}_yuan", f"{meaning}, in yuan.", ("programme",))
    for stage, meaning in STAGES.items()
}
CARD: Final = {
    stage: Family(
        f"hub_voucher_{stage}_card_seconds", f"{meaning}, in card-seconds of a model.", ("programme", "model")
    )
    for stage, meaning in STAGES.items()
}
EXPIRING = Family(
    "hub_voucher_expiring_yuan",
    "What is left on vouchers that pay for nothing any more in 30, 60 or 90 days.",
    ("programme", "within"),
)
VOUCHERS = Family("hub_vouchers", "Vouchers by state.", ("programme", "state"))
APPLICATIONS = Family("hub_voucher_applications", "Applications for vouchers by state.", ("programme", "state"))
SOLD = Family(
    "hub_devices_sold",
    "Accelerators that the vouchers now in force would keep busy if each were spent evenly over its whole validity: "
    "the numerator of the sold rate. Money buys card time at today's price, averaged over what is installed.",
    ("basis",),
)
CLAIMS = Family("hub_claims", "Settlement claims by state.", ("programme", "state"))
CLAIMS_YUAN = Family("hub_claims_yuan", "The amount of settlement claims by state.", ("programme", "state"))
CLAIM_OLDEST = Family(
    "hub_claim_oldest_seconds",
    "Age of the oldest claim that is neither paid nor rejected; 0 if none.",
    ("programme",),
)
RECEIVABLE = Family(
    "hub_receivable_yuan",
    "What an authority owes for captured usage, by how far it is: claimable, claimed or payable.",
    ("authority", "stage"),
)
FIRM_STAGES: Final = {
    "issued": "Face value issued",
    "held": "Set aside for jobs",
    "captured": "Captured for usage, less what was given back",
    "claimed": "In claims that are not paid yet",
    "disbursed": "Paid out by the authority",
}
FIRM: Final = {
    stage: Family(
        f"hub_voucher_firm_{stage}_yuan",
        f"{meaning}, by the firms' size and industry.",
        ("programme", "size", "industry"),
    )
    for stage, meaning in FIRM_STAGES.items()
}

_ACCOUNTS = text("""
    SELECT split_part(name::text, '/', 2), asset::text, CASE split_part(name::text, '/', 3)
           WHEN 'reserve' THEN 'reserve/' || split_part(name::text, '/', 4) ELSE split_part(name::text, '/', 3) END,
           sum(credits_posted - debits_posted)
      FROM accounts WHERE name::text LIKE 'programme/%' GROUP BY 1, 2, 3""")
_ON_VOUCHERS = text("""
    SELECT v.slug, v.asset, sum(a.credits_posted - a.debits_posted - a.debits_pending), sum(a.debits_pending),
           sum(a.credits_posted - a.debits_posted) FILTER (WHERE v.use_by_at <= :in_30),
           sum(a.credits_posted - a.debits_posted) FILTER (WHERE v.use_by_at <= :in_60),
           sum(a.credits_posted - a.debits_posted) FILTER (WHERE v.use_by_at <= :in_90)
      FROM accounts a JOIN vouchers v ON v.id = CAST(split_part(a.name::text, '/', 2) AS uuid)
     WHERE a.name::text LIKE 'voucher/%' GROUP BY v.slug, v.asset""")
_PROGRAMMES = text("""
    SELECT p.slug, p.asset, coalesce((SELECT sum(amount) FROM appropriations a WHERE a.slug = p.slug), 0)
           - coalesce((SELECT sum(amount) FROM cycle_closings c WHERE c.slug = p.slug AND c.carried_to IS NULL), 0),
           (SELECT document ->> 'authority' FROM programme_versions v WHERE v.slug = p.slug
             ORDER BY version DESC LIMIT 1)
      FROM programmes p ORDER BY p.slug""")
_VOUCHERS = text("SELECT slug, asset, state, count(*), sum(face) FROM vouchers GROUP BY slug, asset, state")
_APPLICATIONS = text("""
    SELECT v.slug, a.state, count(*) FROM applications a JOIN programme_versions v ON v.id = a.version_id
     GROUP BY 1, 2""")
_CLAIMS = text(
    "SELECT slug, asset, state, count(*), sum(amount), min(made_at) FROM claims GROUP BY slug, asset, state"
)
_SOLD = text("""
    SELECT asset = :money, sum(face / extract(epoch FROM expires_at - issued_at))
      FROM vouchers WHERE state = 'active' GROUP BY 1""")
_PRICE = text("""
    SELECT sum(r.micros_per_card_hour * d.devices) / sum(d.devices)
      FROM (SELECT DISTINCT ON (model) model, micros_per_card_hour FROM rates
             WHERE tenant_id IS NULL AND effective_from <= :at
             ORDER BY model, effective_from DESC) r
      JOIN (SELECT model, count(*) AS devices FROM devices GROUP BY model) d ON d.model = r.model""")
_FIRMS = text("""
    WITH back AS (SELECT line_id, sum(quantity) AS quantity FROM restorations GROUP BY line_id),
    taken AS (
        SELECT c.voucher_id, sum(c.quantity - coalesce(b.quantity, 0)) AS captured
          FROM coverage_lines c LEFT JOIN back b ON b.line_id = c.id
         WHERE c.voucher_id IS NOT NULL GROUP BY c.voucher_id),
    asked AS (
        SELECT c.voucher_id, k.state IN ('disbursed', 'reconciled') AS paid, sum(l.amount) AS amount
          FROM claim_lines l JOIN claims k ON k.id = l.claim_id JOIN coverage_lines c ON c.id = l.coverage_line_id
         WHERE l.state = 'approved' OR l.state = 'claimed' AND k.state NOT IN ('disbursed', 'reconciled')
         GROUP BY 1, 2),
    owed AS (
        SELECT voucher_id, sum(amount) FILTER (WHERE NOT paid) AS claimed, sum(amount) FILTER (WHERE paid) AS disbursed
          FROM asked GROUP BY voucher_id),
    kept AS (
        SELECT CAST(split_part(name::text, '/', 2) AS uuid) AS voucher_id, debits_pending AS held
          FROM accounts WHERE name::text LIKE 'voucher/%')
    SELECT v.slug, v.asset, e.size_class, e.industry, sum(v.face), coalesce(sum(kept.held), 0),
           coalesce(sum(t.captured), 0), coalesce(sum(owed.claimed), 0), coalesce(sum(owed.disbursed), 0)
      FROM vouchers v JOIN enterprises n ON n.id = v.enterprise_id
      JOIN enterprise_versions e ON e.enterprise_id = n.id AND e.version = n.version
      LEFT JOIN taken t ON t.voucher_id = v.id
      LEFT JOIN owed ON owed.voucher_id = v.id LEFT JOIN kept ON kept.voucher_id = v.id
     GROUP BY 1, 2, 3, 4""")

_OPEN_CLAIMS: Final = ("submitted", "checked", "reviewed", "approved")
_OWED: Final = ("claimable", "claimed", "payable")
_WITHIN: Final = ("30d", "60d", "90d")


def money() -> Part:
    """All that is read of vouchers, applications and claims."""
    families = (
        *YUAN.values(), *CARD.values(), EXPIRING, VOUCHERS, APPLICATIONS, SOLD, CLAIMS, CLAIMS_YUAN, CLAIM_OLDEST,
        RECEIVABLE, *FIRM.values(),
    )  # fmt: skip
    return Part("money", 5000, families, _read)


def _read(session: Session, at: datetime) -> Iterator[Sample]:
    programmes = session.execute(_PROGRAMMES).all()
    slugs = Bounded((row[0] for row in programmes), PROGRAMMES_MAX)
    amounts: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for slug, asset, budget, _ in programmes:
        amounts[slug, asset]["budget"] += int(budget)
    for slug, asset, place, net in session.execute(_ACCOUNTS):
        if place in STAGES or place == "reserve/left":
            amounts[slug, asset]["reserve" if place == "reserve/left" else place] += int(net)
    for slug, state, count in session.execute(_APPLICATIONS):
        yield APPLICATIONS(count, slugs(slug), state)
    for slug, asset, state, count, face in session.execute(_VOUCHERS):
        yield VOUCHERS(count, slugs(slug), state)
        amounts[slug, asset]["issued"] += int(face)
    yield from _firms(session, slugs, amounts)
    yield from _on_vouchers(session, at, slugs, amounts)
    yield from _stages(slugs, amounts)
    yield from _claims(session, at, slugs, {row[0] for row in programmes})
    authorities = {slug: authority or "" for slug, _, _, authority in programmes}
    bounded = Bounded(authorities.values(), AUTHORITIES_MAX)
    for (slug, asset), stages in sorted(amounts.items()):
        if asset == CNY:
            for stage in _OWED:
                yield RECEIVABLE(stages[stage] / MICROS_PER_YUAN, bounded(authorities.get(slug, "")), stage)
    yield from _sold(session, at)


def _stages(slugs: Bounded, amounts: defaultdict[tuple[str, str], defaultdict[str, int]]) -> Iterator[Sample]:
    for (slug, asset), stages in sorted(amounts.items()):
        stages["returned"] = stages["issued"] - stages["remaining"] - stages["held"] - stages["captured"]
        for stage in STAGES:
            if asset == CNY:
                yield YUAN[stage](stages[stage] / MICROS_PER_YUAN, slugs(slug))
            else:
                yield CARD[stage](stages[stage] / 1000, slugs(slug), asset.partition(":")[2])


def _on_vouchers(
    session: Session,
    at: datetime,
    slugs: Bounded,
    amounts: defaultdict[tuple[str, str], defaultdict[str, int]],
) -> Iterator[Sample]:
    days = {f"in_{days}": at + timedelta(days=days) for days in (30, 60, 90)}
    for slug, asset, remaining, held, *expiring in session.execute(_ON_VOUCHERS, days):
        amounts[slug, asset]["remaining"] += int(remaining)
        amounts[slug, asset]["held"] += int(held)
        if asset == CNY:
            for within, amount in zip(_WITHIN, expiring, strict=True):
                yield EXPIRING(int(amount or 0) / MICROS_PER_YUAN, slugs(slug), within)


def _firms(
    session: Session, slugs: Bounded, amounts: defaultdict[tuple[str, str], defaultdict[str, int]]
) -> Iterator[Sample]:
    rows = session.execute(_FIRMS).all()
    industries = Bounded((row[3] for row in rows), INDUSTRIES_MAX)
    for slug, asset, size, industry, *stages in rows:
        by_stage = dict(zip(FIRM_STAGES, map(int, stages), strict=True))
        amounts[slug, asset]["captured"] += by_stage["captured"]
        if asset == CNY:
            for stage, amount in by_stage.items():
                yield FIRM[stage](amount / MICROS_PER_YUAN, slugs(slug), size, industries(industry))


def _claims(session: Session, at: datetime, slugs: Bounded, known: set[str]) -> Iterator[Sample]:
    oldest = dict.fromkeys(sorted(known), 0.0)
    for slug, asset, state, count, amount, first in session.execute(_CLAIMS):
        yield CLAIMS(count, slugs(slug), state)
        if asset == CNY:
            yield CLAIMS_YUAN(int(amount) / MICROS_PER_YUAN, slugs(slug), state)
        if state in _OPEN_CLAIMS:
            oldest[slug] = max(oldest[slug], (at - first).total_seconds())
    yield from (CLAIM_OLDEST(age, slugs(slug)) for slug, age in oldest.items() if slugs(slug) == slug)


def _sold(session: Session, at: datetime) -> Iterator[Sample]:
    price_micros_per_card_hour = float(session.scalar(_PRICE, {"at": at}) or 0)
    per_second = {bool(money): float(rate) for money, rate in session.execute(_SOLD, {"money": CNY})}
    yield SOLD(per_second.get(False, 0) / 1000, "card_time")
    bought = per_second.get(True, 0) * 3600 / price_micros_per_card_hour if price_micros_per_card_hour else 0
    yield SOLD(bought, "money")
