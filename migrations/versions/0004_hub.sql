-- Identity, usage, rates and charges. Usage, rates and charges are only ever added; a queue of work loses what is done.

CREATE TABLE api_keys (
    id UUID NOT NULL,
    key_sha256 BYTEA NOT NULL,
    principal_id UUID NOT NULL,
    principal_name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant_id UUID,
    authority TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT ck_api_keys_role CHECK (role IN ('authority', 'first_reviewer', 'approver', 'operator', 'tenant', 'auditor')),
    CONSTRAINT ck_api_keys_tenant CHECK ((role = 'tenant') = (tenant_id IS NOT NULL)),
    CONSTRAINT ck_api_keys_authority CHECK (authority IS NULL OR role IN ('authority', 'first_reviewer', 'approver')),
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
    project TEXT,
    state TEXT NOT NULL,
    model TEXT,
    held_micros BIGINT NOT NULL,
    held_slot_ms BIGINT NOT NULL,
    funded_at TIMESTAMP WITH TIME ZONE,
    rated_units NUMERIC(40, 0) NOT NULL,
    charges BIGINT NOT NULL,
    CONSTRAINT pk_job_funding PRIMARY KEY (job_id),
    CONSTRAINT ck_job_funding_not_negative CHECK (held_micros >= 0 AND held_slot_ms >= 0 AND charges >= 0),
    CONSTRAINT ck_job_funding_state CHECK (state IN ('pending', 'held', 'waiting', 'ended', 'released'))
);

CREATE INDEX ix_job_funding_state ON job_funding (state);

CREATE TABLE rates (
    id UUID NOT NULL,
    tenant_id UUID,
    agreement TEXT,
    model TEXT NOT NULL,
    micros_per_card_hour BIGINT NOT NULL,
    terms JSONB NOT NULL,
    effective_from TIMESTAMP WITH TIME ZONE NOT NULL,
    effective_until TIMESTAMP WITH TIME ZONE,
    changes_running BOOLEAN NOT NULL,
    reason TEXT NOT NULL,
    set_by UUID NOT NULL,
    set_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_rates PRIMARY KEY (id),
    CONSTRAINT uq_rates_tenant_id_model_effective_from UNIQUE NULLS NOT DISTINCT (tenant_id, model, effective_from),
    CONSTRAINT ck_rates_price CHECK (micros_per_card_hour > 0),
    CONSTRAINT ck_rates_not_past CHECK (effective_from >= set_at),
    CONSTRAINT ck_rates_period CHECK (effective_until > effective_from),
    CONSTRAINT ck_rates_agreement CHECK ((tenant_id IS NULL) = (agreement IS NULL))
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
    offset_ms BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    slot_ms BIGINT NOT NULL,
    busy_ms BIGINT NOT NULL,
    memory_bytes_max BIGINT NOT NULL,
    device_memory_bytes_max BIGINT,
    energy_mj BIGINT,
    energy_basis TEXT,
    final BOOLEAN NOT NULL,
    content_sha256 TEXT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_usage_records PRIMARY KEY (id),
    CONSTRAINT uq_usage_records_job_id_attempt_rank_k UNIQUE (job_id, attempt, rank, k),
    CONSTRAINT ck_usage_records_not_negative CHECK (k >= 0 AND offset_ms >= 0 AND duration_ms >= 0 AND slot_ms >= 0),
    CONSTRAINT ck_usage_records_energy CHECK ((energy_mj IS NULL) = (energy_basis IS NULL)),
    CONSTRAINT ck_usage_records_energy_basis CHECK (energy_basis IN ('measured', 'estimated'))
);

CREATE TABLE gap_cases (
    job_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    first_missing_k BIGINT NOT NULL,
    kind TEXT NOT NULL,
    opened_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_gap_cases PRIMARY KEY (job_id, attempt, rank, first_missing_k),
    CONSTRAINT ck_gap_cases_kind CHECK (kind IN ('missing_record', 'no_final_record'))
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
    model TEXT NOT NULL,
    month TEXT NOT NULL,
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
    CONSTRAINT ck_charges_parts CHECK (amount_micros = voucher_micros + tenant_micros + rounding_micros)
);

CREATE INDEX ix_charges_tenant_id_month ON charges (tenant_id, month);

