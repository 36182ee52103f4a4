"""The API on a real database, with a small centre, officers and enterprises; every name it makes is new."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from httpx import Client, Response
from sqlalchemy import Engine, func, select

from compute_hub.api.app import create_app
from compute_hub.billing.charging import charge_jobs
from compute_hub.billing.funding import Funding
from compute_hub.identity.keys import issue_key
from compute_hub.identity.roles import Role
from compute_hub.metering.tables import UnchargedUsageRow, UsageRecordRow
from compute_hub.settings import Settings
from kernel.clock import utc_now
from kernel.database import Table, transaction
from kernel.ids import derived_id, new_id
from scheduler.controller.ports import Admission
from scheduler.tables import DeviceRow, JobRow, NodeRow

Json = Any
"""What a request or an answer may hold."""

EXAMPLES = Path(__file__).parents[3] / "examples" / "programmes"
MODEL = "MLU370-X8"
HOST = "machine"
"""Where all its nodes are."""
OFFICERS = (Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.OPERATOR, Role.AUDITOR)


@dataclass
class Asker:
    """One caller: what it sends, as whom."""

    http: Client
    key: str
    tenant_id: UUID | None = None

    def ask(self, method: str, path: str, body: object = None, **more: Json) -> Response:
        headers = {"Authorization": f"Bearer {self.key}"} | more.pop("headers", {})
        if method == "POST":
            headers = {"Idempotency-Key": str(new_id())} | headers
        if body is not None:
            more["content"] = json.dumps(body)
            headers["Content-Type"] = "application/json"
        return self.http.request(method, path, headers=headers, **more)

    def get(self, path: str, **parameters: object) -> Json:
        return self._good(self.ask("GET", path, params=parameters))

    def post(self, path: str, body: object = None, **more: Json) -> Json:
        return self._good(self.ask("POST", path, body, **more))

    def refused(self, status: int, code: str, method: str, path: str, body: object = None, **more: Json) -> str:
        """Ask, expecting a problem of that status and code; returns its sentence."""
        return refusal(self.ask(method, path, body, **more), status, code)

    def _good(self, answer: Response) -> Json:
        assert answer.is_success, answer.text
        return answer.json()


def refusal(answer: Response, status: int, code: str) -> str:
    """The sentence of an answer that must be this problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status), problem
    assert problem["type"] == f"urn:compute-hub:problem:{code}"
    detail = str(problem["detail"])
    assert detail.endswith(".")
    assert len(detail) > len("No.")
    return detail


