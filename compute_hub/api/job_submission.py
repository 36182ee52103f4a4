"""What an enterprise says of a job it wants run, checked for what can be checked without looking at the centre."""

import signal
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from compute_hub.api.shapes import Body, Id, Instant, Project
from scheduler.jobs import JobRequest

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
VariableValue = Annotated[str, StringConstraints(max_length=8192)]
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$")]
Dependencies = Annotated[list[Id], Field(max_length=1000)]

ENV_BYTES_MAX: Final = 64 * 1024
"""Of all names and values together; the node's own bound is wider."""

ARGV_BYTES_MAX: Final = 64 * 1024
"""Of the program and its arguments together; so is the node's."""

GRACE_S_MAX: Final = 600
"""Seconds that a job may ask for between SIGTERM and SIGKILL."""

SLOTS_MILLI_MIN: Final = 20
"""The smallest part of a device: 50 jobs share one at most, so nobody takes all runs of a node with little."""


class Priority(StrEnum):
    """Among a tenant's own jobs, a higher class goes first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


PRIORITIES: Final = {Priority.LOW: -100, Priority.NORMAL: 0, Priority.HIGH: 100}


class JobSubmission(Body):
    """What an enterprise wants run. Counts are per node; limits are enforced.

    Either `accelerator` names models, in order of preference, or `min_pflops` accepts every model that fast. With
    `kind` "ray" a private Ray cluster stands on the allocation when the program begins, and `ray.init()` finds it.
    Without an `environment` it gets the centre's usual one; with an empty one nothing but the nodes' own programs.
    A job of a `project` is paid from the parts of vouchers that are kept for it, and within its budget.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=120)]
    argv: Annotated[
        list[Annotated[str, StringConstraints(max_length=4096)]], Field(min_length=1, max_length=256)
    ]
    accelerator: Annotated[list[ModelName], Field(min_length=1, max_length=16)] | ModelName | None = None
    min_pflops: Annotated[float, Field(gt=0, le=100_000, strict=False)] | None = None
    environment: Annotated[str, StringConstraints(max_length=63)] | None = None
    kind: Literal["ray"] | None = None
    nodes: Annotated[int, Field(ge=1, le=10_000)] = 1
    devices_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    slots_milli: Annotated[int, Field(ge=SLOTS_MILLI_MIN, le=1000)] = 1000
    topology: Literal["pack", "same-switch", "spread"] = "pack"
    cpu_milli: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    memory_mib: Annotated[int, Field(ge=1, le=16_777_216)] = 1024
    time_limit_s: Annotated[int, Field(ge=1, le=31 * 86_400)]
    grace_s: Annotated[int, Field(ge=0, le=GRACE_S_MAX)] = 10
    notice_signal: Literal["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGURG"] | None = None
    priority: Annotated[Priority, Field(strict=False)] = Priority.NORMAL
    preemptible: bool = False
    not_before: Instant | None = None
    depends_on: Dependencies = Field(default_factory=list)
    held: bool = False
    max_retries: Annotated[int, Field(ge=0, le=100)] = 0
    retry_on: Literal["lost", "failure"] = "lost"
    network: Literal["none", "job"] | None = None
    upload_sha256: str | None = None
    env: dict[VariableName, VariableValue] = Field(default_factory=dict, max_length=128)
    secrets: Annotated[list[SecretName], Field(max_length=64)] = Field(default_factory=list)
    voucher_ids: Annotated[list[Id], Field(max_length=32)] | None = None
    project: Project | None = None

    @model_validator(mode="after")
    def _says_on_what(self) -> "JobSubmission":
        if self.accelerator is None and self.min_pflops is None:
            raise PydanticCustomError(
                "no_accelerator", "accelerator: name a model, or say with min_pflops how fast it must be"
            )
        if self.kind == "ray" and self.network == "none":
            raise PydanticCustomError(
                "ray_needs_network", "network: the ranks of a Ray job talk to each other; leave it out"
            )
        words = sum(len(word.encode()) + 1 for word in self.argv)
        if words > ARGV_BYTES_MAX:
            raise PydanticCustomError(
                "arguments_too_large",
                "argv: has {size} bytes; at most {most} are allowed. Put large values into a file of the upload",
                {"size": words, "most": ARGV_BYTES_MAX},
            )
        size = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in self.env.items())
        if size > ENV_BYTES_MAX:
            raise PydanticCustomError(
                "environment_too_large",
                "env: has {size} bytes; at most {most} are allowed. Put large values into a file of the upload",
                {"size": size, "most": ENV_BYTES_MAX},
            )
        return self

    def request(self, default_environment: str) -> JobRequest:
        """The same in the scheduler's words; the centre's usual environment, unless it names one."""
        named = self.accelerator or []
        return JobRequest(
            name=self.name,
            argv=self.argv,
            models=[named] if isinstance(named, str) else named,
            min_pflops_milli=round((self.min_pflops or 0) * 1000),
            environment=default_environment if self.environment is None else self.environment,
            node_count=self.nodes,
            devices_per_node=self.devices_per_node,
            slots_milli=self.slots_milli,
            cpu_milli=self.cpu_milli,
            memory_mib=self.memory_mib,
            time_limit_ms=self.time_limit_s * 1000,
            grace_ms=self.grace_s * 1000,
            notice_signal=0 if self.notice_signal is None else signal.Signals[self.notice_signal],
            priority=PRIORITIES[self.priority],
            preemptible=self.preemptible,
            topology=self.topology,
            not_before=self.not_before,
            depends_on=self.depends_on,
            held=self.held,
            max_retries=self.max_retries,
            retry_on=self.retry_on,
            network=self.network or ("job" if self.nodes > 1 or self.kind else "none"),
            kind=self.kind or "",
            upload_sha256=self.upload_sha256,
            env=self.env,
            secrets=self.secrets,
        )


class ArraySubmission(Body):
    """Many jobs that differ in `HUB_ARRAY_INDEX` only, 0 to `size` - 1; at most `running_max` run at once."""

    job: JobSubmission
    size: Annotated[int, Field(ge=1, le=1000)]
    running_max: Annotated[int, Field(ge=1, le=1000)] | None = None


class DependencyChange(Body):
    """What a waiting job is to wait for from now on: ids of jobs and arrays; none waits for nothing."""

    depends_on: Dependencies
