"""What grows with use still fits one posting: claims of thousands of lines, jobs extended thousands of times."""

from sqlalchemy import text

from kernel.database import transaction
from kernel.postgres import PrivatePostgres
from ledger.posting import BATCH_MAX
from tests.vouchers.world import FACTS, NOW, YUAN, World
from vouchers.claims import CLAIM_LINES_MAX, make_claim
from vouchers.reading import claim_view
from vouchers.redemption import place_hold, release_hold
from vouchers.settlement import approve_claim, check_claim, disburse_claim, review_claim

MORE = 1_500
_COVERAGE = """
INSERT INTO coverage_lines
SELECT (jsonb_populate_record(c, jsonb_build_object(
           'id', gen_random_uuid(), 'line', 1000 + n, 'amount_micros', 1, 'quantity', 1))).*
  FROM coverage_lines c, generate_series(1, %(more)s) AS g(n) WHERE c.slug = %(slug)s
"""
_HELD = """
WITH made AS (
    INSERT INTO transfers
    SELECT (jsonb_populate_record(t, jsonb_build_object(
               'id', gen_random_uuid(), 'amount', 1,
               'debit_sequence', t.debit_sequence + n, 'credit_sequence', t.credit_sequence + n))).*
      FROM transfers t JOIN hold_lines l ON l.transfer_id = t.id AND l.job_id = %(job)s,
           generate_series(1, %(more)s) AS g(n)
    RETURNING *
), holding AS (
    INSERT INTO holds SELECT id, debit, credit, 1, 0, 0, expires_at, 'open' FROM made RETURNING id
)
INSERT INTO hold_lines
SELECT (jsonb_populate_record(l, jsonb_build_object('line', 1000 + m.debit_sequence, 'held', 1, 'transfer_id', m.id))).*
  FROM hold_lines l, made m WHERE l.job_id = %(job)s
"""


def test_the_largest_claim_and_what_it_draws_from_the_reserve_fit_one_posting() -> None:
    assert CLAIM_LINES_MAX + 1 <= BATCH_MAX


def test_a_claim_of_more_than_a_thousand_lines_goes_all_the_way(
    world: World, postgres: PrivatePostgres
) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place.voucher(session, 1_000)
        place.run(session, 100)
    facts = {"more": MORE, "slug": place.programme}
    with postgres.superuser(str(world.engine.url.database)) as root:
        root.execute(
            "UPDATE coverage_lines SET quantity = quantity - %(more)s, amount_micros = amount_micros - %(more)s"
            " WHERE slug = %(slug)s",
            facts,
        )
        root.execute(_COVERAGE, facts)
    with transaction(world.engine) as session:
        claim = make_claim(session, place.programme, "2026-03", by="centre", at=NOW)
        check_claim(session, claim, centre_code="CENTRE", at=NOW)
        review_claim(session, claim, by="first", at=NOW)
        assert approve_claim(session, claim, by="second", at=NOW) == 30 * YUAN
        assert disburse_claim(session, claim, bank_reference=f"b {claim}", by="c", at=NOW) == 30 * YUAN
        assert len(claim_view(session, claim).lines) == MORE + 1


def test_a_job_with_more_than_a_thousand_holds_is_released(world: World, postgres: PrivatePostgres) -> None:
    with transaction(world.engine) as session:
        place = world.place(session)
        place_hold(session, place.job(), place.tenant, 100 * YUAN, FACTS, None, NOW)
    facts = {"more": MORE, "job": place.job()}
    with postgres.superuser(str(world.engine.url.database)) as root:
        root.execute(_HELD, facts)
        root.execute(
            "UPDATE accounts a SET version = version + %(more)s,"
            " debits_pending = debits_pending + CASE WHEN a.id = t.debit THEN %(more)s ELSE 0 END,"
            " credits_pending = credits_pending + CASE WHEN a.id = t.credit THEN %(more)s ELSE 0 END"
            " FROM transfers t JOIN hold_lines l ON l.transfer_id = t.id AND l.job_id = %(job)s AND l.held > 1"
            " WHERE a.id IN (t.debit, t.credit)",
            facts,
        )
    with transaction(world.engine) as session:
        release_hold(session, place.job(), NOW)
        assert place.prepaid(session) == 1_000
        assert session.scalar(text("SELECT count(*) FROM holds WHERE state = 'open'")) == 0
