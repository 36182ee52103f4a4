-- The tables of vouchers, and what the application may do with them: add rows, and move states and cursors.

CREATE TABLE controllers (
    controlled TEXT NOT NULL,
    version BIGINT NOT NULL,
    controller TEXT NOT NULL,
    reason TEXT NOT NULL,
    recorded_by TEXT NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    CONSTRAINT pk_controllers PRIMARY KEY (controlled, version),
    CONSTRAINT ck_controllers_not_itself CHECK (controlled <> controller),
    CONSTRAINT ck_controllers_version CHECK (version > 0)
);

CREATE UNIQUE INDEX uq_controllers_in_force ON controllers (controlled) WHERE ended_at IS NULL;

CREATE INDEX ix_controllers_controller ON controllers (controller);

-- What is in force of control is a forest, whoever writes and however many at once.
CREATE FUNCTION controllers_refuse_cycle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('controllers'));
    IF EXISTS (
        WITH RECURSIVE chain(party) AS (
            SELECT NEW.controller
            UNION
            SELECT c.controller FROM controllers c JOIN chain ON c.controlled = chain.party
            WHERE c.ended_at IS NULL
        )
        SELECT FROM chain WHERE party = NEW.controlled
    ) THEN
        RAISE EXCEPTION '% controls % already', NEW.controlled, NEW.controller
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_controllers_forest';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER controllers_are_a_forest BEFORE INSERT OR UPDATE ON controllers
    FOR EACH ROW WHEN (NEW.ended_at IS NULL) EXECUTE FUNCTION controllers_refuse_cycle();

CREATE TABLE enterprises (
    id UUID NOT NULL,
    credit_code TEXT NOT NULL,
    version BIGINT NOT NULL,
    registered_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_enterprises PRIMARY KEY (id),
    CONSTRAINT uq_enterprises_credit_code UNIQUE (credit_code)
);

-- Dated facts: a change is one more version, and the enterprise says which of them is in force.
CREATE TABLE enterprise_versions (
    enterprise_id UUID NOT NULL,
    version BIGINT NOT NULL,
    name TEXT NOT NULL,
    region TEXT NOT NULL,
    industry TEXT NOT NULL,
    size_class TEXT NOT NULL,
    yearly_contract_micros BIGINT NOT NULL,
    clean_years BIGINT NOT NULL,
    dishonest BOOLEAN NOT NULL,
    roles JSONB NOT NULL,
    reason TEXT NOT NULL,
    recorded_by TEXT NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_enterprise_versions PRIMARY KEY (enterprise_id, version),
    CONSTRAINT ck_enterprise_versions_version CHECK (version > 0),
    CONSTRAINT ck_enterprise_versions_yearly_contract CHECK (yearly_contract_micros >= 0),
    CONSTRAINT ck_enterprise_versions_clean_years CHECK (clean_years >= 0),
    CONSTRAINT fk_enterprise_versions_enterprise_id FOREIGN KEY(enterprise_id) REFERENCES enterprises (id)
);

ALTER TABLE enterprises ADD CONSTRAINT fk_enterprises_version FOREIGN KEY (id, version)
    REFERENCES enterprise_versions (enterprise_id, version) DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE programmes (
    slug TEXT NOT NULL,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    asset TEXT NOT NULL,
    first_published_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_programmes PRIMARY KEY (slug),
    CONSTRAINT uq_programmes_number UNIQUE (number)
);

CREATE TABLE related_parties (
    one TEXT NOT NULL,
    other TEXT NOT NULL,
    reason TEXT NOT NULL,
    recorded_by TEXT NOT NULL,
    recorded_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_related_parties PRIMARY KEY (one, other),
    CONSTRAINT ck_related_parties_in_order CHECK (one < other)
);

CREATE INDEX ix_related_parties_other ON related_parties (other);

