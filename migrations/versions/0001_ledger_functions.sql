-- The only writers of the ledger. Both run as the owner, so the application needs no right to write a table.

CREATE FUNCTION ledger_open_accounts(wanted jsonb, at timestamptz)
RETURNS TABLE (id uuid, reason text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO accounts (id, name, asset, bound, opened_at)
    SELECT w.id, w.name, w.asset, w.bound, at
      FROM jsonb_to_recordset(wanted) AS w(id uuid, name text, asset text, bound text)
     ORDER BY w.id
    ON CONFLICT DO NOTHING;
    RETURN QUERY
    SELECT w.id, CASE WHEN a.id IS NULL THEN 'name_taken' ELSE 'differs' END
      FROM jsonb_to_recordset(wanted) AS w(id uuid, name text, asset text, bound text)
      LEFT JOIN accounts a ON a.id = w.id
     WHERE a.id IS NULL OR (a.name, a.asset, a.bound) <> (w.name, w.asset, w.bound)
     ORDER BY w.id;
END $$;

-- One transfer, its accounts already locked. Checks in a fixed order: syntax, idempotency, existence, state, balance.
CREATE FUNCTION ledger_apply(
    t jsonb, posted_at timestamptz, locked uuid[],
    OUT status text, OUT amount bigint, OUT account_id uuid, OUT available bigint
)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    tid uuid := t ->> 'id';
    tkind text := t ->> 'kind';
    tdebit uuid := t ->> 'debit';
    tcredit uuid := t ->> 'credit';
    thold uuid := t ->> 'hold_id';
    treverses uuid := t ->> 'reverses';
    texpires timestamptz := t ->> 'expires_at';
    first transfers;
    original transfers;
    h holds;
    d accounts;
    c accounts;
    posts bigint := 0;
    pends bigint := 0;
BEGIN
    amount := (t ->> 'amount')::bigint;
    IF amount IS NOT NULL AND amount NOT BETWEEN 1 AND 9007199254740992 THEN
        status := 'amount_out_of_range'; RETURN;
    END IF;
    IF tdebit = tcredit THEN
        status := 'same_account'; account_id := tdebit; RETURN;
    END IF;

    SELECT * INTO first FROM transfers x WHERE x.id = tid;
    IF FOUND THEN
        IF first.kind = tkind
            AND first.debit = coalesce(tdebit, first.debit) AND first.credit = coalesce(tcredit, first.credit)
            AND first.amount = coalesce(amount, first.amount)
            AND first.hold_id IS NOT DISTINCT FROM thold AND first.reverses IS NOT DISTINCT FROM treverses
            AND first.expires_at IS NOT DISTINCT FROM texpires
            AND first.movement = t ->> 'movement' AND first.cause = t ->> 'cause'
        THEN
            status := 'replayed'; amount := first.amount;
        ELSE
            status := 'id_reused_with_other_content';
        END IF;
        RETURN;
    END IF;

    IF thold IS NOT NULL THEN
        SELECT * INTO h FROM holds x WHERE x.id = thold;
        IF NOT FOUND OR NOT (h.debit = ANY (locked) AND h.credit = ANY (locked)) THEN
            status := 'unknown_hold'; RETURN;
        END IF;
        tdebit := h.debit; tcredit := h.credit;
    ELSIF treverses IS NOT NULL THEN
        SELECT * INTO original FROM transfers x WHERE x.id = treverses;
        IF NOT FOUND OR NOT (original.debit = ANY (locked) AND original.credit = ANY (locked)) THEN
            status := 'unknown_transfer'; RETURN;
        END IF;
        tdebit := original.credit; tcredit := original.debit; amount := original.amount;
    END IF;
    SELECT * INTO d FROM accounts x WHERE x.id = tdebit;
    IF NOT FOUND THEN
        status := 'unknown_account'; account_id := tdebit; RETURN;
    END IF;
    SELECT * INTO c FROM accounts x WHERE x.id = tcredit;
    IF NOT FOUND THEN
        status := 'unknown_account'; account_id := tcredit; RETURN;
    END IF;
    IF d.asset <> c.asset THEN
        status := 'asset_mismatch'; account_id := tcredit; RETURN;
    END IF;

    IF thold IS NOT NULL THEN
        IF h.state <> 'open' THEN
            status := 'hold_resolved'; RETURN;
        ELSIF tkind IN ('extend', 'capture') AND posted_at >= h.expires_at THEN
            status := 'hold_expired'; RETURN;
        ELSIF tkind = 'expire' AND posted_at < h.expires_at THEN
            status := 'hold_not_yet_expired'; RETURN;
        END IF;
    ELSIF treverses IS NOT NULL THEN
        IF original.kind NOT IN ('posted', 'capture') THEN
            status := 'not_reversible'; RETURN;
        ELSIF EXISTS (SELECT FROM transfers x WHERE x.reverses = treverses) THEN
            status := 'already_reversed'; RETURN;
        END IF;
    END IF;

    IF tkind IN ('release', 'expire') THEN
        amount := h.held - h.captured;
    ELSIF tkind = 'capture' AND amount > h.held - h.captured THEN
        status := 'hold_exhausted'; available := h.held - h.captured; account_id := tdebit; RETURN;
    END IF;
    IF tkind IN ('posted', 'reversal', 'hold', 'extend') THEN
        IF d.bound = 'credit' AND d.credits_posted - d.debits_posted - d.debits_pending < amount THEN
            status := 'insufficient_funds'; account_id := tdebit;
            available := d.credits_posted - d.debits_posted - d.debits_pending; RETURN;
        ELSIF c.bound = 'debit' AND c.debits_posted - c.credits_posted - c.credits_pending < amount THEN
            status := 'insufficient_funds'; account_id := tcredit;
            available := c.debits_posted - c.credits_posted - c.credits_pending; RETURN;
        END IF;
    END IF;

    CASE
        WHEN tkind IN ('posted', 'reversal') THEN posts := amount;
        WHEN tkind IN ('hold', 'extend') THEN pends := amount;
        WHEN tkind = 'capture' THEN posts := amount; pends := -amount;
        ELSE pends := -amount;
    END CASE;
    UPDATE accounts x SET debits_posted = x.debits_posted + posts, debits_pending = x.debits_pending + pends,
                          version = x.version + 1
     WHERE x.id = tdebit RETURNING * INTO d;
    UPDATE accounts x SET credits_posted = x.credits_posted + posts, credits_pending = x.credits_pending + pends,
                          version = x.version + 1
     WHERE x.id = tcredit RETURNING * INTO c;
    INSERT INTO transfers
    VALUES (tid, tkind, tdebit, tcredit, amount, thold, treverses, texpires, t ->> 'movement', t ->> 'cause', posted_at,
            d.version, d.debits_posted, d.credits_posted, d.debits_pending, d.credits_pending,
            c.version, c.debits_posted, c.credits_posted, c.debits_pending, c.credits_pending);
    CASE tkind
        WHEN 'hold' THEN
            INSERT INTO holds (id, debit, credit, held, expires_at) VALUES (tid, tdebit, tcredit, amount, texpires);
        WHEN 'extend' THEN
            UPDATE holds x SET held = x.held + amount, expires_at = greatest(x.expires_at, texpires) WHERE x.id = thold;
        WHEN 'capture' THEN
            UPDATE holds x SET captured = x.captured + amount WHERE x.id = thold;
        WHEN 'release' THEN
            UPDATE holds x SET freed = amount, state = 'released' WHERE x.id = thold;
        WHEN 'expire' THEN
            UPDATE holds x SET freed = amount, state = 'expired' WHERE x.id = thold;
        ELSE NULL;
    END CASE;
    status := 'posted';
END $$;

-- A batch in one round trip. Accounts are locked in order of their ids before anything is read to decide or written.
CREATE FUNCTION ledger_post(batch jsonb, posted_at timestamptz, linked boolean)
RETURNS TABLE (status text, amount bigint, account_id uuid, available bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    locked uuid[];
    t jsonb;
    r record;
    statuses text[];
    amounts bigint[];
    accounts_named uuid[];
    availables bigint[];
BEGIN
    WITH asked AS (
        SELECT * FROM jsonb_to_recordset(batch) AS b(debit uuid, credit uuid, hold_id uuid, reverses uuid)
    ), touched AS (
        SELECT debit AS id FROM asked UNION SELECT credit FROM asked
        UNION SELECT unnest(ARRAY[h.debit, h.credit]) FROM asked JOIN holds h ON h.id = asked.hold_id
        UNION SELECT unnest(ARRAY[x.debit, x.credit]) FROM asked JOIN transfers x ON x.id = asked.reverses
    ), taken AS (
        SELECT a.id FROM accounts a WHERE a.id IN (SELECT id FROM touched) ORDER BY a.id FOR NO KEY UPDATE
    )
    SELECT array_agg(taken.id) INTO locked FROM taken;

    FOR attempt IN 1..3 LOOP
        statuses := '{}'; amounts := '{}'; accounts_named := '{}'; availables := '{}';
        BEGIN
            FOR t IN SELECT value FROM jsonb_array_elements(batch) LOOP
                r := ledger_apply(t, posted_at, coalesce(locked, '{}'));
                statuses := statuses || r.status;
                amounts := amounts || r.amount;
                accounts_named := accounts_named || r.account_id;
                availables := availables || r.available;
                IF linked AND r.status NOT IN ('posted', 'replayed') THEN
                    RAISE EXCEPTION 'linked batch refused' USING ERRCODE = 'HB001';
                END IF;
            END LOOP;
            EXIT;
        EXCEPTION
            WHEN SQLSTATE 'HB001' THEN
                EXIT;
            WHEN unique_violation THEN
                -- The same id was posted meanwhile between other accounts: look again, it is now visible.
                IF attempt = 3 THEN RAISE; END IF;
        END;
    END LOOP;
    RETURN QUERY
    SELECT u.s, u.m, u.a, u.v
      FROM unnest(statuses, amounts, accounts_named, availables) WITH ORDINALITY AS u(s, m, a, v, n) ORDER BY u.n;
END $$;

REVOKE ALL ON FUNCTION ledger_open_accounts, ledger_apply, ledger_post, ledger_refuse_change FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_open_accounts, ledger_post TO hub_app;
