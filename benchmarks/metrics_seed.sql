-- A large centre, written by set: see the class Size of metrics.py for what :devices, :tenants, :waiting, :running and
-- :jobs mean. Rows are numbered, so that every row is about the same things in every run.

CREATE FUNCTION pg_temp.numbered(n bigint) RETURNS uuid LANGUAGE sql AS
  'SELECT CAST(lpad(to_hex(n), 32, ''0'') AS uuid)';

INSERT INTO nodes (name, host_id, state, labels, cpu_milli, memory_mib, isolation, joined_at, last_seen_at)
  SELECT 'node-' || lpad(n::text, 5, '0'), 'h', 'up', '{}', 64000, 65536, '{"level": "full"}',
  now(), now() FROM generate_series(0, :devices / 8) n;

INSERT INTO devices (node, index, model, vendor, healthy)
  SELECT 'node-' || lpad((n / 8)::text, 5, '0'), n % 8, (CAST(:models AS text[]))[1 + n / 8 % 4], 'simulated', true
  FROM generate_series(0, :devices - 1) n ORDER BY n;

WITH registered AS (
  INSERT INTO enterprises (id, credit_code, version, registered_at)
  SELECT pg_temp.numbered(n), '91331003' || lpad(n::text, 10, '0'), 1, now() FROM generate_series(1, :tenants) n)
INSERT INTO enterprise_versions (enterprise_id, version, name, region, industry, size_class, yearly_contract_micros,
  clean_years, dishonest, roles, reason, recorded_by, recorded_at)
  SELECT pg_temp.numbered(n), 1, '第' || n || '号制造有限公司', '331003', 'industry-' || n % 20,
  (ARRAY['micro', 'small', 'medium', 'large'])[1 + n % 4], 0, 3, false, '[]', '', 'x', now()
  FROM generate_series(1, :tenants) n;

INSERT INTO accounts (id, name, asset, bound, credits_posted, debits_posted, opened_at)
  SELECT gen_random_uuid(), 'enterprise/' || pg_temp.numbered(n) || '/prepaid', 'CNY', 'credit', 2000000000, 1000000000, now()
  FROM generate_series(1, :tenants) n;

INSERT INTO programmes (slug, asset, first_published_at)
  SELECT 'programme-' || n, 'CNY', now() FROM generate_series(0, 9) n;

INSERT INTO programme_versions
  SELECT pg_temp.numbered(number), slug, number, 1, '2026-01-01', NULL, '{"authority": "district"}', '', 'x', now()
  FROM programmes;

INSERT INTO applications (id, version_id, enterprise_id, requested, contract, state, revision, created_by, created_at,
  first_reviewer, approver)
  SELECT pg_temp.numbered(n), pg_temp.numbered(p.number), pg_temp.numbered(n), 1000000, '{}', 'issued', 1, 'x', now(), 'a', 'b'
  FROM generate_series(1, :tenants) n JOIN programmes p ON p.slug = 'programme-' || n % 10;

INSERT INTO vouchers (id, number, version_id, slug, enterprise_id, application_id, tranche, asset, face, cycle, cap_year,
  controller, holder, issued_on, issued_by, issued_at, use_by_at, expires_at, state)
  SELECT pg_temp.numbered(n), 'V' || n, pg_temp.numbered(p.number), p.slug, pg_temp.numbered(n), pg_temp.numbered(n), 1, 'CNY',
  10000000000, '2026', 2026, 'c', '{}', '', 'x', now(), now() + interval '40 days',
  now() + interval '40 days', 'active'
  FROM generate_series(1, :tenants) n JOIN programmes p ON p.slug = 'programme-' || n % 10;

INSERT INTO accounts (id, name, asset, bound, credits_posted, opened_at)
  SELECT gen_random_uuid(), 'voucher/' || pg_temp.numbered(n), 'CNY', 'credit', 10000000000, now()
  FROM generate_series(1, :tenants) n;