CREATE TABLE charge_lines (
    charge_id UUID NOT NULL,
    line BIGINT NOT NULL,
    rate_id UUID NOT NULL,
    time_window TEXT NOT NULL,
    from_slot_ms BIGINT NOT NULL,
    price_micros BIGINT NOT NULL,
    slot_ms BIGINT NOT NULL,
    cost_micros BIGINT NOT NULL,
    CONSTRAINT pk_charge_lines PRIMARY KEY (charge_id, line),
    CONSTRAINT ck_charge_lines_positive CHECK (slot_ms > 0 AND cost_micros >= 0 AND price_micros > 0),
    CONSTRAINT fk_charge_lines_charge_id FOREIGN KEY(charge_id) REFERENCES charges (id),
    CONSTRAINT fk_charge_lines_rate_id FOREIGN KEY(rate_id) REFERENCES rates (id)
);

CREATE TABLE tenant_volumes (
    tenant_id UUID NOT NULL,
    model TEXT NOT NULL,
    month TEXT NOT NULL,
    slot_ms BIGINT NOT NULL,
    CONSTRAINT pk_tenant_volumes PRIMARY KEY (tenant_id, model, month),
    CONSTRAINT ck_tenant_volumes_not_negative CHECK (slot_ms >= 0)
);

CREATE TABLE charge_corrections (
    charge_id UUID NOT NULL,
    replacement_id UUID NOT NULL,
    rate_id UUID NOT NULL,
    reason TEXT NOT NULL,
    corrected_by UUID NOT NULL,
    corrected_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_charge_corrections PRIMARY KEY (charge_id),
    CONSTRAINT ck_charge_corrections_reason CHECK (length(reason) > 0),
    CONSTRAINT uq_charge_corrections_replacement_id UNIQUE (replacement_id),
    CONSTRAINT fk_charge_corrections_charge_id FOREIGN KEY(charge_id) REFERENCES charges (id),
    CONSTRAINT fk_charge_corrections_replacement_id FOREIGN KEY(replacement_id) REFERENCES charges (id),
    CONSTRAINT fk_charge_corrections_rate_id FOREIGN KEY(rate_id) REFERENCES rates (id)
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
    job_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    k BIGINT NOT NULL,
    CONSTRAINT pk_uncharged_usage PRIMARY KEY (job_id, attempt, rank, k),
    CONSTRAINT fk_uncharged_usage_job_id_attempt_rank_k
        FOREIGN KEY(job_id, attempt, rank, k) REFERENCES usage_records (job_id, attempt, rank, k)
);

CREATE TABLE charged_usage (
    job_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    first_k BIGINT NOT NULL,
    until_k BIGINT NOT NULL,
    charge_id UUID NOT NULL,
    CONSTRAINT pk_charged_usage PRIMARY KEY (job_id, attempt, rank, first_k),
    CONSTRAINT ck_charged_usage_range CHECK (first_k >= 0 AND until_k > first_k),
    CONSTRAINT fk_charged_usage_charge_id FOREIGN KEY(charge_id) REFERENCES charges (id)
);

CREATE INDEX ix_charged_usage_charge_id ON charged_usage (charge_id);

-- A record is charged once: no range of a run may reach into another one. Its neighbours alone can, and looking them up
-- costs the same however many ranges there are, where an exclusion constraint's index costs more with each.
CREATE FUNCTION charged_usage_refuse_overlap() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    twice RECORD;
BEGIN
    SELECT n.* INTO twice
      FROM added n
      LEFT JOIN LATERAL (
          SELECT c.until_k FROM charged_usage c
           WHERE c.job_id = n.job_id AND c.attempt = n.attempt AND c.rank = n.rank AND c.first_k < n.first_k
           ORDER BY c.first_k DESC LIMIT 1) before ON true
      LEFT JOIN LATERAL (
          SELECT c.first_k FROM charged_usage c
           WHERE c.job_id = n.job_id AND c.attempt = n.attempt AND c.rank = n.rank AND c.first_k > n.first_k
           ORDER BY c.first_k LIMIT 1) following ON true
     WHERE before.until_k > n.first_k OR following.first_k < n.until_k
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'records of job %, attempt %, rank % from % were charged before',
            twice.job_id, twice.attempt, twice.rank, twice.first_k USING ERRCODE = 'exclusion_violation';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER charged_usage_refuse_overlap AFTER INSERT ON charged_usage
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION charged_usage_refuse_overlap();

CREATE TABLE invoice_series (
    series TEXT NOT NULL,
    last BIGINT NOT NULL,
    CONSTRAINT pk_invoice_series PRIMARY KEY (series)
);

