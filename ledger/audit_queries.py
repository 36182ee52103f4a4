"""The audit's questions, one SQL query each; every row of an answer is a difference and its story in words.

Each query reads `transfers` alone for what ought to be, and the cached figures for what is said to be.
"""

from typing import Final

COUNTS: Final = """
SELECT (SELECT count(*) FROM accounts), (SELECT count(*) FROM transfers), (SELECT count(*) FROM holds)
"""

_EFFECTS: Final = """
WITH effects AS (
    SELECT *,
           CASE WHEN kind IN ('posted', 'reversal', 'capture') THEN amount ELSE 0 END AS posts,
           CASE WHEN kind IN ('hold', 'extend') THEN amount
                WHEN kind IN ('capture', 'release', 'expire') THEN -amount ELSE 0 END AS pends
      FROM transfers
), legs AS (
    SELECT debit AS account_id, debit_sequence AS sequence, id,
           posts AS dp, 0::bigint AS cp, pends AS dn, 0::bigint AS cn,
           debit_debits_posted AS said_dp, debit_credits_posted AS said_cp,
           debit_debits_pending AS said_dn, debit_credits_pending AS said_cn
      FROM effects
    UNION ALL
    SELECT credit, credit_sequence, id, 0, posts, 0, pends,
           credit_debits_posted, credit_credits_posted, credit_debits_pending, credit_credits_pending
      FROM effects
)
"""

_BALANCES: Final = f"""{_EFFECTS}, sums AS (
    SELECT account_id, count(*) AS n, sum(dp) AS dp, sum(cp) AS cp, sum(dn) AS dn, sum(cn) AS cn
      FROM legs GROUP BY account_id
)
SELECT a.id, format(
    'account %s says %s debited, %s credited, %s debits and %s credits on hold after %s transfers; '
    'its transfers give %s, %s, %s, %s after %s',
    a.name, debits_posted, credits_posted, debits_pending, credits_pending, version,
    coalesce(dp, 0), coalesce(cp, 0), coalesce(dn, 0), coalesce(cn, 0), coalesce(n, 0))
  FROM accounts a LEFT JOIN sums s ON s.account_id = a.id
 WHERE (debits_posted, credits_posted, debits_pending, credits_pending, version)
    <> (coalesce(dp, 0), coalesce(cp, 0), coalesce(dn, 0), coalesce(cn, 0), coalesce(n, 0))
 ORDER BY a.id
"""  # noqa: S608 - made of constants only

_HISTORIES: Final = f"""{_EFFECTS}, replayed AS (
    SELECT legs.*, row_number() OVER w AS n,
           sum(dp) OVER w AS sum_dp, sum(cp) OVER w AS sum_cp,
           sum(dn) OVER w AS sum_dn, sum(cn) OVER w AS sum_cn
      FROM legs
    WINDOW w AS (PARTITION BY account_id ORDER BY sequence, id ROWS UNBOUNDED PRECEDING)
)
SELECT r.account_id, CASE
    WHEN a.id IS NULL THEN format('transfer %s names account %s, which does not exist', r.id, r.account_id)
    WHEN r.sequence <> r.n THEN format(
        'account %s: entry %s of its history carries number %s (transfer %s)', a.name, r.n, r.sequence, r.id)
    WHEN (said_dp, said_cp, said_dn, said_cn) <> (sum_dp, sum_cp, sum_dn, sum_cn) THEN format(
        'account %s: after transfer %s (entry %s) the history says %s/%s/%s/%s, '
        'the transfers up to it give %s/%s/%s/%s',
        a.name, r.id, r.n, said_dp, said_cp, said_dn, said_cn, sum_dp, sum_cp, sum_dn, sum_cn)
    ELSE format('account %s was overdrawn by transfer %s (entry %s)', a.name, r.id, r.n) END
  FROM replayed r LEFT JOIN accounts a ON a.id = r.account_id
 WHERE a.id IS NULL OR r.sequence <> r.n
    OR (said_dp, said_cp, said_dn, said_cn) <> (sum_dp, sum_cp, sum_dn, sum_cn)
    OR (a.bound = 'credit' AND sum_dp + sum_dn > sum_cp)
    OR (a.bound = 'debit' AND sum_cp + sum_cn > sum_dp)
 ORDER BY r.account_id, r.n
"""  # noqa: S608 - made of constants only