CREATE TABLE claims (
    id UUID NOT NULL,
    slug TEXT NOT NULL,
    period TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    claimant_id UUID,
    asset TEXT NOT NULL,
    amount BIGINT NOT NULL,
    state TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_at TIMESTAMPTZ NOT NULL,
    first_reviewer TEXT,
    approver TEXT,
    approved BIGINT,
    disbursed BIGINT,
    from_reserve BIGINT,
    bank_reference TEXT,
    sample_seed TEXT,
    evidence JSONB NOT NULL,
    CONSTRAINT pk_claims PRIMARY KEY (id),
    CONSTRAINT ck_claims_state CHECK (state IN ('submitted','checked','reviewed','approved','rejected','disbursed','reconciled')),
    CONSTRAINT ck_claims_amount CHECK (amount > 0),
    CONSTRAINT ck_claims_approved CHECK (approved BETWEEN 0 AND amount),
    CONSTRAINT ck_claims_disbursed CHECK (disbursed BETWEEN 0 AND approved),
    CONSTRAINT ck_claims_from_reserve CHECK (from_reserve BETWEEN 0 AND disbursed),
    CONSTRAINT ck_claims_two_people CHECK (first_reviewer <> approver),
    CONSTRAINT ck_claims_review_order CHECK (approver IS NULL OR first_reviewer IS NOT NULL),
    CONSTRAINT ck_claims_approval CHECK (state NOT IN ('approved','disbursed','reconciled') OR approver IS NOT NULL),
    CONSTRAINT fk_claims_slug FOREIGN KEY(slug) REFERENCES programmes (slug),
    CONSTRAINT fk_claims_claimant_id FOREIGN KEY(claimant_id) REFERENCES enterprises (id),
    CONSTRAINT uq_claims_bank_reference UNIQUE (bank_reference)
);

CREATE UNIQUE INDEX uq_claims_sequence ON claims (slug, period, claimant_id, sequence) NULLS NOT DISTINCT;

CREATE TABLE group_members (
    affiliate_id UUID NOT NULL,
    payer_id UUID NOT NULL,
    place BIGINT NOT NULL,
    bound_by TEXT NOT NULL,
    bound_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_group_members PRIMARY KEY (affiliate_id),
    CONSTRAINT uq_group_members_payer_id_place UNIQUE (payer_id, place),
    CONSTRAINT ck_group_members_place CHECK (place BETWEEN 1 AND 6),
    CONSTRAINT ck_group_members_not_itself CHECK (affiliate_id <> payer_id),
    CONSTRAINT fk_group_members_affiliate_id FOREIGN KEY(affiliate_id) REFERENCES enterprises (id),
    CONSTRAINT fk_group_members_payer_id FOREIGN KEY(payer_id) REFERENCES enterprises (id)
);

CREATE TABLE job_holds (
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    opened_at TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL,
    given_back BIGINT NOT NULL,
    CONSTRAINT pk_job_holds PRIMARY KEY (job_id),
    CONSTRAINT ck_job_holds_state CHECK (state IN ('open','released')),
    CONSTRAINT ck_job_holds_given_back CHECK (given_back >= 0),
    CONSTRAINT fk_job_holds_tenant_id FOREIGN KEY(tenant_id) REFERENCES enterprises (id)
);

CREATE INDEX ix_job_holds_tenant_id ON job_holds (tenant_id);

CREATE TABLE programme_versions (
    id UUID NOT NULL,
    slug TEXT NOT NULL,
    programme_number BIGINT NOT NULL,
    version BIGINT NOT NULL,
    effective_from DATE NOT NULL,
    effective_until DATE,
    document JSONB NOT NULL,
    digest TEXT NOT NULL,
    published_by TEXT NOT NULL,
    published_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_programme_versions PRIMARY KEY (id),
    CONSTRAINT uq_programme_versions_slug_version UNIQUE (slug, version),
    CONSTRAINT ck_programme_versions_effective CHECK (effective_until IS NULL OR effective_until >= effective_from),
    CONSTRAINT fk_programme_versions_slug FOREIGN KEY(slug) REFERENCES programmes (slug),
    -- Ranges need no extension: two versions of one programme may not be in force on the same day.
    CONSTRAINT ex_programme_versions_overlap EXCLUDE USING gist (
        int8range(programme_number, programme_number, '[]') WITH &&,
        daterange(effective_from, effective_until, '[]') WITH &&
    )
);

