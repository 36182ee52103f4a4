-- Tables of the ledger. A transfer row is both of its legs, so no leg can be missing; `entries` shows it from each side.

-- Domains, because a CHECK would be evaluated anew at every change of a balance.
CREATE DOMAIN account_name AS text CONSTRAINT account_name_check
    CHECK (VALUE ~ '^[^/[:space:]]+(/[^/[:space:]]+)*$' AND length(VALUE) <= 400);
CREATE DOMAIN asset AS text CONSTRAINT asset_check
    CHECK (VALUE = 'CNY' OR (VALUE ~ '^card_ms:[^[:space:]]+$' AND length(VALUE) <= 200));

CREATE TABLE accounts (
    id              uuid        NOT NULL CONSTRAINT pk_accounts PRIMARY KEY,
    name            account_name NOT NULL CONSTRAINT uq_accounts_name UNIQUE,
    asset           asset       NOT NULL,
    bound           text        NOT NULL,
    debits_posted   bigint      NOT NULL DEFAULT 0,
    credits_posted  bigint      NOT NULL DEFAULT 0,
    debits_pending  bigint      NOT NULL DEFAULT 0,
    credits_pending bigint      NOT NULL DEFAULT 0,
    version         bigint      NOT NULL DEFAULT 0,
    opened_at       timestamptz NOT NULL,
    CONSTRAINT ck_accounts_bound CHECK (
        CASE bound
            WHEN 'credit' THEN debits_posted + debits_pending <= credits_posted
            WHEN 'debit' THEN credits_posted + credits_pending <= debits_posted
            ELSE bound = 'none'
        END
    ),
    CONSTRAINT ck_accounts_totals CHECK (
        debits_posted BETWEEN 0 AND 4611686018427387904 AND credits_posted BETWEEN 0 AND 4611686018427387904
        AND debits_pending BETWEEN 0 AND 4611686018427387904
        AND credits_pending BETWEEN 0 AND 4611686018427387904
    ),
    CONSTRAINT ck_accounts_version CHECK (version >= 0)
) WITH (fillfactor = 50);

CREATE TABLE transfers (
    id                     uuid        NOT NULL CONSTRAINT pk_transfers PRIMARY KEY,
    kind                   text        NOT NULL,
    debit                  uuid        NOT NULL CONSTRAINT fk_transfers_debit REFERENCES accounts,
    credit                 uuid        NOT NULL CONSTRAINT fk_transfers_credit REFERENCES accounts,
    amount                 bigint      NOT NULL,
    hold_id                uuid        CONSTRAINT fk_transfers_hold_id REFERENCES transfers,
    reverses               uuid        CONSTRAINT fk_transfers_reverses REFERENCES transfers,
    expires_at             timestamptz,
    movement               text        NOT NULL,
    cause                  text        NOT NULL,
    at                     timestamptz NOT NULL,
    debit_sequence         bigint      NOT NULL,
    debit_debits_posted    bigint      NOT NULL,
    debit_credits_posted   bigint      NOT NULL,
    debit_debits_pending   bigint      NOT NULL,
    debit_credits_pending  bigint      NOT NULL,
    credit_sequence        bigint      NOT NULL,
    credit_debits_posted   bigint      NOT NULL,
    credit_credits_posted  bigint      NOT NULL,
    credit_debits_pending  bigint      NOT NULL,
    credit_credits_pending bigint      NOT NULL,
    CONSTRAINT uq_transfers_debit_debit_sequence UNIQUE (debit, debit_sequence),
    CONSTRAINT uq_transfers_credit_credit_sequence UNIQUE (credit, credit_sequence),
    CONSTRAINT ck_transfers_legs CHECK (debit <> credit),
    CONSTRAINT ck_transfers_amount CHECK (
        amount BETWEEN 1 AND 9007199254740992 OR (amount = 0 AND kind IN ('release', 'expire'))
    ),
    CONSTRAINT ck_transfers_sequences CHECK (debit_sequence > 0 AND credit_sequence > 0),
    CONSTRAINT ck_transfers_shape CHECK (
        CASE kind
            WHEN 'posted' THEN hold_id IS NULL AND reverses IS NULL AND expires_at IS NULL
            WHEN 'hold' THEN hold_id IS NULL AND reverses IS NULL AND expires_at IS NOT NULL
            WHEN 'extend' THEN hold_id IS NOT NULL AND reverses IS NULL
            WHEN 'capture' THEN hold_id IS NOT NULL AND reverses IS NULL AND expires_at IS NULL
            WHEN 'release' THEN hold_id IS NOT NULL AND reverses IS NULL AND expires_at IS NULL
            WHEN 'expire' THEN hold_id IS NOT NULL AND reverses IS NULL AND expires_at IS NULL
            WHEN 'reversal' THEN hold_id IS NULL AND reverses IS NOT NULL AND expires_at IS NULL
            ELSE false
        END
    ),
    CONSTRAINT ck_transfers_words CHECK (
        length(movement) BETWEEN 1 AND 100 AND length(cause) BETWEEN 1 AND 400
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
CREATE TRIGGER holds_are_kept BEFORE DELETE OR TRUNCATE ON holds
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();

GRANT SELECT ON accounts, transfers, holds, entries TO hub_app;
