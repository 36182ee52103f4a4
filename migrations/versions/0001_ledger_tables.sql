-- Tables of the ledger. A transfer row is both of its legs, so no leg can be missing; `entries` shows it from each side.

-- Domains hold what concerns one column: a CHECK of the table is read and planned anew by every statement that writes
-- the table, which costs a single posting more than writing it does. A domain's is kept ready by each connection, and an
-- update asks it about the columns that it sets.
CREATE DOMAIN account_name AS text CONSTRAINT account_name_check
    CHECK (VALUE ~ '^[^/[:space:]]+(/[^/[:space:]]+)*$' AND length(VALUE) <= 400);
CREATE DOMAIN asset AS text CONSTRAINT asset_check
    CHECK (VALUE = 'CNY' OR (VALUE ~ '^card_ms:[^[:space:]]+$' AND length(VALUE) <= 200));
CREATE DOMAIN account_total AS bigint CONSTRAINT account_total_check CHECK (VALUE BETWEEN 0 AND 4611686018427387904);
CREATE DOMAIN account_version AS bigint CONSTRAINT account_version_check CHECK (VALUE >= 0);
CREATE DOMAIN entry_sequence AS bigint CONSTRAINT entry_sequence_check CHECK (VALUE > 0);
CREATE DOMAIN transfer_kind AS text CONSTRAINT transfer_kind_check
    CHECK (VALUE IN ('posted', 'hold', 'extend', 'capture', 'release', 'expire', 'reversal'));
CREATE DOMAIN transfer_amount AS bigint CONSTRAINT transfer_amount_check CHECK (VALUE BETWEEN 0 AND 9007199254740992);
CREATE DOMAIN transfer_movement AS text CONSTRAINT transfer_movement_check CHECK (length(VALUE) BETWEEN 1 AND 100);
CREATE DOMAIN transfer_cause AS text CONSTRAINT transfer_cause_check CHECK (length(VALUE) BETWEEN 1 AND 400);

CREATE TABLE accounts (
    id              uuid        NOT NULL CONSTRAINT pk_accounts PRIMARY KEY,
    name            account_name NOT NULL CONSTRAINT uq_accounts_name UNIQUE,
    asset           asset       NOT NULL,
    bound           text        NOT NULL,
    debits_posted   account_total NOT NULL DEFAULT 0,
    credits_posted  account_total NOT NULL DEFAULT 0,
    debits_pending  account_total NOT NULL DEFAULT 0,
    credits_pending account_total NOT NULL DEFAULT 0,
    version         account_version NOT NULL DEFAULT 0,
    opened_at       timestamptz NOT NULL,
    CONSTRAINT ck_accounts_bound CHECK (
        CASE bound
            WHEN 'credit' THEN debits_posted + debits_pending <= credits_posted
            WHEN 'debit' THEN credits_posted + credits_pending <= debits_posted
            ELSE bound = 'none'
        END
    )
) WITH (fillfactor = 50);