CREATE TABLE project_budgets (
    id UUID NOT NULL,
    enterprise_id UUID NOT NULL,
    project TEXT NOT NULL,
    starts_at TIMESTAMPTZ NOT NULL,
    ends_at TIMESTAMPTZ NOT NULL,
    set_by TEXT NOT NULL,
    CONSTRAINT pk_project_budgets PRIMARY KEY (id),
    CONSTRAINT uq_project_budgets_enterprise_id_project_starts_at UNIQUE (enterprise_id, project, starts_at),
    CONSTRAINT ck_project_budgets_dates CHECK (ends_at > starts_at),
    CONSTRAINT fk_project_budgets_enterprise_id FOREIGN KEY(enterprise_id) REFERENCES enterprises (id)
);

CREATE TABLE reserve_advances (
    id UUID NOT NULL,
    slug TEXT NOT NULL,
    reference TEXT NOT NULL,
    amount BIGINT NOT NULL,
    advanced_by TEXT NOT NULL,
    advanced_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_reserve_advances PRIMARY KEY (id),
    CONSTRAINT uq_reserve_advances_slug_reference UNIQUE (slug, reference),
    CONSTRAINT ck_reserve_advances_amount CHECK (amount > 0),
    CONSTRAINT fk_reserve_advances_slug FOREIGN KEY(slug) REFERENCES programmes (slug)
);

CREATE TABLE rounds (
    id UUID NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    opens_at TIMESTAMPTZ NOT NULL,
    cut_off_at TIMESTAMPTZ NOT NULL,
    opened_by TEXT NOT NULL,
    CONSTRAINT pk_rounds PRIMARY KEY (id),
    CONSTRAINT uq_rounds_slug_name UNIQUE (slug, name),
    CONSTRAINT ck_rounds_dates CHECK (cut_off_at > opens_at),
    CONSTRAINT fk_rounds_slug FOREIGN KEY(slug) REFERENCES programmes (slug)
);

CREATE INDEX ix_rounds_slug ON rounds (slug);

CREATE TABLE applications (
    id UUID NOT NULL,
    version_id UUID NOT NULL,
    enterprise_id UUID NOT NULL,
    round_id UUID,
    requested BIGINT NOT NULL,
    contract JSONB NOT NULL,
    state TEXT NOT NULL,
    revision BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    submitted_at TIMESTAMPTZ,
    first_reviewer TEXT,
    approver TEXT,
    granted BIGINT,
    notice_ends_at TIMESTAMPTZ,
    CONSTRAINT pk_applications PRIMARY KEY (id),
    CONSTRAINT ck_applications_state CHECK (state IN ('draft','submitted','revision','reviewed','approved','issued','rejected','withdrawn')),
    CONSTRAINT ck_applications_requested CHECK (requested > 0),
    CONSTRAINT ck_applications_granted CHECK (granted > 0 AND granted <= requested),
    CONSTRAINT ck_applications_two_people CHECK (first_reviewer <> approver),
    CONSTRAINT ck_applications_review_order CHECK (approver IS NULL OR first_reviewer IS NOT NULL),
    CONSTRAINT ck_applications_approved CHECK (state NOT IN ('approved','issued') OR approver IS NOT NULL),
    CONSTRAINT fk_applications_version_id FOREIGN KEY(version_id) REFERENCES programme_versions (id),
    CONSTRAINT fk_applications_enterprise_id FOREIGN KEY(enterprise_id) REFERENCES enterprises (id),
    CONSTRAINT fk_applications_round_id FOREIGN KEY(round_id) REFERENCES rounds (id)
);

CREATE INDEX ix_applications_enterprise_id ON applications (enterprise_id);