class Server:
    """The application served by a thread on a free loopback port."""

    def __init__(self, app: FastAPI) -> None:
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._socket],))
        self._thread.start()

    @property
    def url(self) -> str:
        """Without `/v1`."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        """Stop and wait for the thread."""
        self._uvicorn.should_exit = True
        self._thread.join()
        self._socket.close()


@dataclass
class House:
    """The hub's API on one database."""

    engine: Engine
    folder: Path
    count: int = 0
    officers: dict[Role, Asker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Install two nodes of two cards, a price, and a key for each office."""
        environments: dict[str, Any] = {
            "digits": {"directory": str(self.folder)},
            "llm": {"directory": str(self.folder), "cost_kind": "model", "command": ["serve", "--model"]},
        }
        self.settings = Settings(
            state_directory=self.folder,
            environments=environments,
            default_environment="digits",
            upload_bytes_max=100_000,
        )
        self.server = Server(create_app(self.settings, self.engine))
        self.http = Client(base_url=self.server.url, timeout=30)
        with transaction(self.engine) as session:
            for name in ("a", "b"):
                session.add(node(name))
                session.flush()
                session.add_all(
                    DeviceRow(node=name, index=index, model=MODEL, vendor="cambricon", healthy=True)
                    for index in range(2)
                )
            for role in OFFICERS:
                key = issue_key(session, role, f"Officer {role}", at=utc_now())
                self.officers[role] = Asker(self.http, key)
        self.operator.post("/v1/rates", {"model": MODEL, "price_cny_per_card_hour": "36.00"})

    @property
    def operator(self) -> Asker:
        return self.officers[Role.OPERATOR]

    @property
    def authority(self) -> Asker:
        return self.officers[Role.AUTHORITY]

    @property
    def reviewer(self) -> Asker:
        return self.officers[Role.FIRST_REVIEWER]

    @property
    def approver(self) -> Asker:
        return self.officers[Role.APPROVER]

    @property
    def auditor(self) -> Asker:
        return self.officers[Role.AUDITOR]

    def number(self) -> int:
        self.count += 1
        return self.count

    def programme(self, name: str = "huangyan", **changed: object) -> str:
        """A published copy of an example under a name of its own."""
        document = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
        document |= {"programme": f"{name}-{self.number()}"} | changed
        self.authority.post("/v1/programmes", {"document": document})
        return str(document["programme"])

    def enterprise(self, yuan: str | None = None, **facts: object) -> Asker:
        """A registered enterprise with a key, and money if said so."""
        code = f"91331003{self.number():09d}X"
        registration = {"credit_code": code, "name": f"Works {code}", "region": "331003"} | facts
        tenant_id = self.operator.post("/v1/enterprises", registration)["id"]
        if yuan is not None:
            deposit = {"amount_cny": yuan, "reference": f"bank {code}"}
            self.operator.post(f"/v1/enterprises/{tenant_id}/deposits", deposit)
        return self.key(tenant_id)

    def key(self, tenant_id: str | UUID, person: str = "Engineer") -> Asker:
        request = {"role": "tenant", "person": person, "tenant_id": str(tenant_id)}
        return Asker(self.http, self.operator.post("/v1/api-keys", request)["key"], UUID(str(tenant_id)))

    def application(self, firm: Asker, programme: str, **asked: object) -> str:
        """An application that waits for first review."""
        application = firm.post("/v1/applications", {"programme": programme} | asked)
        assert application["state"] == "submitted", application
        return str(application["id"])

    def voucher(self, firm: Asker, programme: str, **asked: object) -> dict[str, Any]:
        """A voucher that went through both reviews."""
        application = self.application(firm, programme, **asked)
        self.reviewer.post(f"/v1/applications/{application}:first-review", {"reason": "complete"})
        self.approver.post(f"/v1/applications/{application}:final-approval", {"reason": "agreed"})
        issued: dict[str, Any] = self.authority.post(f"/v1/applications/{application}:issue")
        return issued

    def use(self, job_id: str, card_ms: int, used_at: datetime | None = None, **said: object) -> None:
        """Let a queued job be admitted, use card time and be charged, as controller and biller would.

        What `said` names is what its record says besides.
        """
        with transaction(self.engine) as session:
            job = session.get_one(JobRow, UUID(job_id))
            funding = Funding(self.settings.hold_horizon_ms, self.settings.centre_facts)
            assert funding.admit(session, [Admission(job, {MODEL: 1000})], utc_now()) == {}
        with transaction(self.engine) as session:
            record = usage(UUID(job_id), card_ms, used_at or utc_now())
            for name, value in said.items():
                setattr(record, name, value)
            session.add(record)
            session.flush()
            place = {"attempt": record.attempt, "rank": record.rank, "k": record.k}
            session.add(UnchargedUsageRow(job_id=record.job_id, **place))
        with transaction(self.engine) as session:
            assert charge_jobs(session, [UUID(job_id)], utc_now()).charges

    def close(self) -> None:
        """Stop serving."""
        self.http.close()
        self.server.close()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """What happens in the block must leave every table with as many rows as before."""
        before = self.counts()
        yield
        assert self.counts() == before

    def counts(self) -> dict[str, int]:
        """How many rows every table has."""
        with transaction(self.engine) as session:
            return {
                table.name: session.scalars(select(func.count()).select_from(table)).one()
                for table in Table.metadata.sorted_tables
            }


def month_in_china() -> str:
    """The month that it is where programmes count days."""
    return f"{utc_now() + timedelta(hours=8):%Y-%m}"


def job(**changed: object) -> dict[str, Any]:
    """A submission that the small centre would take."""
    plain = {"name": "train", "argv": ["python", "train.py"], "accelerator": MODEL, "environment": "digits"}
    return plain | {"time_limit_s": 600} | changed


def node(name: str) -> NodeRow:
    now = utc_now()
    return NodeRow(
        name=name,
        host_id=HOST,
        state="up",
        labels={},
        cpu_milli=16_000,
        memory_mib=32_768,
        isolation={"level": "full"},
        joined_at=now,
        last_seen_at=now,
    )


def usage(job_id: UUID, card_ms: int, used_at: datetime) -> UsageRecordRow:
    return UsageRecordRow(
        id=derived_id("record", job_id, card_ms),
        job_id=job_id,
        run_id=new_id(),
        attempt=1,
        rank=0,
        k=0,
        node="a",
        boot_id="boot",
        model=MODEL,
        started_at=used_at,
        offset_ms=0,
        duration_ms=card_ms,
        slot_ms=card_ms * 1000,
        busy_ms=0,
        memory_bytes_max=0,
        final=True,
        content_sha256="0" * 64,
        received_at=utc_now(),
    )
