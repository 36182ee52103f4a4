-- The only writers of the ledger. All run as the owner, so the application needs no right to write a table.

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

-- Posts one plain transfer that meets every condition; false: nothing was written, and `ledger_post` says why. In a
-- transaction of its own, setting up that function's many expressions would cost more than the posting. The accounts are
-- locked in the order of their ids, the decision falls in memory, and the transfer is written before the balances, so
-- that an id somebody else is just posting needs no subtransaction: it is waited for, and then nothing is written.
CREATE FUNCTION ledger_post_plain(
    t_id uuid, t_debit uuid, t_credit uuid, t_amount bigint, t_movement text, t_cause text, posted_at timestamptz
)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    amount_max CONSTANT bigint := 9007199254740992;
    total_max CONSTANT bigint := 4611686018427387904;
    d accounts;
    c accounts;
BEGIN
    IF t_debit < t_credit THEN
        SELECT * INTO d FROM accounts x WHERE x.id = t_debit FOR NO KEY UPDATE;
        SELECT * INTO c FROM accounts x WHERE x.id = t_credit FOR NO KEY UPDATE;
    ELSE
        SELECT * INTO c FROM accounts x WHERE x.id = t_credit FOR NO KEY UPDATE;
        SELECT * INTO d FROM accounts x WHERE x.id = t_debit FOR NO KEY UPDATE;
    END IF;
    IF t_amount BETWEEN 1 AND amount_max AND d.id <> c.id AND d.asset = c.asset
        AND (d.bound <> 'credit' OR d.debits_posted + d.debits_pending + t_amount <= d.credits_posted)
        AND (c.bound <> 'debit' OR c.credits_posted + c.credits_pending + t_amount <= c.debits_posted)
        AND d.debits_posted + t_amount <= total_max AND c.credits_posted + t_amount <= total_max
    THEN
        INSERT INTO transfers VALUES (
            t_id, 'posted', t_debit, t_credit, t_amount, NULL, NULL, NULL, t_movement, t_cause, posted_at,
            d.version + 1, d.debits_posted + t_amount, d.credits_posted, d.debits_pending, d.credits_pending,
            c.version + 1, c.debits_posted, c.credits_posted + t_amount, c.debits_pending, c.credits_pending
        ) ON CONFLICT (id) DO NOTHING;
        IF FOUND THEN
            UPDATE accounts x SET debits_posted = x.debits_posted + t_amount, version = x.version + 1
             WHERE x.id = t_debit;
            UPDATE accounts x SET credits_posted = x.credits_posted + t_amount, version = x.version + 1
             WHERE x.id = t_credit;
            RETURN true;
        END IF;
    END IF;
    RETURN false;
END $$;

