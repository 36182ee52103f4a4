-- The scheduler's tables, and what the application may do with them: jobs, runs and allocations are only ever added
-- and moved on.

CREATE TABLE jobs (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    submitted_by UUID NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    kind TEXT NOT NULL,
    argv TEXT[] NOT NULL,
    env JSONB NOT NULL,
    environment TEXT NOT NULL,
    upload_sha256 TEXT,
    models TEXT[] NOT NULL,
    node_count BIGINT NOT NULL,
    devices_per_node BIGINT NOT NULL,
    slots_milli BIGINT NOT NULL,
    cpu_milli BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    time_limit_ms BIGINT NOT NULL,
    grace_ms BIGINT NOT NULL,
    priority BIGINT NOT NULL,
    max_retries BIGINT NOT NULL,
    network TEXT NOT NULL,
    preemptible BOOLEAN NOT NULL,
    topology TEXT NOT NULL,
    min_pflops_milli BIGINT NOT NULL,
    not_before TIMESTAMP WITH TIME ZONE,
    depends_on UUID[] NOT NULL,
    array_id UUID,
    array_index BIGINT,
    array_size BIGINT NOT NULL,
    array_running_max BIGINT NOT NULL,
    held BOOLEAN NOT NULL,
    secrets TEXT[] NOT NULL,
    retry_on TEXT NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE,
    evictions BIGINT NOT NULL,
    evicted_for UUID,
    attained_ms BIGINT NOT NULL,
    lost_attempts BIGINT[] NOT NULL,
    revision BIGINT NOT NULL,
    traceparent TEXT NOT NULL,
    queued_at TIMESTAMP WITH TIME ZONE NOT NULL,
    attempt BIGINT NOT NULL,
    placed_at TIMESTAMP WITH TIME ZONE,
    started_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    exit_code BIGINT,
    end_reason TEXT,
    stop_reason TEXT,
    notice TEXT NOT NULL DEFAULT '',
    notice_signal BIGINT NOT NULL DEFAULT 0,
    files_removed_at TIMESTAMP WITH TIME ZONE,
    logs_removed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_jobs PRIMARY KEY (id),
    CONSTRAINT ck_jobs_state CHECK (state IN ('queued', 'starting', 'running', 'stopping', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT ck_jobs_ended CHECK ((ended_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))),
    CONSTRAINT ck_jobs_removed CHECK ((files_removed_at IS NULL OR ended_at IS NOT NULL) AND (logs_removed_at IS NULL OR files_removed_at IS NOT NULL)),
    CONSTRAINT ck_jobs_shape CHECK (node_count > 0 AND devices_per_node > 0),
    CONSTRAINT ck_jobs_slots CHECK (slots_milli BETWEEN 1 AND 1000),
    CONSTRAINT ck_jobs_topology CHECK (topology IN ('pack', 'same-switch', 'spread')),
    CONSTRAINT ck_jobs_retry_on CHECK (retry_on IN ('lost', 'failure')),
    CONSTRAINT ck_jobs_array CHECK ((array_id IS NULL) = (array_index IS NULL)),
    CONSTRAINT ck_jobs_own_dependency CHECK (NOT id = ANY (depends_on))
);

CREATE UNIQUE INDEX uq_jobs_array_id_array_index ON jobs (array_id, array_index) WHERE array_id IS NOT NULL;

-- By the states themselves: who asks for one of them says nothing of `ended_at`.
CREATE INDEX ix_jobs_live ON jobs (state) WHERE state IN ('queued', 'starting', 'running', 'stopping');

CREATE INDEX ix_jobs_live_tenant_id ON jobs (tenant_id) WHERE ended_at IS NULL;

CREATE INDEX ix_jobs_dependent ON jobs (id) WHERE state = 'queued' AND cardinality(depends_on) > 0;

CREATE INDEX ix_jobs_succeeded ON jobs (ended_at) WHERE state = 'succeeded';

CREATE INDEX ix_jobs_tenant_id_queued_at_id ON jobs (tenant_id, queued_at, id);

CREATE INDEX ix_jobs_ended_at ON jobs USING brin (ended_at);

CREATE TABLE nodes (
    name TEXT NOT NULL,
    host_id TEXT NOT NULL,
    state TEXT NOT NULL,
    labels JSONB NOT NULL,
    cpu_milli BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    isolation JSONB NOT NULL,
    joined_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    admits TEXT NOT NULL DEFAULT 'open',
    drain_by TIMESTAMP WITH TIME ZONE,
    own_labels JSONB NOT NULL DEFAULT '{}',
    spanning JSONB NOT NULL DEFAULT '{}',
    CONSTRAINT pk_nodes PRIMARY KEY (name),
    CONSTRAINT ck_nodes_state CHECK (state IN ('up', 'down')),
    CONSTRAINT ck_nodes_admits CHECK (admits IN ('open', 'cordoned', 'draining')),
    CONSTRAINT ck_nodes_drain_by CHECK (drain_by IS NULL OR admits = 'draining')
);

CREATE TABLE scheduler_leader (
    id BIGINT NOT NULL,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    held BOOLEAN NOT NULL,
    lease_ms BIGINT NOT NULL,
    renewals BIGINT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_scheduler_leader PRIMARY KEY (id),
    CONSTRAINT ck_scheduler_leader_single_row CHECK (id = 1)
);

CREATE TABLE devices (
    node TEXT NOT NULL,
    index BIGINT NOT NULL,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    model TEXT NOT NULL,
    vendor TEXT NOT NULL,
    healthy BOOLEAN NOT NULL,
    freed_at TIMESTAMP WITH TIME ZONE,
    failed BOOLEAN NOT NULL DEFAULT false,
    health_reason TEXT NOT NULL DEFAULT '',
    cordoned BOOLEAN NOT NULL DEFAULT false,
    CONSTRAINT pk_devices PRIMARY KEY (node, index),
    CONSTRAINT fk_devices_node FOREIGN KEY(node) REFERENCES nodes (name),
    CONSTRAINT uq_devices_number UNIQUE (number)
);

CREATE TABLE reservations (
    id UUID NOT NULL,
    tenant_id UUID,
    begins_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
    reason TEXT NOT NULL,
    made_by UUID NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    cancelled_at TIMESTAMP WITH TIME ZONE,
    cancelled_by UUID,
    CONSTRAINT pk_reservations PRIMARY KEY (id),
    CONSTRAINT ck_reservations_span CHECK (begins_at < ends_at),
    CONSTRAINT ck_reservations_cancelled CHECK ((cancelled_at IS NULL) = (cancelled_by IS NULL))
);

CREATE INDEX ix_reservations_ends_at ON reservations (ends_at);

CREATE TABLE reserved_devices (
    reservation_id UUID NOT NULL,
    node TEXT NOT NULL,
    device_index BIGINT NOT NULL,
    slots INT8RANGE NOT NULL,
    span TSTZRANGE NOT NULL,
    CONSTRAINT pk_reserved_devices PRIMARY KEY (reservation_id, node, device_index),
    CONSTRAINT ex_reserved_devices_slots_span EXCLUDE USING gist (slots WITH &&, span WITH &&),
    CONSTRAINT fk_reserved_devices_reservation_id FOREIGN KEY(reservation_id) REFERENCES reservations (id),
    CONSTRAINT fk_reserved_devices_node FOREIGN KEY(node, device_index) REFERENCES devices (node, index)
);

CREATE TABLE node_events (
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    node TEXT NOT NULL,
    device_index BIGINT,
    kind TEXT NOT NULL,
    sentence TEXT NOT NULL,
    by UUID,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_node_events PRIMARY KEY (number),
    CONSTRAINT fk_node_events_node FOREIGN KEY(node) REFERENCES nodes (name)
);

CREATE INDEX ix_node_events_node_number ON node_events (node, number);

CREATE TABLE runs (
    id UUID NOT NULL,
    job_id UUID NOT NULL,
    attempt BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    node TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    state TEXT NOT NULL,
    devices JSONB NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    exit_code BIGINT,
    end_reason TEXT,
    end_detail TEXT,
    acknowledged BOOLEAN NOT NULL,
    CONSTRAINT pk_runs PRIMARY KEY (id),
    CONSTRAINT uq_runs_job_id_attempt_rank UNIQUE (job_id, attempt, rank),
    CONSTRAINT ck_runs_state CHECK (state IN ('placed', 'starting', 'running', 'stopping', 'ended')),
    CONSTRAINT fk_runs_job_id FOREIGN KEY(job_id) REFERENCES jobs (id),
    CONSTRAINT fk_runs_node FOREIGN KEY(node) REFERENCES nodes (name)
);

CREATE INDEX ix_runs_live ON runs (node) WHERE state <> 'ended';

CREATE INDEX ix_runs_ended_at ON runs USING brin (ended_at);

CREATE INDEX ix_runs_lost ON runs (node) WHERE end_reason = 'node_lost' AND started_at IS NULL;

CREATE TABLE allocations (
    id UUID NOT NULL,
    run_id UUID NOT NULL,
    node TEXT NOT NULL,
    device_index BIGINT NOT NULL,
    model TEXT NOT NULL,
    slots INT8RANGE NOT NULL,
    span TSTZRANGE NOT NULL,
    CONSTRAINT pk_allocations PRIMARY KEY (id),
    CONSTRAINT ex_allocations_slots_span EXCLUDE USING gist (slots WITH &&, span WITH &&),
    CONSTRAINT ck_allocations_not_empty CHECK (NOT isempty(slots) AND NOT isempty(span)),
    CONSTRAINT fk_allocations_run_id FOREIGN KEY(run_id) REFERENCES runs (id)
);

CREATE INDEX ix_allocations_run_id ON allocations (run_id);

CREATE TABLE job_secrets (
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_job_secrets PRIMARY KEY (tenant_id, name)
);

CREATE TABLE job_templates (
    owner_id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    fields JSONB NOT NULL,
    saved_by UUID NOT NULL,
    saved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_job_templates PRIMARY KEY (owner_id, name)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON job_secrets, job_templates TO hub_app;
GRANT SELECT, INSERT, UPDATE ON scheduler_leader, nodes, devices, jobs, runs TO hub_app;
GRANT SELECT, INSERT ON allocations, reservations, reserved_devices, node_events TO hub_app;
GRANT UPDATE (span) ON allocations, reserved_devices TO hub_app;
GRANT UPDATE (cancelled_at, cancelled_by) ON reservations TO hub_app;

-- The epoch in force, held for the rest of the transaction. An advisory lock, because a row lock would make every
-- transaction that only looks a writing one. Volatile: what is read after the lock was waited for is what is then true.
CREATE FUNCTION scheduler_fence(alone BOOLEAN) RETURNS BIGINT LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF alone THEN
        PERFORM pg_advisory_xact_lock(hashtext('scheduler_leader'));
    ELSE
        PERFORM pg_advisory_xact_lock_shared(hashtext('scheduler_leader'));
    END IF;
    RETURN (SELECT epoch FROM scheduler_leader);
END
$$;
