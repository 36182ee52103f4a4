"""What each enterprise has, uses and owes. Enterprises are labelled by their unified social credit code."""

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from compute_hub.telemetry.centre import Part
from compute_hub.telemetry.families import Bounded, Family, Sample
from compute_hub.telemetry.history import History
from compute_hub.telemetry.parts.sizes import TENANTS_MAX
from kernel.money import MICROS_PER_YUAN
from vouchers.accounts import CREDIT_GRANTED

INFO = Family(
    "hub_tenant_info",
    "An enterprise's name, size class and industry; always 1.",
    ("tenant", "name", "size", "industry"),
)
PREPAID = Family("hub_tenant_prepaid_yuan", "An enterprise's prepaid balance, holds taken off.", ("tenant",))
CREDIT = Family(
    "hub_tenant_credit_yuan",
    "What an enterprise may still use before it pays, if it was granted credit.",
    ("tenant",),
)
ARREARS = Family(
    "hub_tenant_arrears_yuan", "What an enterprise has used of its credit and not paid yet.", ("tenant",)
)
VOUCHER = Family(
    "hub_tenant_voucher_yuan", "What is left on an enterprise's vouchers, holds taken off.", ("tenant",)
)
JOBS = Family(
    "hub_tenant_jobs", "An enterprise's jobs that wait or run; nothing where it has none.", ("tenant", "state")
)
DEVICES = Family(
    "hub_tenant_devices",
    "Accelerators an enterprise's jobs have now; nothing where they have none.",
    ("tenant",),
)
CARD_SECONDS = Family(
    "hub_tenant_card_seconds_total", "Card time charged to an enterprise.", ("tenant",), "counter"
)
CHARGED = Family(
    "hub_tenant_charged_yuan_total",
    "What an enterprise's jobs have cost, by who paid it: voucher or tenant.",
    ("tenant", "payer"),
    "counter",
)
INCOME = Family(
    "hub_charged_yuan_total",
    "What all jobs have cost, by who bears it: voucher, tenant, or the centre (rounding; forgone: used beyond "
    "what was held).",
    ("payer",),
    "counter",
)

_ENTERPRISES = text("""
    SELECT e.id, e.credit_code, f.name, f.size_class, f.industry
      FROM enterprises e JOIN enterprise_versions f ON f.enterprise_id = e.id AND f.version = e.version""")
_BALANCES = text("""
    SELECT CAST(split_part(name::text, '/', 2) AS uuid), split_part(name::text, '/', 3),
           credits_posted - debits_posted, debits_pending
      FROM accounts WHERE name::text LIKE 'enterprise/%' AND split_part(name::text, '/', 3) IN ('prepaid', 'credit')""")
_GRANTED = text("""
    SELECT CAST(split_part(a.name::text, '/', 2) AS uuid), sum(g.amount)
      FROM (SELECT credit AS account, amount FROM transfers WHERE debit = :granted
            UNION ALL SELECT debit, -amount FROM transfers WHERE credit = :granted) g
      JOIN accounts a ON a.id = g.account GROUP BY 1""")
_VOUCHERS = text("""
    SELECT v.enterprise_id, sum(a.credits_posted - a.debits_posted - a.debits_pending)
      FROM accounts a JOIN vouchers v ON v.id = CAST(split_part(a.name::text, '/', 2) AS uuid)
     WHERE a.name::text LIKE 'voucher/%' AND v.asset = 'CNY' GROUP BY 1""")
_LIVE = text("""
    SELECT tenant_id, count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state <> 'queued'),
           coalesce(sum(node_count * devices_per_node * slots_milli) FILTER (WHERE state <> 'queued'), 0)
      FROM jobs WHERE ended_at IS NULL GROUP BY tenant_id""")
_CHARGES = """
    SELECT tenant_id, sum(slot_ms), sum(voucher_micros), sum(tenant_micros), sum(rounding_micros), sum(forgone_micros)
      FROM charges WHERE charged_at > :since AND charged_at <= :until GROUP BY tenant_id"""


def tenants() -> Part:
    """All enterprises, up to the bound; the rest together as `other`."""
    charges = History(_CHARGES, keys=1)

    def read(session: Session, at: datetime) -> Iterator[Sample]:
        rows = session.execute(_ENTERPRISES).all()
        bounded = Bounded((row[1] for row in rows), TENANTS_MAX)
        codes: dict[UUID, str] = {row[0]: bounded(row[1]) for row in rows}
        for _, code, name, size, industry in rows:
            if bounded(code) == code:
                yield INFO(1, code, name, size, industry)
        yield from _wallets(session, codes)
        for tenant_id, waiting, running, milli in session.execute(_LIVE):
            code = codes.get(tenant_id, "")
            if waiting:
                yield JOBS(waiting, code, "waiting")
            if running:
                yield JOBS(running, code, "running")
                yield DEVICES(float(milli) / 1000, code)
        totals = [0.0, 0.0, 0.0, 0.0]
        for (tenant,), (slot_ms, *micros) in charges.sums(session, at).items():
            code = codes.get(UUID(tenant), "")
            yield CARD_SECONDS(slot_ms / 1e6, code)
            yield CHARGED(micros[0] / MICROS_PER_YUAN, code, "voucher")
            yield CHARGED(micros[1] / MICROS_PER_YUAN, code, "tenant")
            totals = [a + b for a, b in zip(totals, micros, strict=True)]
        for payer, total in zip(("voucher", "tenant", "rounding", "forgone"), totals, strict=True):
            yield INCOME(total / MICROS_PER_YUAN, payer)

    families = (INFO, PREPAID, CREDIT, ARREARS, VOUCHER, JOBS, DEVICES, CARD_SECONDS, CHARGED, INCOME)
    return Part("tenants", 5000, families, read)


def _wallets(session: Session, codes: dict[UUID, str]) -> Iterator[Sample]:
    granted = {
        tenant_id: int(amount)
        for tenant_id, amount in session.execute(_GRANTED, {"granted": CREDIT_GRANTED.id})
    }
    for tenant_id, kind, net, pending in session.execute(_BALANCES):
        code = codes.get(tenant_id, "")
        if kind == "prepaid":
            yield PREPAID((net - pending) / MICROS_PER_YUAN, code)
        elif tenant_id in granted:
            yield CREDIT((net - pending) / MICROS_PER_YUAN, code)
            yield ARREARS((granted[tenant_id] - net) / MICROS_PER_YUAN, code)
    for tenant_id, amount in session.execute(_VOUCHERS):
        yield VOUCHER(int(amount) / MICROS_PER_YUAN, codes.get(tenant_id, ""))