CREATE INDEX ix_applications_version_id ON applications (version_id);

CREATE TABLE appropriations (
    id UUID NOT NULL,
    slug TEXT NOT NULL,
    cycle TEXT NOT NULL,
    version_id UUID NOT NULL,
    amount BIGINT NOT NULL,
    appropriated_by TEXT NOT NULL,
    appropriated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_appropriations PRIMARY KEY (id),
    CONSTRAINT uq_appropriations_slug_cycle_version_id UNIQUE (slug, cycle, version_id),
    CONSTRAINT ck_appropriations_amount CHECK (amount > 0),
    CONSTRAINT fk_appropriations_slug FOREIGN KEY(slug) REFERENCES programmes (slug),
    CONSTRAINT fk_appropriations_version_id FOREIGN KEY(version_id) REFERENCES programme_versions (id)
);

CREATE INDEX ix_appropriations_slug ON appropriations (slug);

CREATE TABLE cycle_closings (
    id UUID NOT NULL,
    slug TEXT NOT NULL,
    cycle TEXT NOT NULL,
    number BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    carried_to TEXT,
    closed_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_cycle_closings PRIMARY KEY (id),
    CONSTRAINT uq_cycle_closings_slug_cycle_number UNIQUE (slug, cycle, number),
    CONSTRAINT ck_cycle_closings_amount CHECK (amount > 0),
    CONSTRAINT ck_cycle_closings_carried CHECK (carried_to <> cycle),
    CONSTRAINT fk_cycle_closings_slug FOREIGN KEY(slug) REFERENCES programmes (slug)
);

CREATE TABLE claim_steps (
    claim_id UUID NOT NULL,
    number BIGINT NOT NULL,
    step TEXT NOT NULL,
    actor TEXT NOT NULL,
    facts JSONB NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_claim_steps PRIMARY KEY (claim_id, number),
    CONSTRAINT fk_claim_steps_claim_id FOREIGN KEY(claim_id) REFERENCES claims (id)
);

CREATE TABLE covered_charges (
    charge_id UUID NOT NULL,
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    cost_micros BIGINT NOT NULL,
    card_ms BIGINT NOT NULL,
    facts JSONB NOT NULL,
    used_until TIMESTAMPTZ NOT NULL,
    captured_at TIMESTAMPTZ NOT NULL,
    restored_micros BIGINT NOT NULL,
    restored_ms BIGINT NOT NULL,
    CONSTRAINT pk_covered_charges PRIMARY KEY (charge_id),
    CONSTRAINT ck_covered_charges_restored CHECK (restored_micros BETWEEN 0 AND cost_micros),
    CONSTRAINT ck_covered_charges_restored_time CHECK (restored_ms BETWEEN 0 AND card_ms),
    CONSTRAINT fk_covered_charges_job_id FOREIGN KEY(job_id) REFERENCES job_holds (job_id)
);

CREATE INDEX ix_covered_charges_job_id ON covered_charges (job_id);

CREATE TABLE charge_stretches (
    charge_id UUID NOT NULL,
    segment BIGINT NOT NULL,
    from_micros BIGINT NOT NULL,
    until_micros BIGINT NOT NULL,
    from_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,
    CONSTRAINT pk_charge_stretches PRIMARY KEY (charge_id, segment),
    CONSTRAINT ck_charge_stretches_cost CHECK (0 <= from_micros AND from_micros < until_micros),
    CONSTRAINT ck_charge_stretches_time CHECK (0 <= from_ms AND from_ms <= until_ms),
    CONSTRAINT fk_charge_stretches_charge_id FOREIGN KEY(charge_id) REFERENCES covered_charges (charge_id)
);