-- Posts a batch in one round trip: lock the accounts in order of their ids, decide in memory, write what was accepted.
-- Nothing is written before everything is decided, so a refusal leaves no trace. Each transfer is checked in a fixed
-- order: syntax, idempotency, existence, state, balance. Arrays hold one element per transfer (t), per locked account
-- (a), or per hold (h); plans are generic because planning anew would cost more than running.
CREATE FUNCTION ledger_post(
    t_id uuid[], t_kind text[], t_debit uuid[], t_credit uuid[], t_amount bigint[], t_hold uuid[], t_reverses uuid[],
    t_ends timestamptz[], t_movement text[], t_cause text[], posted_at timestamptz, linked boolean
)
RETURNS TABLE (status text, amount bigint, account_id uuid, available bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_variable
DECLARE
    amount_max CONSTANT bigint := 9007199254740992;
    total_max CONSTANT bigint := 4611686018427387904;
    n CONSTANT integer := cardinality(t_id);
    any_hold CONSTANT boolean := t_kind && ARRAY['hold', 'extend', 'capture', 'release', 'expire'];
    any_reversal CONSTANT boolean := 'reversal' = ANY (t_kind);
    wanted uuid[];
    known uuid[];
    twins boolean;
    posted_any boolean;
    a_id uuid[]; a_asset text[]; a_bound text[]; a_was bigint[]; a_version bigint[];
    a_dp bigint[]; a_cp bigint[]; a_dn bigint[]; a_cn bigint[];
    h_id uuid[]; h_debit uuid[]; h_credit uuid[]; h_held bigint[]; h_captured bigint[]; h_freed bigint[];
    h_ends timestamptz[]; h_state text[]; h_fate text[];
    t_place bigint[];
    r_status text[]; r_account uuid[]; r_available bigint[];
    r_id uuid[]; r_reverses uuid[]; r_debit uuid[]; r_credit uuid[]; r_amount bigint[];
    d_version bigint[]; d_dp bigint[]; d_cp bigint[]; d_dn bigint[]; d_cn bigint[];
    c_version bigint[]; c_dp bigint[]; c_cp bigint[]; c_dn bigint[]; c_cn bigint[];
    kind text; verdict text; at_fault uuid; moved bigint; room bigint; posts bigint; pends bigint;
    d integer; c integer; h integer; j integer;
    first transfers;
BEGIN
    FOR attempt IN 1..3 LOOP
        -- 1. Lock. Accounts of holds and originals never change, so they may be looked up before.
        wanted := t_debit || t_credit;
        IF any_hold THEN
            wanted := wanted || ARRAY(
                SELECT unnest(ARRAY[x.debit, x.credit]) FROM holds x WHERE x.id = ANY (t_hold));
        END IF;
        IF any_reversal THEN
            wanted := wanted || ARRAY(
                SELECT unnest(ARRAY[x.debit, x.credit]) FROM transfers x WHERE x.id = ANY (t_reverses));
        END IF;
        SELECT array_agg(x.id), array_agg(x.asset), array_agg(x.bound), array_agg(x.version), array_agg(x.version),
               array_agg(x.debits_posted), array_agg(x.credits_posted),
               array_agg(x.debits_pending), array_agg(x.credits_pending)
          INTO a_id, a_asset, a_bound, a_was, a_version, a_dp, a_cp, a_dn, a_cn
          FROM (SELECT * FROM accounts y WHERE y.id = ANY (wanted) ORDER BY y.id FOR NO KEY UPDATE) x;

        -- 2. Read what may have been written before the locks were granted.
        known := ARRAY(SELECT x.id FROM transfers x WHERE x.id = ANY (t_id));
        twins := n > 1 AND (SELECT count(DISTINCT u.id) FROM unnest(t_id) AS u(id)) < n;
        h_id := '{}';
        IF any_hold THEN
            SELECT coalesce(array_agg(x.id), '{}'), array_agg(x.debit), array_agg(x.credit), array_agg(x.held),
                   array_agg(x.captured), array_agg(x.freed), array_agg(x.expires_at), array_agg(x.state),
                   array_agg('kept'::text)
              INTO h_id, h_debit, h_credit, h_held, h_captured, h_freed, h_ends, h_state, h_fate
              FROM holds x WHERE x.id = ANY (t_hold);
            -- Where each transfer's hold stands there, found for all at once: array_position would look through them all
            -- for each. One that this batch makes is looked for when its turn comes.
            SELECT array_agg(x.place ORDER BY t.i) INTO t_place
              FROM unnest(t_hold) WITH ORDINALITY AS t(id, i)
              LEFT JOIN unnest(h_id) WITH ORDINALITY AS x(id, place) ON x.id = t.id;
        END IF;

        -- 3. Decide, each transfer on what the ones before it left.
        posted_any := false;
        r_status := array_fill(NULL::text, ARRAY[n]);
        r_id := array_fill(NULL::uuid, ARRAY[n]);
        r_account := r_id; r_reverses := r_id; r_debit := r_id; r_credit := r_id;
        r_amount := array_fill(NULL::bigint, ARRAY[n]);
        r_available := r_amount;
        d_version := r_amount; d_dp := r_amount; d_cp := r_amount; d_dn := r_amount; d_cn := r_amount;
        c_version := r_amount; c_dp := r_amount; c_cp := r_amount; c_dn := r_amount; c_cn := r_amount;
        FOR i IN 1..n LOOP
            kind := t_kind[i];
            moved := t_amount[i];
            verdict := NULL; at_fault := NULL; room := NULL; j := NULL;

            IF moved NOT BETWEEN 1 AND amount_max THEN
                verdict := 'amount_out_of_range';
            ELSIF t_debit[i] = t_credit[i] THEN
                verdict := 'same_account'; at_fault := t_debit[i];
            ELSIF t_id[i] = ANY (known) THEN
                SELECT * INTO first FROM transfers x WHERE x.id = t_id[i];
                j := 0;
            ELSIF twins THEN
                j := array_position(r_id, t_id[i]);
                IF j IS NOT NULL THEN
                    first := ROW(t_id[j], t_kind[j], r_debit[j], r_credit[j], r_amount[j], t_hold[j], t_reverses[j],
                                 t_ends[j], t_movement[j], t_cause[j], posted_at,
                                 NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
                END IF;
            END IF;
            IF j IS NOT NULL THEN
                IF first.kind = kind AND first.debit = coalesce(t_debit[i], first.debit)
                    AND first.credit = coalesce(t_credit[i], first.credit)
                    AND first.amount = coalesce(moved, first.amount)
                    AND first.hold_id IS NOT DISTINCT FROM t_hold[i]
                    AND first.reverses IS NOT DISTINCT FROM t_reverses[i]
                    AND first.expires_at IS NOT DISTINCT FROM t_ends[i]
                    AND first.movement = t_movement[i] AND first.cause = t_cause[i]
                THEN
                    verdict := 'replayed'; moved := first.amount;
                ELSE
                    verdict := 'id_reused_with_other_content';
                END IF;
            END IF;

            IF verdict IS NOT NULL THEN
                NULL;
            ELSIF kind = 'posted' OR kind = 'hold' THEN
                d := array_position(a_id, t_debit[i]);
                c := array_position(a_id, t_credit[i]);
                IF d IS NULL OR c IS NULL THEN
                    verdict := 'unknown_account';
                    at_fault := CASE WHEN d IS NULL THEN t_debit[i] ELSE t_credit[i] END;
                ELSIF a_asset[d] <> a_asset[c] THEN
                    verdict := 'asset_mismatch'; at_fault := t_credit[i];
                END IF;
            ELSIF kind = 'reversal' THEN
                SELECT * INTO first FROM transfers x WHERE x.id = t_reverses[i];
                IF NOT FOUND THEN
                    j := array_position(r_id, t_reverses[i]);
                    first := ROW(t_reverses[i], t_kind[j], r_debit[j], r_credit[j], r_amount[j], t_hold[j],
                                 t_reverses[j], t_ends[j], t_movement[j], t_cause[j], posted_at,
                                 NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
                END IF;
                d := array_position(a_id, first.credit);
                c := array_position(a_id, first.debit);
                moved := first.amount;
                IF d IS NULL OR c IS NULL THEN
                    verdict := 'unknown_transfer';
                ELSIF first.kind NOT IN ('posted', 'capture') THEN
                    verdict := 'not_reversible';
                ELSIF t_reverses[i] = ANY (r_reverses)
                    OR EXISTS (SELECT FROM transfers x WHERE x.reverses = t_reverses[i])
                THEN
                    verdict := 'already_reversed';
                END IF;
            ELSIF kind IN ('extend', 'capture', 'release', 'expire') THEN
                h := coalesce(t_place[i], array_position(h_id, t_hold[i]));
                d := array_position(a_id, h_debit[h]);
                c := array_position(a_id, h_credit[h]);
                IF d IS NULL OR c IS NULL THEN
                    verdict := 'unknown_hold';
                ELSIF h_state[h] <> 'open' THEN
                    verdict := 'hold_resolved';
                ELSIF (kind = 'extend' OR kind = 'capture') AND posted_at >= h_ends[h] THEN
                    verdict := 'hold_expired';
                ELSIF kind = 'expire' AND posted_at < h_ends[h] THEN
                    verdict := 'hold_not_yet_expired';
                ELSIF kind = 'release' OR kind = 'expire' THEN
                    moved := h_held[h] - h_captured[h];
                ELSIF kind = 'capture' AND moved > h_held[h] - h_captured[h] THEN
                    verdict := 'hold_exhausted'; at_fault := h_debit[h]; room := h_held[h] - h_captured[h];
                END IF;
            ELSE
                RAISE EXCEPTION 'no kind of transfer is called %', kind USING ERRCODE = 'invalid_parameter_value';
            END IF;

            IF verdict IS NULL THEN
                posts := CASE WHEN kind IN ('posted', 'reversal', 'capture') THEN moved ELSE 0 END;
                pends := CASE WHEN kind IN ('hold', 'extend') THEN moved
                              WHEN kind IN ('posted', 'reversal') THEN 0 ELSE -moved END;
                IF a_bound[d] = 'credit' AND a_cp[d] - a_dp[d] - a_dn[d] < posts + pends THEN
                    verdict := 'insufficient_funds'; at_fault := a_id[d]; room := a_cp[d] - a_dp[d] - a_dn[d];
                ELSIF a_bound[c] = 'debit' AND a_dp[c] - a_cp[c] - a_cn[c] < posts + pends THEN
                    verdict := 'insufficient_funds'; at_fault := a_id[c]; room := a_dp[c] - a_cp[c] - a_cn[c];
                ELSIF a_dp[d] + posts > total_max OR a_dn[d] + pends > total_max THEN
                    verdict := 'balance_out_of_range'; at_fault := a_id[d];
                ELSIF a_cp[c] + posts > total_max OR a_cn[c] + pends > total_max THEN
                    verdict := 'balance_out_of_range'; at_fault := a_id[c];
                END IF;
            END IF;

            r_amount[i] := moved;
            IF verdict IS NOT NULL THEN
                r_status[i] := verdict; r_account[i] := at_fault; r_available[i] := room;
                EXIT WHEN linked AND verdict <> 'replayed';
                CONTINUE;
            END IF;
            r_status[i] := 'posted'; posted_any := true;
            r_id[i] := t_id[i]; r_reverses[i] := t_reverses[i]; r_debit[i] := a_id[d]; r_credit[i] := a_id[c];
            a_version[d] := a_version[d] + 1; a_dp[d] := a_dp[d] + posts; a_dn[d] := a_dn[d] + pends;
            a_version[c] := a_version[c] + 1; a_cp[c] := a_cp[c] + posts; a_cn[c] := a_cn[c] + pends;
            d_version[i] := a_version[d];
            d_dp[i] := a_dp[d]; d_cp[i] := a_cp[d]; d_dn[i] := a_dn[d]; d_cn[i] := a_cn[d];
            c_version[i] := a_version[c];
            c_dp[i] := a_dp[c]; c_cp[i] := a_cp[c]; c_dn[i] := a_dn[c]; c_cn[i] := a_cn[c];
            IF kind = 'posted' OR kind = 'reversal' THEN
                CONTINUE;
            ELSIF kind = 'hold' THEN
                h_id := h_id || t_id[i]; h_debit := h_debit || t_debit[i]; h_credit := h_credit || t_credit[i];
                h_held := h_held || moved; h_captured := h_captured || 0::bigint; h_freed := h_freed || 0::bigint;
                h_ends := h_ends || t_ends[i]; h_state := h_state || 'open'::text; h_fate := h_fate || 'made'::text;
                CONTINUE;
            ELSIF kind = 'extend' THEN
                h_held[h] := h_held[h] + moved;
                h_ends[h] := greatest(h_ends[h], t_ends[i]);
            ELSIF kind = 'capture' THEN
                h_captured[h] := h_captured[h] + moved;
            ELSE
                h_freed[h] := moved;
                h_state[h] := CASE kind WHEN 'release' THEN 'released' ELSE 'expired' END;
            END IF;
            IF h_fate[h] = 'kept' THEN
                h_fate[h] := 'changed';
            END IF;
        END LOOP;

        -- 4. Write, unless one refusal refuses all.
        EXIT WHEN NOT posted_any
            OR (linked AND EXISTS (SELECT FROM unnest(r_status) AS u(s) WHERE u.s NOT IN ('posted', 'replayed')));
        BEGIN
            INSERT INTO transfers
            SELECT r_id[u], t_kind[u], r_debit[u], r_credit[u], r_amount[u], t_hold[u], t_reverses[u], t_ends[u],
                   t_movement[u], t_cause[u], posted_at,
                   d_version[u], d_dp[u], d_cp[u], d_dn[u], d_cn[u], c_version[u], c_dp[u], c_cp[u], c_dn[u], c_cn[u]
              FROM generate_series(1, n) AS u
             WHERE r_id[u] IS NOT NULL;
        EXCEPTION WHEN unique_violation THEN
            -- The same id was posted meanwhile between other accounts: look again, it is visible now.
            IF attempt = 3 THEN RAISE; END IF;
            CONTINUE;
        END;
        UPDATE accounts x
           SET debits_posted = u.dp, credits_posted = u.cp, debits_pending = u.dn, credits_pending = u.cn,
               version = u.version
          FROM unnest(a_id, a_dp, a_cp, a_dn, a_cn, a_version, a_was) AS u(id, dp, cp, dn, cn, version, was)
         WHERE x.id = u.id AND u.version <> u.was;
        IF 'made' = ANY (h_fate) THEN
            INSERT INTO holds
            SELECT u.id, u.debit, u.credit, u.held, u.captured, u.freed, u.ends, u.state
              FROM unnest(h_id, h_debit, h_credit, h_held, h_captured, h_freed, h_ends, h_state, h_fate)
                AS u(id, debit, credit, held, captured, freed, ends, state, fate)
             WHERE u.fate = 'made';
        END IF;
        IF 'changed' = ANY (h_fate) THEN
            UPDATE holds x SET held = u.held, captured = u.captured, freed = u.freed, expires_at = u.ends, state = u.state
              FROM unnest(h_id, h_held, h_captured, h_freed, h_ends, h_state, h_fate)
                AS u(id, held, captured, freed, ends, state, fate)
             WHERE x.id = u.id AND u.fate = 'changed';
        END IF;
        EXIT;
    END LOOP;
    FOR i IN 1..n LOOP
        EXIT WHEN r_status[i] IS NULL;
        status := r_status[i]; amount := r_amount[i]; account_id := r_account[i]; available := r_available[i];
        RETURN NEXT;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION
    ledger_open_accounts, ledger_post_plain, ledger_post, ledger_refuse_change, ledger_accounts_exist FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_open_accounts, ledger_post_plain, ledger_post TO hub_app;