CREATE TABLE invoices (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    kind TEXT NOT NULL,
    series TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    number TEXT NOT NULL,
    month TEXT NOT NULL,
    refers_to UUID,
    buyer JSONB NOT NULL,
    gross_micros BIGINT NOT NULL,
    voucher_micros BIGINT NOT NULL,
    tenant_micros BIGINT NOT NULL,
    rounding_micros BIGINT NOT NULL,
    prepaid_micros BIGINT NOT NULL,
    credit_micros BIGINT NOT NULL,
    fen_micros BIGINT NOT NULL,
    payable_micros BIGINT NOT NULL,
    vat_ppm BIGINT NOT NULL,
    vat_micros BIGINT NOT NULL,
    reason TEXT NOT NULL,
    issued_by UUID NOT NULL,
    issued_at TIMESTAMP WITH TIME ZONE NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_invoices PRIMARY KEY (id),
    CONSTRAINT uq_invoices_series_sequence UNIQUE (series, sequence),
    CONSTRAINT uq_invoices_number UNIQUE (number),
    CONSTRAINT ck_invoices_kind CHECK (kind IN ('invoice', 'credit_note')),
    CONSTRAINT ck_invoices_refers CHECK ((kind = 'credit_note') = (refers_to IS NOT NULL)),
    CONSTRAINT ck_invoices_parts CHECK (gross_micros = voucher_micros + tenant_micros + rounding_micros),
    CONSTRAINT ck_invoices_sources CHECK (tenant_micros = prepaid_micros + credit_micros),
    CONSTRAINT ck_invoices_fen CHECK (payable_micros = tenant_micros + fen_micros AND mod(payable_micros, 10000) = 0 AND abs(fen_micros) <= 5000),
    CONSTRAINT ck_invoices_vat CHECK (mod(vat_micros, 10000) = 0 AND vat_micros BETWEEN 0 AND payable_micros),
    CONSTRAINT fk_invoices_refers_to FOREIGN KEY(refers_to) REFERENCES invoices (id)
);

CREATE UNIQUE INDEX uq_invoices_tenant_id_month ON invoices (tenant_id, month) WHERE kind = 'invoice';

CREATE TABLE invoice_lines (
    invoice_id UUID NOT NULL,
    line BIGINT NOT NULL,
    model TEXT NOT NULL,
    month TEXT NOT NULL,
    rate_id UUID NOT NULL,
    time_window TEXT NOT NULL,
    price_micros BIGINT NOT NULL,
    slot_ms BIGINT NOT NULL,
    amount_micros BIGINT NOT NULL,
    forgone_micros BIGINT NOT NULL,
    CONSTRAINT pk_invoice_lines PRIMARY KEY (invoice_id, line),
    CONSTRAINT ck_invoice_lines_amounts CHECK (slot_ms > 0 AND amount_micros >= 0 AND forgone_micros >= 0),
    CONSTRAINT fk_invoice_lines_invoice_id FOREIGN KEY(invoice_id) REFERENCES invoices (id),
    CONSTRAINT fk_invoice_lines_rate_id FOREIGN KEY(rate_id) REFERENCES rates (id)
);

CREATE TABLE invoice_debts (
    invoice_id UUID NOT NULL,
    payer_id UUID NOT NULL,
    micros BIGINT NOT NULL,
    CONSTRAINT pk_invoice_debts PRIMARY KEY (invoice_id, payer_id),
    CONSTRAINT ck_invoice_debts_micros CHECK (micros >= 0),
    CONSTRAINT fk_invoice_debts_invoice_id FOREIGN KEY(invoice_id) REFERENCES invoices (id)
);

CREATE INDEX ix_invoice_debts_payer_id ON invoice_debts (payer_id);

CREATE TABLE invoiced_charges (
    charge_id UUID NOT NULL,
    invoice_id UUID NOT NULL,
    restored_micros BIGINT NOT NULL,
    CONSTRAINT pk_invoiced_charges PRIMARY KEY (charge_id),
    CONSTRAINT ck_invoiced_charges_restored CHECK (restored_micros >= 0),
    CONSTRAINT fk_invoiced_charges_charge_id FOREIGN KEY(charge_id) REFERENCES charges (id),
    CONSTRAINT fk_invoiced_charges_invoice_id FOREIGN KEY(invoice_id) REFERENCES invoices (id)
);

CREATE INDEX ix_invoiced_charges_invoice_id ON invoiced_charges (invoice_id);

CREATE TABLE credited_charges (
    charge_id UUID NOT NULL,
    invoice_id UUID NOT NULL,
    restored_micros BIGINT NOT NULL,
    CONSTRAINT pk_credited_charges PRIMARY KEY (charge_id, invoice_id),
    CONSTRAINT ck_credited_charges_restored CHECK (restored_micros > 0),
    CONSTRAINT fk_credited_charges_charge_id FOREIGN KEY(charge_id) REFERENCES invoiced_charges (charge_id),
    CONSTRAINT fk_credited_charges_invoice_id FOREIGN KEY(invoice_id) REFERENCES invoices (id)
);