CREATE TABLE hold_segments (
    job_id UUID NOT NULL,
    segment BIGINT NOT NULL,
    cost_micros BIGINT NOT NULL,
    card_ms BIGINT NOT NULL,
    facts JSONB NOT NULL,
    asked_vouchers JSONB,
    plan JSONB NOT NULL,
    serves_until TIMESTAMPTZ,
    placed_at TIMESTAMPTZ NOT NULL,
    captured_micros BIGINT NOT NULL,
    captured_ms BIGINT NOT NULL,
    CONSTRAINT pk_hold_segments PRIMARY KEY (job_id, segment),
    CONSTRAINT ck_hold_segments_cost CHECK (cost_micros > 0 AND card_ms >= 0),
    CONSTRAINT ck_hold_segments_captured CHECK (captured_micros BETWEEN 0 AND cost_micros),
    CONSTRAINT fk_hold_segments_job_id FOREIGN KEY(job_id) REFERENCES job_holds (job_id)
);

CREATE TABLE application_checks (
    application_id UUID NOT NULL,
    revision BIGINT NOT NULL,
    rule TEXT NOT NULL,
    verdict TEXT NOT NULL,
    clause TEXT NOT NULL,
    facts JSONB NOT NULL,
    checked_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_application_checks PRIMARY KEY (application_id, revision, rule),
    CONSTRAINT ck_application_checks_verdict CHECK (verdict IN ('pass','fail','look')),
    CONSTRAINT fk_application_checks_application_id FOREIGN KEY(application_id) REFERENCES applications (id)
);

CREATE TABLE application_steps (
    application_id UUID NOT NULL,
    number BIGINT NOT NULL,
    step TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_application_steps PRIMARY KEY (application_id, number),
    CONSTRAINT fk_application_steps_application_id FOREIGN KEY(application_id) REFERENCES applications (id)
);

CREATE TABLE objections (
    id UUID NOT NULL,
    application_id UUID NOT NULL,
    raised_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    raised_at TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL,
    resolved_by TEXT,
    resolution TEXT,
    CONSTRAINT pk_objections PRIMARY KEY (id),
    CONSTRAINT ck_objections_state CHECK (state IN ('open','dismissed','upheld')),
    CONSTRAINT ck_objections_resolved CHECK ((state = 'open') = (resolved_by IS NULL)),
    CONSTRAINT fk_objections_application_id FOREIGN KEY(application_id) REFERENCES applications (id)
);

CREATE INDEX ix_objections_application_id ON objections (application_id);

CREATE TABLE vouchers (
    id UUID NOT NULL,
    number TEXT NOT NULL,
    version_id UUID NOT NULL,
    slug TEXT NOT NULL,
    enterprise_id UUID NOT NULL,
    application_id UUID NOT NULL,
    tranche BIGINT NOT NULL,
    asset TEXT NOT NULL,
    face BIGINT NOT NULL,
    cycle TEXT NOT NULL,
    cap_year BIGINT NOT NULL,
    controller TEXT NOT NULL,
    holder JSONB NOT NULL,
    issued_on TEXT NOT NULL,
    issued_by TEXT NOT NULL,
    issued_at TIMESTAMPTZ NOT NULL,
    use_by_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    state TEXT NOT NULL,
    ended_at TIMESTAMPTZ,
    ended_by TEXT,
    ended_reason TEXT,
    CONSTRAINT pk_vouchers PRIMARY KEY (id),
    CONSTRAINT uq_vouchers_application_id_tranche UNIQUE (application_id, tranche),
    CONSTRAINT ck_vouchers_face CHECK (face > 0),
    CONSTRAINT ck_vouchers_validity CHECK (issued_at < use_by_at AND use_by_at <= expires_at),
    CONSTRAINT ck_vouchers_state CHECK (state IN ('active','expired','recalled')),
    CONSTRAINT ck_vouchers_ended CHECK ((state = 'active') = (ended_at IS NULL)),
    CONSTRAINT uq_vouchers_number UNIQUE (number),
    CONSTRAINT fk_vouchers_version_id FOREIGN KEY(version_id) REFERENCES programme_versions (id),
    CONSTRAINT fk_vouchers_slug FOREIGN KEY(slug) REFERENCES programmes (slug),
    CONSTRAINT fk_vouchers_enterprise_id FOREIGN KEY(enterprise_id) REFERENCES enterprises (id),
    CONSTRAINT fk_vouchers_application_id FOREIGN KEY(application_id) REFERENCES applications (id)
);

