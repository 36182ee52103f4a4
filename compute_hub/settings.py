"""The only module that reads the environment: `HUB_*` variables over one TOML file (`HUB_CONFIG`) over defaults."""

import os
from collections import Counter
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from compute_hub.billing.domain.terms import GENERAL, STANDARD, Seller, TaxRate, Terms
from compute_hub.metering.energy import Draw
from kernel.errors import Invalid
from vouchers.domain.facts import COMPUTE, CentreFacts

_DEFAULT_CONFIG: Final = Path(__file__).resolve().parent.parent / "deploy" / "hub.toml"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class NoSettingsFile(Invalid):
    """HUB_CONFIG names a file that is not there."""

    sentence = "HUB_CONFIG: there is no file {path}; name a TOML file, or unset it for the default."


class MalformedSettings(Invalid):
    """A setting that cannot be meant."""

    sentence = "{variable} (or {field} in the settings file): {reason}."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Devices(_Part):
    """Accelerators of one model in one node."""

    model: Name
    vendor: Literal["nvidia", "ascend", "cambricon", "simulated"]
    count: Annotated[int, Field(ge=1, le=64)]
    health_directory: Path | None = None
    """Where a file named by a device's index may say `unhealthy REASON` or `failed REASON`."""


class Node(_Part):
    """One machine that `hub up` starts a node process for; `hub node --name` picks its own entry."""

    name: Name
    devices: tuple[Devices, ...] = ()
    inventory: Literal["configured", "nvml"] = "configured"
    """Whether the devices are those named here, or what NVIDIA's library finds on the machine."""
    cpu_milli: Annotated[int, Field(ge=1000)] = 16_000
    memory_mib: Annotated[int, Field(ge=1024)] = 32_768
    labels: dict[str, str] = {}
    span_address: str = ""
    """This machine's address for gangs that span machines, such as one of a faster network; else the one Ray uses."""

    @model_validator(mode="after")
    def _devices_from_one_source(self) -> Self:
        if bool(self.devices) == (self.inventory == "nvml"):
            message = "a node either names its devices, or takes them from an inventory and names none"
            raise ValueError(message)
        return self

    @field_validator("devices")
    @classmethod
    def _of_one_model(cls, devices: tuple[Devices, ...]) -> tuple[Devices, ...]:
        if len({part.model for part in devices}) > 1:
            message = "all devices of a node must be of one model; describe the machine as one node per model"
            raise ValueError(message)
        return devices


class Environment(_Part):
    """A read-only directory the operator offers to jobs, mounted where it lies and put first on PATH.

    Usage in it is of a cost kind, which decides what voucher programmes pay for it. One of another kind than compute
    is a service: its jobs run the operator's command, so that no tenant makes compute something else by its own word.
    """

    directory: Path
    also_mounted: tuple[Path, ...] = ()
    cost_kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_-]{0,62}$")] = COMPUTE
    command: tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...] = ()

    @model_validator(mode="after")
    def _services_say_their_command(self) -> Self:
        if self.cost_kind != COMPUTE and not self.command:
            message = f"an environment whose usage is {self.cost_kind} names the command that its jobs run"
            raise ValueError(message)
        return self


class Price(_Part):
    """The price of one card-hour, in force from the hub's first start until the operator sets another."""

    model: Name
    price_cny_per_card_hour: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d{1,6})?$")]


class Model(_Part):
    """What a card of a model can do at most, at the precision by which the centre is certified, and what it draws.

    The power of an idle and of a fully busy card is for cards that do not measure theirs; both or neither.
    """

    precision: Name = "fp16"
    tflops: Annotated[int, Field(ge=1, le=1_000_000)]
    idle_watts: Annotated[int, Field(ge=0, le=100_000)] | None = None
    peak_watts: Annotated[int, Field(ge=1, le=100_000)] | None = None

    @model_validator(mode="after")
    def _draws_more_when_busy(self) -> Self:
        if (self.idle_watts is None) != (self.peak_watts is None):
            message = "name both idle_watts and peak_watts, or neither"
            raise ValueError(message)
        if self.idle_watts is not None and self.peak_watts is not None and self.idle_watts > self.peak_watts:
            message = "idle_watts must not be above peak_watts"
            raise ValueError(message)
        return self


class Centre(_Part):
    """What the rules of programmes look at in this centre.

    `pflops` is its installed peak as certified; left out, it is what the `nodes` named here add up to.
    """

    region: Annotated[str, StringConstraints(pattern=r"^([0-9]{2,12}|GB)$")] = "331003"
    pflops: Annotated[int, Field(ge=0, le=1_000_000)] | None = None


class VatRate(_Part):
    """A rate of value-added tax of a kind of taxpayer from a day on."""

    kind: Name = GENERAL
    effective_from: date
    percent: Annotated[str, StringConstraints(pattern=r"^\d{1,2}(\.\d{1,4})?$")]