_HOLDS: Final = """
WITH parts AS (
    SELECT coalesce(hold_id, id) AS hold_id,
           sum(amount) FILTER (WHERE kind IN ('hold', 'extend')) AS held,
           coalesce(sum(amount) FILTER (WHERE kind = 'capture'), 0) AS captured,
           coalesce(sum(amount) FILTER (WHERE kind IN ('release', 'expire')), 0) AS freed,
           max(expires_at) AS expires_at,
           coalesce(max(CASE kind WHEN 'release' THEN 'released' WHEN 'expire' THEN 'expired' END),
                    'open') AS state,
           max(debit_sequence) AS last_sequence,
           max(debit_sequence) FILTER (WHERE kind IN ('release', 'expire')) AS resolved_sequence
      FROM transfers WHERE kind = 'hold' OR hold_id IS NOT NULL GROUP BY 1
)
SELECT coalesce(h.id, p.hold_id), CASE
    WHEN h.id IS NULL THEN format('hold %s has transfers but no record', p.hold_id)
    WHEN p.hold_id IS NULL THEN format('hold %s has a record but no transfers', h.id)
    WHEN p.resolved_sequence < p.last_sequence THEN format('hold %s was used after it was resolved', h.id)
    ELSE format('hold %s says held %s, captured %s, freed %s, %s until %s; '
                'its transfers give %s, %s, %s, %s until %s',
                h.id, h.held, h.captured, h.freed, h.state, h.expires_at,
                p.held, p.captured, p.freed, p.state, p.expires_at) END
  FROM holds h FULL JOIN parts p ON p.hold_id = h.id
 WHERE h.id IS NULL OR p.hold_id IS NULL OR p.resolved_sequence < p.last_sequence
    OR (h.held, h.captured, h.freed, h.state, h.expires_at)
       <> (p.held, p.captured, p.freed, p.state, p.expires_at)
 ORDER BY 1
"""

_LINKS: Final = """
SELECT t.id, CASE WHEN t.reverses IS NOT NULL
    THEN format('reversal %s does not mirror transfer %s', t.id, o.id)
    ELSE format('%s %s does not run between the accounts of its hold %s', t.kind, t.id, o.id) END
  FROM transfers t JOIN transfers o ON o.id = coalesce(t.reverses, t.hold_id)
 WHERE (t.reverses IS NOT NULL AND ((t.debit, t.credit, t.amount) <> (o.credit, o.debit, o.amount)
                                    OR o.kind NOT IN ('posted', 'capture')))
    OR (t.hold_id IS NOT NULL AND ((t.debit, t.credit) <> (o.debit, o.credit) OR o.kind <> 'hold'))
 ORDER BY t.id
"""

_ASSETS: Final = """
SELECT t.id, format('transfer %s moves %s to an account that counts %s', t.id, d.asset, c.asset)
  FROM transfers t JOIN accounts d ON d.id = t.debit JOIN accounts c ON c.id = t.credit
 WHERE d.asset <> c.asset ORDER BY t.id
"""

_ZERO_SUM: Final = """
SELECT asset, format('the balances of %s sum to %s posted and %s on hold instead of zero',
                     asset, sum(credits_posted - debits_posted), sum(credits_pending - debits_pending))
  FROM accounts GROUP BY asset
HAVING sum(credits_posted - debits_posted) <> 0 OR sum(credits_pending - debits_pending) <> 0
 ORDER BY asset
"""

CHECKS: Final[dict[str, str]] = {
    "balances": _BALANCES,
    "histories": _HISTORIES,
    "holds": _HOLDS,
    "links": _LINKS,
    "assets": _ASSETS,
    "zero_sum": _ZERO_SUM,
}