CREATE INDEX ix_vouchers_due ON vouchers (expires_at, id) WHERE state = 'active';

CREATE INDEX ix_vouchers_enterprise_id ON vouchers (enterprise_id);

CREATE INDEX ix_vouchers_slug_cycle ON vouchers (slug, cycle);

CREATE INDEX ix_vouchers_version_id ON vouchers (version_id);

CREATE TABLE coverage_lines (
    id UUID NOT NULL,
    charge_id UUID NOT NULL,
    line BIGINT NOT NULL,
    segment BIGINT NOT NULL,
    source TEXT NOT NULL,
    voucher_id UUID,
    version_id UUID,
    slug TEXT,
    payer_id UUID,
    direction TEXT NOT NULL,
    clause TEXT NOT NULL,
    sentence TEXT NOT NULL,
    amount_micros BIGINT NOT NULL,
    quantity BIGINT NOT NULL,
    asset TEXT NOT NULL,
    transfer_id UUID,
    used_until TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_coverage_lines PRIMARY KEY (id),
    CONSTRAINT uq_coverage_lines_charge_id_line UNIQUE (charge_id, line),
    CONSTRAINT ck_coverage_lines_source CHECK (source IN ('voucher','prepaid','credit','rounding')),
    CONSTRAINT ck_coverage_lines_amount CHECK (amount_micros >= 0 OR source = 'rounding'),
    CONSTRAINT ck_coverage_lines_quantity CHECK (quantity >= 0),
    CONSTRAINT fk_coverage_lines_charge_id FOREIGN KEY(charge_id) REFERENCES covered_charges (charge_id),
    CONSTRAINT fk_coverage_lines_voucher_id FOREIGN KEY(voucher_id) REFERENCES vouchers (id),
    CONSTRAINT fk_coverage_lines_version_id FOREIGN KEY(version_id) REFERENCES programme_versions (id)
);

CREATE INDEX ix_coverage_lines_claim ON coverage_lines (slug, used_until) WHERE voucher_id IS NOT NULL;

CREATE INDEX ix_coverage_lines_voucher_id ON coverage_lines (voucher_id);

CREATE TABLE hold_lines (
    job_id UUID NOT NULL,
    segment BIGINT NOT NULL,
    line BIGINT NOT NULL,
    source TEXT NOT NULL,
    voucher_id UUID,
    payer_id UUID,
    account_id UUID NOT NULL,
    held BIGINT NOT NULL,
    captured BIGINT NOT NULL,
    transfer_id UUID NOT NULL,
    CONSTRAINT pk_hold_lines PRIMARY KEY (job_id, segment, line),
    CONSTRAINT ck_hold_lines_source CHECK (source IN ('voucher','prepaid','credit','budget')),
    CONSTRAINT ck_hold_lines_captured CHECK (captured BETWEEN 0 AND held),
    CONSTRAINT ck_hold_lines_voucher CHECK ((source = 'voucher') = (voucher_id IS NOT NULL)),
    CONSTRAINT fk_hold_lines_voucher_id FOREIGN KEY(voucher_id) REFERENCES vouchers (id),
    CONSTRAINT fk_hold_lines_payer_id FOREIGN KEY(payer_id) REFERENCES enterprises (id),
    CONSTRAINT uq_hold_lines_transfer_id UNIQUE (transfer_id)
);

CREATE INDEX ix_hold_lines_voucher_id ON hold_lines (voucher_id);

CREATE TABLE voucher_parts (
    voucher_id UUID NOT NULL,
    project TEXT NOT NULL,
    opened_by TEXT NOT NULL,
    opened_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_voucher_parts PRIMARY KEY (voucher_id, project),
    CONSTRAINT fk_voucher_parts_voucher_id FOREIGN KEY(voucher_id) REFERENCES vouchers (id)
);