class Billing(_Part):
    """How invoices are taxed and when they are due; holidays and worked weekends are the state's yearly list."""

    credit_code: Annotated[str, StringConstraints(pattern=r"^([0-9A-Z]{8,18})?$")] = ""
    bank: Annotated[str, StringConstraints(max_length=200)] = ""
    """The seller's, as they stand on invoices; empty, they are left out."""
    tax_kind: Name = GENERAL
    vat: tuple[VatRate, ...] = ()
    due_days: Annotated[int, Field(ge=0, le=365)] = STANDARD.due_days
    holidays: tuple[date, ...] = ()
    workdays: tuple[date, ...] = ()

    @property
    def terms(self) -> Terms:
        """The same as invoicing wants it; without rates those of the law as this version knows it."""
        rates = tuple(
            TaxRate(rate.kind, rate.effective_from, int(Decimal(rate.percent) * 10_000)) for rate in self.vat
        )
        return Terms(
            self.tax_kind,
            rates or STANDARD.rates,
            self.due_days,
            frozenset(self.holidays),
            frozenset(self.workdays),
        )


class Quota(_Part):
    """What a tenant may use of one accelerator model, in devices; without a bound it borrows and lends everything."""

    guaranteed: Annotated[int, Field(ge=0)] = 0
    borrowed_max: Annotated[int, Field(ge=0)] | None = None
    lent_max: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[int, Field(ge=1, le=1000)] = 1


class TenantQueue(_Part):
    """The queue of one tenant. Tenants without one share fairly what nobody is guaranteed or everybody lends."""

    tenant: UUID
    quotas: dict[Name, Quota] = {}
    running_max: Annotated[int, Field(ge=1)] | None = None
    max_wait_s: Annotated[int, Field(ge=0)] | None = None