INSERT INTO jobs (id, tenant_id, submitted_by, name, state, reason, kind, argv, env, environment, models, node_count,
  devices_per_node, slots_milli, cpu_milli, memory_mib, time_limit_ms, grace_ms, priority, max_retries, network, preemptible,
  topology, min_pflops_milli, depends_on, array_size, array_running_max, held, secrets, retry_on, evictions, attained_ms,
  lost_attempts, revision, queued_at, attempt, placed_at, started_at, ended_at, exit_code, end_reason)
  SELECT pg_temp.numbered(n), pg_temp.numbered(1 + n % :tenants), pg_temp.numbered(1), 'j',
  CASE WHEN n < :waiting THEN 'queued' WHEN n < :waiting + :running THEN 'running' ELSE 'succeeded' END, '',
  'batch', '{x}', '{}', 'e', ARRAY[(CAST(:models AS text[]))[1 + n % 4]], 1,
  1, 1000, 1000, 1024, 3600000, 5000, 0, 0, 'none', false,
  'pack', 0, '{}', 1, 0, false, '{}', 'lost', 0, 0,
  '{}', 0, now() - interval '1 hour', CASE WHEN n < :waiting THEN 0 ELSE 1 END, now(), now(),
  CASE WHEN n >= :waiting + :running THEN now() - n % 1000 * interval '1 minute' END, 0,
  CASE WHEN n >= :waiting + :running THEN 'exited' END
  FROM generate_series(0, :jobs - 1) n;

INSERT INTO runs (id, job_id, attempt, rank, node, epoch, state, devices, started_at, ended_at, end_reason, acknowledged)
  SELECT pg_temp.numbered(n), pg_temp.numbered(n), 1, 0, 'node-' || lpad(((n - :waiting) % :devices / 8)::text, 5, '0'), 1,
  CASE WHEN n < :waiting + :running THEN 'running' ELSE 'ended' END, '[]', now(),
  CASE WHEN n >= :waiting + :running THEN now() - n % 1000 * interval '1 minute' END,
  CASE WHEN n >= :waiting + :running THEN 'exited' END, true
  FROM generate_series(CAST(:waiting AS integer), :jobs - 1) n;

INSERT INTO allocations (id, run_id, node, device_index, model, slots, span)
  SELECT gen_random_uuid(), pg_temp.numbered(n + :waiting), d.node, d.index, d.model,
  int8range(d.number * 1000, d.number * 1000 + 1000), tstzrange(now(), NULL)
  FROM generate_series(0, :running - 1) n
  JOIN devices d ON d.node = 'node-' || lpad((n / 8)::text, 5, '0') AND d.index = n % 8;

INSERT INTO usage_records (id, job_id, run_id, attempt, rank, k, node, boot_id, model, started_at, offset_ms, duration_ms,
  slot_ms, busy_ms, energy_mj, energy_basis, final, content_sha256, received_at)
  SELECT gen_random_uuid(), pg_temp.numbered(n), pg_temp.numbered(n), 1, 0, k, 'node', 'b',
  (CAST(:models AS text[]))[1 + n % 4], now(), k * 60000, 60000, 60000000, 30000, 8400000, 'estimated', k = 1, '', now() - n % 1000 * interval '1 minute'
  FROM generate_series(:waiting + :running, :jobs - 1) n, generate_series(0, 1) k;

INSERT INTO rates (id, model, micros_per_card_hour, terms, effective_from, changes_running, reason, set_by, set_at)
  SELECT pg_temp.numbered(n), (CAST(:models AS text[]))[n], 36000000, '{"price_cny_per_card_hour": "36.000000"}', now(),
  false, '', pg_temp.numbered(1), now() FROM generate_series(1, 4) n;

INSERT INTO charges (id, job_id, tenant_id, n, attempt, model, month, slot_ms, amount_micros, voucher_micros,
  tenant_micros, rounding_micros, forgone_micros, charged_at)
  SELECT gen_random_uuid(), pg_temp.numbered(n), pg_temp.numbered(1 + n % :tenants), 1, 1,
  (CAST(:models AS text[]))[1 + n % 4], to_char(now(), 'YYYY-MM'), 120000000, 1000000, 600000, 400000, 0, 0, now() - n % 1000 * interval '1 minute'
  FROM generate_series(:waiting + :running, :jobs - 1) n;

INSERT INTO accounts (id, name, asset, bound, opened_at)
  VALUES (:credit_granted, 'centre/credit-granted', 'CNY', 'none', now());

INSERT INTO scheduler_leader VALUES (1, 'x', 7, true, 2500, 0, now() + interval '1 hour');