CREATE INDEX ix_credited_charges_invoice_id ON credited_charges (invoice_id);

CREATE TABLE settled_restorations (
    restoration_id UUID NOT NULL,
    invoice_id UUID NOT NULL,
    CONSTRAINT pk_settled_restorations PRIMARY KEY (restoration_id),
    CONSTRAINT fk_settled_restorations_restoration_id FOREIGN KEY(restoration_id) REFERENCES restorations (id),
    CONSTRAINT fk_settled_restorations_invoice_id FOREIGN KEY(invoice_id) REFERENCES invoices (id)
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

CREATE TABLE start_estimates (
    job_id UUID NOT NULL,
    estimated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    start_estimate_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    judged_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_start_estimates PRIMARY KEY (job_id),
    CONSTRAINT ck_start_estimates_judged CHECK ((started_at IS NULL) = (judged_at IS NULL))
);

CREATE INDEX ix_start_estimates_judged_at ON start_estimates (judged_at);

CREATE INDEX ix_ledger_audits_audited_at ON ledger_audits (audited_at);

CREATE TABLE alert_rules (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    kind TEXT NOT NULL,
    project TEXT,
    threshold_micros BIGINT NOT NULL,
    channel TEXT NOT NULL,
    target TEXT NOT NULL,
    crossed BOOLEAN NOT NULL,
    set_by UUID NOT NULL,
    set_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_alert_rules PRIMARY KEY (id),
    CONSTRAINT ck_alert_rules_kind CHECK (kind IN ('balance', 'spending', 'budget')),
    CONSTRAINT ck_alert_rules_project CHECK ((kind = 'budget') = (project IS NOT NULL)),
    CONSTRAINT ck_alert_rules_channel CHECK (channel IN ('webhook', 'email')),
    CONSTRAINT ck_alert_rules_threshold CHECK (threshold_micros >= 0)
);

CREATE TABLE alerts (
    id UUID NOT NULL,
    rule_id UUID NOT NULL,
    raised_at TIMESTAMP WITH TIME ZONE NOT NULL,
    sentence TEXT NOT NULL,
    tries BIGINT NOT NULL,
    failure TEXT NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_alerts PRIMARY KEY (id),
    CONSTRAINT fk_alerts_rule_id FOREIGN KEY(rule_id) REFERENCES alert_rules (id)
);

CREATE INDEX ix_alerts_waiting ON alerts (id) WHERE sent_at IS NULL;

GRANT SELECT, INSERT, UPDATE ON alert_rules, alerts TO hub_app;
GRANT SELECT, INSERT ON ledger_audits TO hub_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON start_estimates TO hub_app;
-- Volatile, so that its second statement sees what was committed while the first waited for the lock. Who is not
-- patient gets a row of nothing when somebody else holds it.
CREATE FUNCTION first_answer(lock bigint, patient boolean, principal uuid, asked_key text)
RETURNS TABLE (request_sha256 text, answer text)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
BEGIN
    IF patient THEN
        PERFORM pg_catalog.pg_advisory_xact_lock(lock);
    ELSIF NOT pg_catalog.pg_try_advisory_xact_lock(lock) THEN
        RETURN QUERY SELECT NULL::text, NULL::text;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT k.request_sha256, k.answer ->> 'json'
      FROM public.idempotency_keys AS k
     WHERE k.principal_id = principal AND k.key = asked_key;
END $$;
REVOKE ALL ON FUNCTION first_answer FROM PUBLIC;
GRANT EXECUTE ON FUNCTION first_answer TO hub_app;

GRANT SELECT, INSERT ON api_keys, idempotency_keys, usage_records, usage_mismatches, gap_cases TO hub_app;
GRANT UPDATE (revoked_at) ON api_keys TO hub_app;
GRANT SELECT, INSERT ON rates, charges, charge_lines, charge_corrections, charged_usage, lost_attempts TO hub_app;
GRANT SELECT, INSERT ON invoices, invoice_lines, invoice_debts, invoiced_charges, credited_charges, settled_restorations TO hub_app;
GRANT SELECT, INSERT, DELETE ON uncharged_usage TO hub_app;
GRANT SELECT, INSERT, UPDATE ON job_funding, job_funded_time, usage_totals, tenant_volumes, invoice_series TO hub_app;
