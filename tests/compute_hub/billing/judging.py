"""What must hold after every history: billed time is used time, parts are the whole, papers and books agree."""

from collections import defaultdict

from sqlalchemy import text
from sqlalchemy.orm import Session

from ledger.audit import audit
from tests.compute_hub.billing.histories import DEPOSIT, FACE, History
from tests.compute_hub.billing.house import PRICE
from vouchers import accounts
from vouchers.domain.terms import CNY

_MS_PER_HOUR = 3_600_000


def judge(history: History) -> None:
    """Billed time, every sum, invoices, ledger and claims, each by its own arithmetic."""
    billed_time(history)
    money_of_jobs(history)
    parts_of_charges(history)
    papers_and_books(history)


def billed_time(history: History) -> None:
    """The charges that stand are about every millisecond that was used, once, model by model."""
    for told in history.jobs:
        oracle: dict[str, int] = defaultdict(int)
        for attempt in told.attempts:
            oracle[attempt.model] += sum(record.slot_ms for record in attempt.records)
        found = {
            model: int(slot_ms) for job, model, slot_ms in history.rows(_STANDING_TIME) if job == told.job_id
        }
        assert found == dict(oracle)


def money_of_jobs(history: History) -> None:
    """What a job's first charges cost together is its time at the published price, rounded once."""
    for told in history.jobs:
        units = sum(
            record.duration_ms * PRICE[attempt.model] for attempt in told.attempts for record in attempt.records
        )
        expected = (2 * units + _MS_PER_HOUR) // (2 * _MS_PER_HOUR)
        (cost,) = (int(cost) for job, cost in history.rows(_FIRST_COST) if job == told.job_id)
        assert cost == expected


def parts_of_charges(history: History) -> None:
    """Lines, records and sources each add up to their charge."""
    for slot_ms, cost, line_ms, line_cost, record_ms, paid, amount in history.rows(_PARTS):
        assert slot_ms == line_ms == record_ms
        assert cost == line_cost
        assert paid == amount


def papers_and_books(history: History) -> None:
    """Invoices less credit notes are what stands of all charges; so say wallet, voucher, revenue and claims."""
    ((gross, voucher, own, rounding, payable),) = history.rows(_PAPERS)
    ((standing, by_voucher, by_firm),) = history.rows(_PAID)
    assert gross == standing
    assert (voucher, own) == (by_voucher, by_firm)
    assert gross == voucher + own + rounding
    tenant = history.house.tenant
    with Session(history.house.engine) as session:
        balances = {
            row.name: (int(row.net), int(row.pending))
            for row in session.execute(
                text(
                    "SELECT name, credits_posted - debits_posted AS net, debits_pending AS pending FROM accounts "
                    "WHERE name LIKE :tenant OR name LIKE :voucher OR name LIKE :slug"
                ),
                {
                    "tenant": f"enterprise/{tenant}/%",
                    "voucher": f"voucher/{history.voucher}",
                    "slug": f"programme/{history.slug}/%",
                },
            )
        }
        assert not audit(session).differences
        claimable = accounts.claimable(history.slug, tenant, CNY).name
        claimed = accounts.claimed(history.slug, CNY).name
        wallet, revenue = accounts.wallet(tenant).name, accounts.revenue(tenant).name
    none = (0, 0)
    assert balances[wallet] == (DEPOSIT - own, 0)
    assert balances[f"voucher/{history.voucher}"] == (FACE - voucher, 0)
    assert balances.get(revenue, none)[0] == payable
    assert balances.get(claimable, none)[0] + balances.get(claimed, none)[0] == voucher


_STANDING_TIME = """
    SELECT job_id, model, sum(slot_ms) FROM charges WHERE tenant_id = :x
    AND NOT EXISTS (SELECT FROM charge_corrections WHERE charge_id = charges.id) GROUP BY 1, 2
"""
_FIRST_COST = """
    SELECT job_id, sum(amount_micros + forgone_micros) FROM charges WHERE tenant_id = :x
    AND NOT EXISTS (SELECT FROM charge_corrections WHERE replacement_id = charges.id) GROUP BY 1
"""
_PARTS = """
    SELECT slot_ms, amount_micros + forgone_micros,
           (SELECT sum(slot_ms) FROM charge_lines WHERE charge_id = charges.id),
           (SELECT sum(cost_micros) FROM charge_lines WHERE charge_id = charges.id),
           coalesce((SELECT sum(r.slot_ms) FROM charged_usage u JOIN usage_records r USING (job_id, attempt, rank)
                     WHERE k >= first_k AND k < until_k AND charge_id = charges.id), slot_ms),
           coalesce((SELECT sum(amount_micros) FROM coverage_lines
                     WHERE charge_id = charges.id AND direction <> 'buyer_reimbursed'), 0), amount_micros
    FROM charges WHERE tenant_id = :x
"""
_PAPERS = """
    SELECT coalesce(sum(sign * gross_micros), 0), coalesce(sum(sign * voucher_micros), 0),
           coalesce(sum(sign * tenant_micros), 0), coalesce(sum(sign * rounding_micros), 0),
           coalesce(sum(sign * payable_micros), 0)
    FROM invoices, LATERAL (SELECT CASE kind WHEN 'invoice' THEN 1 ELSE -1 END AS sign) AS side
    WHERE tenant_id = :x
"""
_PAID = """
    WITH parts AS (
        SELECT source, coverage_lines.amount_micros - coalesce((
            SELECT sum(restorations.amount_micros) FROM restorations
            WHERE line_id = coverage_lines.id AND kind = 'restored'), 0) AS micros
        FROM charges JOIN coverage_lines ON coverage_lines.charge_id = charges.id WHERE tenant_id = :x)
    SELECT coalesce(sum(micros), 0), coalesce(sum(micros) FILTER (WHERE source = 'voucher'), 0),
           coalesce(sum(micros) FILTER (WHERE source IN ('prepaid', 'credit')), 0) FROM parts
"""