class Settings(BaseSettings):
    """Everything an operator can choose. Durations are milliseconds."""

    model_config = SettingsConfigDict(env_prefix="HUB_", env_nested_delimiter="__", extra="forbid", frozen=True)

    state_directory: Path = Path("var/hub")
    database_url: str | None = None
    migration_url: str | None = None
    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65535)] = 8700
    api_workers: Annotated[int, Field(ge=1, le=64)] = 1
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65000)] = 0
    """Where a process serves its own metrics (several workers: from there on); 0 for any free port."""
    node_address: str = "127.0.0.1"
    """This machine's address for other nodes; with 127.0.0.1 Ray listens on the loopback address alone."""
    ray_head_host: str = "127.0.0.1"
    ray_port: Annotated[int, Field(ge=1, le=65535)] = 6379
    ray_token_file: Path | None = None
    ray_directory: Path | None = None
    sandbox: Literal["namespaces", "process"] = "namespaces"
    cgroup_parent: str = ""
    """A cgroup below which jobs get theirs; where there is version 2 alone, one delegated with memory, pids and cpu."""
    tick_ms: Annotated[int, Field(ge=50, le=60_000)] = 1000
    autoscaler: Literal["none", "ray"] = "none"
    """Whom the controller tells every 10 s what running and waiting jobs need, as bundles of `hub_device:MODEL`."""
    controllers: Annotated[int, Field(ge=1, le=4)] = 2
    """How many `hub up` runs; one leads, the others stand by and take over within its lease and a second."""
    leader_lease_ms: Annotated[int, Field(ge=1000)] = 2500
    node_lease_ms: Annotated[int, Field(ge=1000)] = 6000
    """How long jobs go on without a controller; longer than a new one needs to take over, or its death ends them."""
    meter_interval_ms: Annotated[int, Field(ge=100)] = 60_000
    hold_horizon_ms: Annotated[int, Field(ge=1000)] = 3_600_000
    centre_name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "智能计算中心"
    """The seller's name on invoices."""
    audit_interval_ms: Annotated[int, Field(ge=100)] = 3_600_000
    otlp_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://")] | None = None
    """Where traces go, e.g. http://collector:4318 (OTLP over HTTP); nowhere if left out."""
    scrape_interval_ms: Annotated[int, Field(ge=1000)] = 15_000
    rules_directory: Path = _DEFAULT_CONFIG.parent / "prometheus"
    prometheus_port: Annotated[int, Field(ge=1, le=65535)] = 9090
    alertmanager_port: Annotated[int, Field(ge=1, le=65535)] = 9093
    grafana_port: Annotated[int, Field(ge=1, le=65535)] = 3000
    upload_bytes_max: Annotated[int, Field(ge=1)] = 64 * 2**20
    uploads_per_tenant_bytes_max: Annotated[int, Field(ge=1)] = 4 * 2**30
    """Of all uploads of one tenant together; the oldest that no live job needs make room for new ones."""
    live_jobs_per_tenant_max: Annotated[int, Field(ge=1)] = 20_000
    """Jobs of one tenant that may wait or run at once."""
    log_bytes_max: Annotated[int, Field(ge=4096)] = 16 * 2**20
    files_kept_ms: Annotated[int, Field(ge=0)] = 14 * 86_400_000
    """So long working directories and checkpoints are kept after a job's end (`hub keeper`)."""
    logs_kept_ms: Annotated[int, Field(ge=0)] = 90 * 86_400_000
    """So long what jobs printed is kept after their end."""
    least_kept_ms: Annotated[int, Field(ge=60_000)] = 3_600_000
    """So long both are kept however full the disk is."""
    store_full_percent: Annotated[int, Field(ge=1, le=100)] = 85
    """When so much of the workspaces' file system is used, the oldest of both go before their time, files first."""
    centre: Centre = Centre()
    billing: Billing = Billing()
    models: dict[str, Model] = {}
    secrets_key_file: Path | None = None
    """Seals tenants' secrets: one Fernet key a line, the first seals, all open. Made where it is missing."""
    nodes: tuple[Node, ...] = ()
    environments: dict[str, Environment] = {}
    default_environment: str = ""
    """Of jobs that name none; empty, they get the nodes' own /usr and nothing else."""
    queues: tuple[TenantQueue, ...] = ()
    prices: tuple[Price, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library passes it by keyword
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library passes it by keyword
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the TOML file."""
        file = Path(os.environ.get("HUB_CONFIG", _DEFAULT_CONFIG))  # noqa: TID251 - the one reader
        if not file.is_file():
            raise NoSettingsFile(path=file)
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    @field_validator("queues")
    @classmethod
    def _one_for_each(cls, queues: tuple[TenantQueue, ...]) -> tuple[TenantQueue, ...]:
        if len({queue.tenant for queue in queues}) < len(queues):
            message = "a tenant has one queue; merge the entries of the same tenant"
            raise ValueError(message)
        return queues

    @model_validator(mode="after")
    def _default_is_offered(self) -> Self:
        if self.default_environment and self.default_environment not in self.environments:
            known = ", ".join(sorted(self.environments)) or "none"
            message = (
                f"default_environment: there is no environment {self.default_environment!r}; there are {known}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _takeover_fits(self) -> Self:
        least = self.leader_lease_ms + 2 * self.tick_ms + 1000
        if self.node_lease_ms < least:
            message = (
                f"node_lease_ms must be at least leader_lease_ms + 2 × tick_ms + 1000 = {least}, "
                "or a controller's death ends every job"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _guarantees_exist(self) -> Self:
        """Where the nodes are named here, no more of a model may be guaranteed than they have."""
        there: Counter[str] = Counter()
        for node in self.nodes:
            there.update({part.model: part.count for part in node.devices})
        given: Counter[str] = Counter()
        for queue in self.queues:
            given.update({model: quota.guaranteed for model, quota in queue.quotas.items()})
        for model, devices in sorted(given.items()):
            if self.nodes and devices > there[model]:
                message = f"queues are guaranteed {devices} {model} together, but the nodes have {there[model]}"
                raise ValueError(message)
        return self

    @property
    def centre_facts(self) -> CentreFacts:
        """What programmes look at in the centre."""
        pflops = self.centre.pflops
        if pflops is None:
            parts = [part for node in self.nodes for part in node.devices if part.model in self.models]
            pflops = sum(part.count * self.models[part.model].tflops for part in parts) // 1000
        kinds = {name: one.cost_kind for name, one in self.environments.items() if one.cost_kind != COMPUTE}
        return CentreFacts(self.centre.region, pflops, kinds)

    @property
    def seller(self) -> Seller:
        """The centre as it stands on invoices."""
        return Seller(self.centre_name, self.billing.credit_code, self.billing.bank)

    @property
    def draws(self) -> dict[str, Draw]:
        """Declared power by model, where it is declared."""
        return {
            name: Draw(model.idle_watts, model.peak_watts)
            for name, model in self.models.items()
            if model.idle_watts is not None and model.peak_watts is not None
        }

    @property
    def uploads(self) -> Path:
        """Where uploaded working directories lie, by tenant and SHA-256."""
        return self.workspaces / "uploads"

    @property
    def workspaces(self) -> Path:
        """Where jobs' working directories and logs lie, by tenant, job and attempt."""
        return self.state_directory.resolve() / "workspaces"

    @property
    def secrets_key(self) -> Path:
        """The file of the keys that seal tenants' secrets; API and controllers need the same."""
        return self.secrets_key_file or self.state_directory.resolve() / "secrets.key"

    def node_directory(self, name: str) -> Path:
        """The state of one node's supervisor."""
        return self.state_directory.resolve() / "nodes" / name


class ClientSettings(BaseSettings):
    """Where the command line finds a hub, and as whom it asks."""

    model_config = SettingsConfigDict(env_prefix="HUB_", extra="ignore", frozen=True)

    url: str = "http://127.0.0.1:8700"
    api_key: str | None = None


@cache
def settings() -> Settings:
    """The settings of this process, read once. Raises NoSettingsFile, MalformedSettings."""
    try:
        return Settings()
    except ValidationError as error:
        fault = error.errors()[0]
        name = "__".join(str(part) for part in fault["loc"]) or "*"
        raise MalformedSettings(variable=f"HUB_{name.upper()}", field=name, reason=fault["msg"]) from None


def inherited_environment(**changes: str) -> dict[str, str]:
    """This process's environment with changes, for the hub's own child processes (never for a tenant's)."""
    return {**os.environ, **changes}  # noqa: TID251 - the one reader


def export_environment(variables: dict[str, str]) -> None:
    """Set variables in this process's environment, for libraries that read nothing else."""
    os.environ.update(variables)  # noqa: TID251 - the one writer