CREATE TABLE claim_lines (
    claim_id UUID NOT NULL,
    line BIGINT NOT NULL,
    coverage_line_id UUID NOT NULL,
    amount BIGINT NOT NULL,
    sampled BOOLEAN NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    from_reserve BIGINT,
    CONSTRAINT pk_claim_lines PRIMARY KEY (claim_id, line),
    CONSTRAINT ck_claim_lines_state CHECK (state IN ('claimed','disputed','rejected','approved','clawed_back','restored')),
    CONSTRAINT ck_claim_lines_amount CHECK (amount > 0),
    CONSTRAINT ck_claim_lines_from_reserve CHECK (from_reserve BETWEEN 0 AND amount),
    CONSTRAINT fk_claim_lines_claim_id FOREIGN KEY(claim_id) REFERENCES claims (id),
    CONSTRAINT fk_claim_lines_coverage_line_id FOREIGN KEY(coverage_line_id) REFERENCES coverage_lines (id)
);

CREATE UNIQUE INDEX uq_claim_lines_coverage_line_id ON claim_lines (coverage_line_id) WHERE state NOT IN ('disputed','restored');

CREATE TABLE restorations (
    id UUID NOT NULL,
    line_id UUID NOT NULL,
    number BIGINT NOT NULL,
    reason TEXT NOT NULL,
    kind TEXT NOT NULL,
    amount_micros BIGINT NOT NULL,
    quantity BIGINT NOT NULL,
    transfer_id UUID,
    restored_by TEXT NOT NULL,
    restored_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_restorations PRIMARY KEY (id),
    CONSTRAINT uq_restorations_line_id_number UNIQUE (line_id, number),
    CONSTRAINT ck_restorations_kind CHECK (kind IN ('restored','clawed_back')),
    CONSTRAINT ck_restorations_amount CHECK (amount_micros >= 0 AND quantity >= 0),
    CONSTRAINT ck_restorations_moved CHECK ((quantity > 0) = (transfer_id IS NOT NULL)),
    CONSTRAINT fk_restorations_line_id FOREIGN KEY(line_id) REFERENCES coverage_lines (id),
    CONSTRAINT uq_restorations_transfer_id UNIQUE (transfer_id)
);

GRANT SELECT, INSERT ON
    application_checks, application_steps, applications, appropriations, charge_stretches, claim_lines,
    claim_steps, claims, controllers, coverage_lines, covered_charges, cycle_closings, enterprise_versions,
    enterprises, group_members,
    hold_lines, hold_segments, job_holds, objections, programme_versions, programmes,
    project_budgets, related_parties, reserve_advances, restorations, rounds, voucher_parts,
    vouchers
TO hub_app;

GRANT UPDATE (version) ON enterprises TO hub_app;
GRANT UPDATE (ended_at) ON controllers TO hub_app;
GRANT UPDATE (first_published_at) ON programmes TO hub_app;
GRANT UPDATE (effective_until) ON programme_versions TO hub_app;
GRANT UPDATE (version_id, requested, contract, state, revision, submitted_at, first_reviewer, approver, granted, notice_ends_at) ON applications TO hub_app;
GRANT UPDATE (state, resolved_by, resolution) ON objections TO hub_app;
GRANT UPDATE (state, ended_at, ended_by, ended_reason) ON vouchers TO hub_app;
GRANT UPDATE (state, given_back) ON job_holds TO hub_app;
GRANT UPDATE (restored_micros, restored_ms) ON covered_charges TO hub_app;
GRANT UPDATE (captured_micros, captured_ms) ON hold_segments TO hub_app;
GRANT UPDATE (captured) ON hold_lines TO hub_app;
GRANT UPDATE (state, first_reviewer, approver, approved, disbursed, from_reserve, bank_reference, sample_seed) ON claims TO hub_app;
GRANT UPDATE (state, reason, sampled, from_reserve) ON claim_lines TO hub_app;

GRANT DELETE ON group_members TO hub_app;
