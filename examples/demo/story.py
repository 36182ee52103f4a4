"""The story: an authority, its officers, two firms, five jobs and a claim, all through the HTTP API."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from compute_hub.identity.roles import Role
from compute_hub.sdk import ENDED, HubClient
from compute_hub.stack.up import LocalStack
from examples.demo.display import Display
from kernel.clock import boottime_ms, utc_now
from kernel.errors import HubError
from scheduler.policy.model import WHOLE_MILLI

PROGRAMME: Final = Path("examples/programmes/huangyan.json")
WORKDIR: Final = Path("examples/digits")
_PATIENCE_S: Final = 150
_LOOK_S: Final = 0.15


class TookTooLong(HubError):
    """Something the story waits for did not happen."""

    sentence = "gave up after {seconds} s waiting until {what}; the logs are in {logs}."


@dataclass(frozen=True)
class Firm:
    """An enterprise of the story and what it applies for."""

    credit_code: str
    name: str
    industry: str
    requested_cny: str
    deposit_cny: str


MOULDS: Final = Firm("91331003MA2AJ0A11X", "Huangyan Precision Moulds", "moulds", "120000.00", "2000.00")
CHEMISTRY: Final = Firm("91331003MA2BK0B22Y", "Yongning Medical Chemistry", "chemistry", "200000.00", "5000.00")


class Story:
    """Plays the story on a running hub and keeps what the report needs."""

    def __init__(self, stack: LocalStack, display: Display) -> None:
        self.stack = stack
        self.display = display
        officers = (Role.OPERATOR, Role.AUTHORITY, Role.FIRST_REVIEWER, Role.APPROVER, Role.AUDITOR)
        self.officers = {
            role: HubClient(stack.url, stack.key(role, f"{role} of the demo")) for role in officers
        }
        self.firms: dict[str, HubClient] = {}
        self.names: dict[str, str] = {}
        self.model = stack.settings.nodes[0].devices[0].model
        self.jobs: dict[str, tuple[Firm, str]] = {}
        self.claim: dict[str, Any] = {}

    def play(self) -> None:
        """The whole story. Raises TookTooLong or whatever the hub refuses."""
        self.display.step("the authority publishes its programme")
        document = json.loads(PROGRAMME.read_text(encoding="utf-8"))
        self.officers[Role.AUTHORITY].post("/v1/programmes", {"document": document})
        for firm in (MOULDS, CHEMISTRY):
            self.display.step(f"{firm.name} applies; two officers review; the voucher is issued")
            self._give_voucher(firm)
        self._run_jobs()
        self.display.step("usage is charged, and what was held too much is released")
        self._until("everything is charged", self._all_settled)
        self.display.step("the centre claims the period")
        period = f"{utc_now().astimezone(ZoneInfo(document['time_zone'])):%Y-%m}"
        wanted = {"programme": document["programme"], "period": period}
        self.claim = self.officers[Role.OPERATOR].post("/v1/claims", wanted)

    def current_jobs(self) -> list[dict[str, Any]]:
        """The story's jobs in the order of its telling."""
        return [self.firms[firm.name].get(f"/v1/jobs/{job_id}") for firm, job_id in self.jobs.values()]

    def _give_voucher(self, firm: Firm) -> None:
        operator = self.officers[Role.OPERATOR]
        registration = {
            "credit_code": firm.credit_code,
            "name": firm.name,
            "region": "331003",
            "industry": firm.industry,
            "clean_years": 5,
        }
        tenant_id = operator.post("/v1/enterprises", registration)["id"]
        request = {"role": "tenant", "person": f"engineer of {firm.name}", "tenant_id": tenant_id}
        client = HubClient(self.stack.url, operator.post("/v1/api-keys", request)["key"])
        self.firms[firm.name], self.names[tenant_id] = client, firm.name
        deposit = {"amount_cny": firm.deposit_cny, "reference": f"bank {firm.credit_code} 1"}
        operator.post(f"/v1/enterprises/{tenant_id}/deposits", deposit)
        wanted = {"programme": "huangyan", "requested_cny": firm.requested_cny}
        application = client.post("/v1/applications", wanted)["id"]
        reviewed = {"reason": "eligible local manufacturer"}
        self.officers[Role.FIRST_REVIEWER].post(f"/v1/applications/{application}:first-review", reviewed)
        self.officers[Role.APPROVER].post(
            f"/v1/applications/{application}:final-approval", {"reason": "agreed"}
        )
        self.officers[Role.AUTHORITY].post(f"/v1/applications/{application}:issue")

    def _run_jobs(self) -> None:
        self.display.step("the firms submit their jobs")
        program = ["python", "train.py", "--seconds-min"]
        gang = ["python", "train_distributed.py", "--seconds-min", "8"]
        self._submit("distributed training", CHEMISTRY, gang, nodes=2, devices_per_node=2)
        self._submit("cancelled training", CHEMISTRY, [*program, "300"], devices_per_node=2)
        self._submit("digits training", MOULDS, [*program, "8"])
        self._submit("failing evaluation", MOULDS, ["python", "fail.py", "--patience", "8"])
        self.display.step("all eight cards are taken")
        self._until("all cards are taken", self._all_taken)
        self._submit("waiting training", MOULDS, [*program, "3"])
        self._until("the last job waits", lambda: "waiting" in self._job("waiting training")["reason"])
        self.display.step("one firm cancels its job; the waiting one runs")
        firm, job_id = self.jobs["cancelled training"]
        self.firms[firm.name].post(f"/v1/jobs/{job_id}:cancel")
        self._until("all jobs have ended", lambda: all(job["state"] in ENDED for job in self.current_jobs()))

    def _submit(
        self, name: str, firm: Firm, argv: list[str], *, nodes: int = 1, devices_per_node: int = 1
    ) -> None:
        client = self.firms[firm.name]
        body = {
            "name": name,
            "argv": argv,
            "accelerator": self.model,
            "environment": "digits",
            "nodes": nodes,
            "devices_per_node": devices_per_node,
            "time_limit_s": 600,
            "upload_sha256": client.upload(WORKDIR),
        }
        self.jobs[name] = (firm, client.post("/v1/jobs", body)["id"])

    def _job(self, name: str) -> dict[str, Any]:
        firm, job_id = self.jobs[name]
        job: dict[str, Any] = self.firms[firm.name].get(f"/v1/jobs/{job_id}")
        return job

    def _all_taken(self) -> bool:
        nodes = self.officers[Role.OPERATOR].get("/v1/cluster")["nodes"]
        taken = all(device["allocated_milli"] == WHOLE_MILLI for node in nodes for device in node["devices"])
        return taken and all(job["state"] == "running" for job in self.current_jobs())

    def _all_settled(self) -> bool:
        vouchers = self.officers[Role.AUDITOR].pages("/v1/vouchers")
        usage = [record for job in self.current_jobs() for record in self.usage(job["id"])]
        charged = all(record["charge_id"] is not None for record in usage if record["slot_ms"])
        return charged and all(float(voucher["held_cny"]) == 0 for voucher in vouchers)

    def usage(self, job_id: str) -> list[dict[str, Any]]:
        """The meter's records of a job."""
        return list(self.officers[Role.AUDITOR].pages(f"/v1/jobs/{job_id}/usage"))

    def _until(self, what: str, happened: Callable[[], bool]) -> None:
        never = threading.Event()
        deadline = boottime_ms() + _PATIENCE_S * 1000
        while not happened():
            self.display.jobs(self.current_jobs())
            self.stack.check()
            if boottime_ms() > deadline:
                raise TookTooLong(seconds=_PATIENCE_S, what=what, logs=self.stack.logs)
            never.wait(_LOOK_S)
        self.display.jobs(self.current_jobs())
