-- Identity, usage, rates and charges. Usage, rates and charges are only ever added; a queue of work loses what is done.

CREATE TABLE api_keys (
    id UUID NOT NULL,
    key_sha256 BYTEA NOT NULL,
    principal_id UUID NOT NULL,
    principal_name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant_id UUID,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT ck_api_keys_role CHECK (role IN ('authority', 'first_reviewer', 'approver', 'operator', 'tenant', 'auditor')),
    CONSTRAINT ck_api_keys_tenant CHECK ((role = 'tenant') = (tenant_id IS NOT NULL)),
    CONSTRAINT ck_api_keys_digest CHECK (length(key_sha256) = 32),
    CONSTRAINT uq_api_keys_key_sha256 UNIQUE (key_sha256)
);

CREATE TABLE idempotency_keys (
    principal_id UUID NOT NULL,
    key TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    answer JSONB NOT NULL,
    answered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (principal_id, key)
);

CREATE TABLE job_funding (
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    voucher_ids UUID[],
    state TEXT NOT NULL,
    model TEXT,
    held_micros BIGINT NOT NULL,
    held_slot_ms BIGINT NOT NULL,
    funded_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_job_funding PRIMARY KEY (job_id),
    CONSTRAINT ck_job_funding_not_negative CHECK (held_micros >= 0 AND held_slot_ms >= 0),
    CONSTRAINT ck_job_funding_state CHECK (state IN ('pending', 'held', 'ended', 'released'))
);

CREATE INDEX ix_job_funding_state ON job_funding (state);

CREATE TABLE rates (
    id UUID NOT NULL,
    model TEXT NOT NULL,
    micros_per_card_hour BIGINT NOT NULL,
    effective_from TIMESTAMP WITH TIME ZONE NOT NULL,
    set_by UUID NOT NULL,
    set_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_rates PRIMARY KEY (id),
    CONSTRAINT uq_rates_model_effective_from UNIQUE (model, effective_from),
    CONSTRAINT ck_rates_price CHECK (micros_per_card_hour > 0)
);

CREATE TABLE usage_mismatches (
    id UUID NOT NULL,
    record_id TEXT NOT NULL,
    problem TEXT NOT NULL,
    content JSONB NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_usage_mismatches PRIMARY KEY (id)
);

CREATE TABLE usage_records (
    id UUID NOT NULL,
    job_id UUID NOT NULL,
    run_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    k BIGINT NOT NULL,
    node TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    model TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    duration_ms BIGINT NOT NULL,
    slot_ms BIGINT NOT NULL,
    busy_ms BIGINT NOT NULL,
    final BOOLEAN NOT NULL,
    content_sha256 TEXT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_usage_records PRIMARY KEY (id),
    CONSTRAINT uq_usage_records_job_id_attempt_rank_k UNIQUE (job_id, attempt, rank, k),
    CONSTRAINT ck_usage_records_not_negative CHECK (k >= 0 AND duration_ms >= 0 AND slot_ms >= 0)
);

CREATE INDEX ix_usage_records_received_at ON usage_records USING brin (received_at);

CREATE TABLE usage_totals (
    job_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    model TEXT NOT NULL,
    slot_ms BIGINT NOT NULL,
    CONSTRAINT pk_usage_totals PRIMARY KEY (job_id, attempt),
    CONSTRAINT ck_usage_totals_not_negative CHECK (slot_ms >= 0)
);

CREATE TABLE job_funded_time (
    job_id UUID NOT NULL,
    model TEXT NOT NULL,
    slot_ms BIGINT NOT NULL,
    CONSTRAINT pk_job_funded_time PRIMARY KEY (job_id, model),
    CONSTRAINT fk_job_funded_time_job_id FOREIGN KEY(job_id) REFERENCES job_funding (job_id),
    CONSTRAINT ck_job_funded_time_not_negative CHECK (slot_ms >= 0)
);

CREATE TABLE charges (
    id UUID NOT NULL,
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    n BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    rate_id UUID NOT NULL,
    slot_ms BIGINT NOT NULL,
    amount_micros BIGINT NOT NULL,
    voucher_micros BIGINT NOT NULL,
    tenant_micros BIGINT NOT NULL,
    rounding_micros BIGINT NOT NULL,
    forgone_micros BIGINT NOT NULL,
    charged_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_charges PRIMARY KEY (id),
    CONSTRAINT uq_charges_job_id_n UNIQUE (job_id, n),
    CONSTRAINT ck_charges_amount CHECK (amount_micros >= 0 AND forgone_micros >= 0 AND slot_ms > 0),
    CONSTRAINT ck_charges_parts CHECK (amount_micros = voucher_micros + tenant_micros + rounding_micros),
    CONSTRAINT fk_charges_rate_id FOREIGN KEY(rate_id) REFERENCES rates (id)
);

CREATE TABLE lost_attempts (
    job_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    reason TEXT NOT NULL,
    restored_micros BIGINT NOT NULL,
    refused TEXT NOT NULL,
    restored_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_lost_attempts PRIMARY KEY (job_id, attempt),
    CONSTRAINT ck_lost_attempts_restored CHECK (restored_micros >= 0)
);
CREATE INDEX ix_charges_charged_at ON charges USING brin (charged_at);

CREATE TABLE uncharged_usage (
    record_id UUID NOT NULL,
    job_id UUID NOT NULL,
    CONSTRAINT pk_uncharged_usage PRIMARY KEY (record_id),
    CONSTRAINT fk_uncharged_usage_record_id FOREIGN KEY(record_id) REFERENCES usage_records (id)
);

CREATE INDEX ix_uncharged_usage_job_id ON uncharged_usage (job_id);

CREATE TABLE charged_usage (
    record_id UUID NOT NULL,
    charge_id UUID NOT NULL,
    CONSTRAINT pk_charged_usage PRIMARY KEY (record_id),
    CONSTRAINT fk_charged_usage_record_id FOREIGN KEY(record_id) REFERENCES usage_records (id),
    CONSTRAINT fk_charged_usage_charge_id FOREIGN KEY(charge_id) REFERENCES charges (id)
);

CREATE TABLE ledger_audits (
    id UUID NOT NULL,
    audited_at TIMESTAMP WITH TIME ZONE NOT NULL,
    duration_ms BIGINT NOT NULL,
    accounts BIGINT NOT NULL,
    transfers BIGINT NOT NULL,
    differences BIGINT NOT NULL,
    explanations TEXT[] NOT NULL,
    CONSTRAINT pk_ledger_audits PRIMARY KEY (id),
    CONSTRAINT ck_ledger_audits_not_negative CHECK (differences >= 0 AND duration_ms >= 0)
);

CREATE INDEX ix_ledger_audits_audited_at ON ledger_audits (audited_at);

GRANT SELECT, INSERT ON ledger_audits TO hub_app;
GRANT SELECT, INSERT ON api_keys, idempotency_keys, usage_records, usage_mismatches TO hub_app;
GRANT UPDATE (revoked_at) ON api_keys TO hub_app;
GRANT SELECT, INSERT ON rates, charges, charged_usage, lost_attempts TO hub_app;
GRANT SELECT, INSERT, DELETE ON uncharged_usage TO hub_app;
GRANT SELECT, INSERT, UPDATE ON job_funding, job_funded_time, usage_totals TO hub_app;
