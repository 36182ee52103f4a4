"""A replay as the hub's users see it: firms with vouchers, their jobs at their times, the closed month and the claim.

All through the HTTP API, but for one thing: a month can be closed when it is over, so closing is told the instant at
which it will be.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine, text

from compute_hub.billing.domain.days import month_span
from compute_hub.billing.invoicing import close_month, tenants_to_close
from compute_hub.identity.roles import Role
from compute_hub.replay.month import PlayedJob, Rule, worth_micros
from compute_hub.replay.stack import ENVIRONMENT, MODEL, ReplayStack
from compute_hub.sdk import HubClient
from compute_hub.stack.database import application_url
from kernel.clock import boottime_ms, from_unix_ms, utc_now
from kernel.database import open_engine, transaction
from kernel.errors import HubError
from kernel.ids import derived_id
from kernel.money import format_yuan, parse_yuan

OFFICER: Final = derived_id("principal", "replay")
_SUBMITTERS: Final = 4
_LOOK_S: Final = 0.5
_QUIET_S: Final = 240
"""How long nothing may change before a replay is given up."""
_SHORT_EVERY: Final = 3
_VOUCHERS_MAX: Final = 3
_DEPOSIT_TIMES: Final = 4
_DEPOSIT_LEAST: Final = 500_000 * 1_000_000
_MOST_YUAN: Final = 2_000_000_000


class ReplayStuck(HubError):
    """Nothing moves any more."""

    sentence = "nothing has changed for {seconds} s while {what}; the logs are in {logs}."


@dataclass(frozen=True)
class Firm:
    """A tenant of the replay and its money, in micro-yuan; its vouchers in the order in which they are used up."""

    name: str
    tenant_id: UUID
    key: str
    deposit_micros: int
    voucher_ids: tuple[UUID, ...]
    faces_micros: tuple[int, ...]


Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done and how much there is."""