CREATE TABLE transfers (
    id                     uuid        NOT NULL CONSTRAINT pk_transfers PRIMARY KEY,
    kind                   transfer_kind NOT NULL,
    debit                  uuid        NOT NULL,
    credit                 uuid        NOT NULL,
    amount                 transfer_amount NOT NULL,
    hold_id                uuid        CONSTRAINT fk_transfers_hold_id REFERENCES transfers,
    reverses               uuid        CONSTRAINT fk_transfers_reverses REFERENCES transfers,
    expires_at             timestamptz,
    movement               transfer_movement NOT NULL,
    cause                  transfer_cause NOT NULL,
    at                     timestamptz NOT NULL,
    debit_sequence         entry_sequence NOT NULL,
    debit_debits_posted    bigint      NOT NULL,
    debit_credits_posted   bigint      NOT NULL,
    debit_debits_pending   bigint      NOT NULL,
    debit_credits_pending  bigint      NOT NULL,
    credit_sequence        entry_sequence NOT NULL,
    credit_debits_posted   bigint      NOT NULL,
    credit_credits_posted  bigint      NOT NULL,
    credit_debits_pending  bigint      NOT NULL,
    credit_credits_pending bigint      NOT NULL,
    CONSTRAINT uq_transfers_debit_debit_sequence UNIQUE (debit, debit_sequence),
    CONSTRAINT uq_transfers_credit_credit_sequence UNIQUE (credit, credit_sequence),
    CONSTRAINT ck_transfers_legs CHECK (debit <> credit),
    CONSTRAINT ck_transfers_amount CHECK (amount > 0 OR kind IN ('release', 'expire')),
    CONSTRAINT ck_transfers_hold_id CHECK (
        (hold_id IS NOT NULL) = (kind IN ('extend', 'capture', 'release', 'expire'))
    ),
    CONSTRAINT ck_transfers_reverses CHECK ((reverses IS NOT NULL) = (kind = 'reversal')),
    CONSTRAINT ck_transfers_expires_at CHECK (
        CASE WHEN expires_at IS NULL THEN kind <> 'hold' ELSE kind IN ('hold', 'extend') END
    )
);
CREATE UNIQUE INDEX uq_transfers_reverses ON transfers (reverses) WHERE reverses IS NOT NULL;
CREATE INDEX ix_transfers_hold_id ON transfers (hold_id) WHERE hold_id IS NOT NULL;
-- Each hold is resolved exactly once, whatever the cache below says.
CREATE UNIQUE INDEX uq_transfers_resolution ON transfers (hold_id) WHERE kind IN ('release', 'expire');

CREATE TABLE holds (
    id         uuid        NOT NULL CONSTRAINT pk_holds PRIMARY KEY
                           CONSTRAINT fk_holds_id REFERENCES transfers,
    debit      uuid        NOT NULL,
    credit     uuid        NOT NULL,
    held       bigint      NOT NULL,
    captured   bigint      NOT NULL DEFAULT 0,
    freed      bigint      NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    state      text        NOT NULL DEFAULT 'open',
    CONSTRAINT ck_holds_amounts CHECK (held > 0 AND captured >= 0 AND freed >= 0 AND captured + freed <= held),
    CONSTRAINT ck_holds_state CHECK (
        CASE state
            WHEN 'open' THEN freed = 0
            WHEN 'released' THEN captured + freed = held
            WHEN 'expired' THEN captured + freed = held
            ELSE false
        END
    )
) WITH (fillfactor = 70);
CREATE INDEX ix_holds_due ON holds (expires_at, id) WHERE state = 'open';

CREATE VIEW entries AS
SELECT debit AS account_id, debit_sequence AS sequence, id AS transfer_id, 'debit' AS side, kind, amount, at, movement, cause,
       debit_debits_posted AS debits_posted, debit_credits_posted AS credits_posted,
       debit_debits_pending AS debits_pending, debit_credits_pending AS credits_pending
  FROM transfers
UNION ALL
SELECT credit, credit_sequence, id, 'credit', kind, amount, at, movement, cause,
       credit_debits_posted, credit_credits_posted, credit_debits_pending, credit_credits_pending
  FROM transfers;

-- Append-only even for the owner, whose functions are the only writers.
CREATE FUNCTION ledger_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on % is refused: the ledger is corrected by adding a reversal', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER transfers_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER accounts_are_kept BEFORE DELETE OR TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER accounts_keep_their_ids BEFORE UPDATE OF id ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER holds_are_kept BEFORE DELETE OR TRUNCATE ON holds
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();

-- Both legs name accounts. Two foreign keys would say the same, but they look up, lock and log each account once more for
-- each row, so that accounts cannot go away meanwhile; those never do (above). Docs/decisions 0026 has the figures. A
-- scalar subquery is answered by the index row by row, whatever batch made the plan; EXISTS might read all accounts.
CREATE FUNCTION ledger_accounts_exist() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM added x
      WHERE (SELECT a.id FROM public.accounts a WHERE a.id = x.debit) IS NULL
         OR (SELECT a.id FROM public.accounts a WHERE a.id = x.credit) IS NULL;
    IF FOUND THEN
        RAISE EXCEPTION 'a transfer names an account that does not exist'
            USING ERRCODE = 'foreign_key_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transfers_name_accounts AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger_accounts_exist();

GRANT SELECT ON accounts, transfers, holds, entries TO hub_app;