class Story:
    """Plays a month on a running stack.

    Args:
        stack: it runs.
        jobs: of the month, in order of submission.
        rule: of the programme.
        document: the programme's.
        price_micros: of a card-hour of the replay.
        tell: hears how far it is.
    """

    def __init__(
        self,
        stack: ReplayStack,
        jobs: Sequence[PlayedJob],
        rule: Rule,
        document: dict[str, Any],
        price_micros: int,
        tell: Progress,
    ) -> None:
        self.stack = stack
        self.jobs = jobs
        self.rule = rule
        self.firms: dict[str, Firm] = {}
        self.submitted: dict[str, str] = {}
        self.claim: dict[str, Any] = {}
        self.months: list[str] = []
        self.lag_ms_max = 0
        self._leaving = threading.Event()
        self._refusal: HubError | None = None
        self._document = document
        self._price = price_micros
        self._tell = tell
        officers = (Role.OPERATOR, Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.AUDITOR)
        self.officers = {
            role: HubClient(stack.url, stack.key(role, f"{role} of the replay")) for role in officers
        }

    def play(self) -> None:
        """The whole month. Raises ReplayStuck or whatever the hub refuses."""
        self.officers[Role.AUTHORITY].post("/v1/programmes", {"document": self._document})
        names = sorted({job.firm for job in self.jobs})
        for number, name in enumerate(names):
            self._tell("firms apply, officers decide", number, len(names))
            self.firms[name] = self._firm(number, name)
        engine = open_engine(application_url(self.stack.settings), pool_size=1)
        submitting = threading.Thread(target=self._submit_all, name="submit")
        submitting.start()
        try:
            self._await(
                engine, "jobs run", len(self.jobs), "SELECT count(*) FROM jobs WHERE ended_at IS NOT NULL"
            )
            submitting.join()
            settled = "SELECT count(*) FROM job_funding WHERE state = 'released'"
            self._await(engine, "the last usage is charged", len(self.jobs), settled)
            self._close(engine)
        finally:
            self._leaving.set()
            engine.dispose()
        self._claim()

    def _firm(self, number: int, name: str) -> Firm:
        """Register a firm with money of its own and one to three vouchers; every third asks for less than it uses."""
        worth = worth_micros([job for job in self.jobs if job.firm == name], self._price)
        operator = self.officers[Role.OPERATOR]
        facts = {
            "credit_code": f"91{self.rule.firm_region[:6]}MA{number:08d}",
            "name": name,
            "region": self.rule.firm_region,
            "clean_years": 5,
        }
        tenant_id = operator.post("/v1/enterprises", facts)["id"]
        asked = {"role": "tenant", "person": f"engineer of {name}", "tenant_id": tenant_id}
        key = operator.post("/v1/api-keys", asked)["key"]
        deposit = _yuan(min(_DEPOSIT_LEAST + _DEPOSIT_TIMES * worth, _MOST_YUAN * 1_000_000))
        operator.post(
            f"/v1/enterprises/{tenant_id}/deposits",
            {"amount_cny": deposit, "reference": f"opening balance of {name}"},
        )
        share = int(self.rule.ratio * worth)
        wanted = max(1_000_000, share * 2 // 5 if number % _SHORT_EVERY == 1 else share * 3)
        if self.rule.cap_micros is not None:
            wanted = min(wanted, self.rule.cap_micros)
        tenant = HubClient(self.stack.url, key)
        for part in _parts(wanted, 1 + number % _VOUCHERS_MAX):
            self._voucher(tenant, _yuan(part))
        # Of vouchers that end alike and are alike narrow, the oldest burns first.
        vouchers = sorted(tenant.pages("/v1/vouchers"), key=lambda one: (one["issued_at"], one["id"]))
        tenant.__exit__()
        return Firm(
            name=name,
            tenant_id=UUID(tenant_id),
            key=key,
            deposit_micros=parse_yuan(deposit),
            voucher_ids=tuple(UUID(voucher["id"]) for voucher in vouchers),
            faces_micros=tuple(parse_yuan(voucher["face_cny"]) for voucher in vouchers),
        )

    def _voucher(self, tenant: HubClient, requested_cny: str) -> None:
        wanted = {"programme": self.rule.slug, "requested_cny": requested_cny}
        application = tenant.post("/v1/applications", wanted)["id"]
        for role, step in ((Role.FIRST_REVIEWER, "first-review"), (Role.APPROVER, "final-approval")):
            self.officers[role].post(f"/v1/applications/{application}:{step}", {"reason": "replayed"})
        self.officers[Role.AUTHORITY].post(f"/v1/applications/{application}:issue")

    def _submit_all(self) -> None:
        """Every job at its time, by a few connections, so that a slow answer delays nobody."""
        clients = {name: HubClient(self.stack.url, firm.key) for name, firm in self.firms.items()}
        began_ms = boottime_ms()
        with ThreadPoolExecutor(_SUBMITTERS) as pool:
            for job in self.jobs:
                if self._leaving.wait(max(0, began_ms + job.submitted_ms - boottime_ms()) / 1000):
                    return
                pool.submit(self._submit, clients[job.firm], job, began_ms + job.submitted_ms)

    def _submit(self, client: HubClient, job: PlayedJob, due_ms: int) -> None:
        body = {
            "name": job.name,
            "argv": ["replay", str(job.takes_ms)],
            "accelerator": MODEL,
            "environment": ENVIRONMENT,
            "nodes": job.nodes,
            "devices_per_node": job.devices_per_node,
            "slots_milli": job.slots_milli,
            "time_limit_s": job.limit_s,
            "grace_s": 0,
            "cpu_milli": 100,
            "memory_mib": 256,
            "max_retries": 3,
            "network": "none",
        }
        try:
            self.submitted[job.name] = str(client.post("/v1/jobs", body)["id"])
        except HubError as refusal:
            self._refusal = refusal
            return
        self.lag_ms_max = max(self.lag_ms_max, boottime_ms() - due_ms)

    def _await(self, engine: Engine, what: str, total: int, query: str) -> None:
        never, last, since_ms = threading.Event(), -1, boottime_ms()
        while True:
            with transaction(engine) as session:
                done = int(session.scalars(text(query)).one())
            self._tell(what, done, total)
            if done >= total:
                return
            self.stack.check()
            if self._refusal is not None:
                raise self._refusal
            if done != last:
                last, since_ms = done, boottime_ms()
            if boottime_ms() > since_ms + _QUIET_S * 1000:
                raise ReplayStuck(seconds=_QUIET_S, what=what, logs=self.stack.logs)
            never.wait(_LOOK_S)

    def _close(self, engine: Engine) -> None:
        with transaction(engine) as session:
            self.months = list(session.scalars(text("SELECT DISTINCT month FROM charges ORDER BY 1")))
        for month in self.months:
            ends = from_unix_ms(month_span(month).end_ms)
            with transaction(engine) as session:
                tenants = tenants_to_close(session, month)
            for number, tenant in enumerate(tenants):
                self._tell(f"{month} is closed", number, len(tenants))
                with transaction(engine) as session:
                    close_month(session, tenant, month, by=OFFICER, at=max(ends, utc_now()))

    def _claim(self) -> None:
        self._tell("the centre claims", 0, 1)
        wanted = {"programme": self.rule.slug, "period": self._period(utc_now())}
        self.claim = self.officers[Role.OPERATOR].post("/v1/claims", wanted)
        self._tell("the centre claims", 1, 1)

    def _period(self, at: datetime) -> str:
        year, month = (int(part) for part in self.months[-1].split("-")) if self.months else (at.year, at.month)
        return f"{year}-Q{(month + 2) // 3}" if self.rule.quarterly else f"{year}-{month:02d}"


def _parts(micros: int, count: int) -> list[int]:
    """An amount in so many parts, each bigger than the one before by the first, so that the first are used up."""
    whole = count * (count + 1) // 2
    return [max(1_000_000, micros * (number + 1) // whole) for number in range(count)]


def _yuan(micros: int) -> str:
    """Whole yuan."""
    return format_yuan(micros // 1_000_000 * 1_000_000)
