"""What a tenant entrusts to its jobs: stored sealed, never shown again, given to a job as files only.

A sealed value names its tenant and itself, so that a row moved elsewhere opens nothing. Invariant: nothing but a run
that is about to start gets a value in clear.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Text, any_, cast, func, literal, select, tuple_
from sqlalchemy.orm import Session

from kernel.errors import HubError
from scheduler.refusals import (
    SecretInUse,
    SecretNotFound,
    SecretsTooLarge,
    SecretTooLargeForJob,
    TooManySecrets,
    UnknownSecret,
)
from scheduler.tables import JobRow, SecretRow

_log = structlog.get_logger(__name__)

TOTAL_BYTES_MAX: Final = 64 * 1024
"""Of all secrets of one job, which is what a node's supervisor takes."""


SECRETS_MAX: Final = 500
"""Of one tenant."""


class SealBroken(HubError):
    """A stored value that no key opens, or that was sealed for something else."""

    sentence = "The secret {name!r} of tenant {tenant} cannot be opened; it must be stored anew."


class Vault:
    """Seals and opens values.

    Args:
        keys: Fernet keys; the first seals, all open, so that keys can be changed.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def seal(self, tenant_id: UUID, name: str, value: str) -> bytes:
        """The value as it may be stored."""
        return self._fernet.encrypt(json.dumps([str(tenant_id), name, value]).encode())

    def open(self, row: SecretRow) -> str:
        """The value in clear. Raises SealBroken."""
        try:
            tenant, name, value = json.loads(self._fernet.decrypt(row.sealed))
        except (InvalidToken, ValueError) as error:
            raise SealBroken(name=row.name, tenant=row.tenant_id) from error
        if (tenant, name) != (str(row.tenant_id), row.name):
            raise SealBroken(name=row.name, tenant=row.tenant_id)
        return str(value)


def new_vault_key() -> bytes:
    """A fresh key for a vault."""
    return Fernet.generate_key()


def put_secret(
    session: Session, vault: Vault, tenant_id: UUID, name: str, value: str, at: datetime
) -> SecretRow:
    """Store a value under a name, in place of the one before; jobs that start from now on get it.

    Raises:
        TooManySecrets: the tenant keeps as many as it may.
        SecretTooLargeForJob: a job that names it, with others, could not start any more.
    """
    session.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(literal(f"secrets {tenant_id}"), 0)))
    )
    row = session.get(SecretRow, (tenant_id, name), with_for_update=True)
    if row is None:
        count = session.scalar(select(func.count()).where(SecretRow.tenant_id == tenant_id)) or 0
        if count >= SECRETS_MAX:
            raise TooManySecrets(most=SECRETS_MAX)
        row = SecretRow(tenant_id=tenant_id, name=name, created_at=at)
        session.add(row)
    else:
        _refuse_too_large_for_jobs(session, tenant_id, name, len(value.encode()))
    row.sealed, row.size_bytes, row.updated_at = vault.seal(tenant_id, name, value), len(value.encode()), at
    session.flush()
    return row


def _refuse_too_large_for_jobs(session: Session, tenant_id: UUID, name: str, size_bytes: int) -> None:
    """What was checked when a job was submitted must hold when it starts."""
    alike = (
        select(JobRow.secrets, func.min(cast(JobRow.id, Text)))
        .where(JobRow.tenant_id == tenant_id, JobRow.ended_at.is_(None), any_(JobRow.secrets) == name)
        .group_by(JobRow.secrets)
        .order_by(JobRow.secrets)
    )
    jobs = session.execute(alike).all()
    if not jobs:
        return
    sized = select(SecretRow.name, SecretRow.size_bytes).where(SecretRow.tenant_id == tenant_id)
    sizes = dict(session.execute(sized).all()) | {name: size_bytes}
    for names, job_id in jobs:
        total = sum(sizes.get(one, 0) for one in names)
        if total > TOTAL_BYTES_MAX:
            raise SecretTooLargeForJob(job_id=job_id, total=total, most=TOTAL_BYTES_MAX)


def list_secrets(session: Session, tenant_id: UUID) -> Sequence[SecretRow]:
    """A tenant's secrets by name."""
    return session.scalars(
        select(SecretRow).where(SecretRow.tenant_id == tenant_id).order_by(SecretRow.name)
    ).all()


def delete_secret(session: Session, tenant_id: UUID, name: str) -> SecretRow:
    """Forget a secret that no job still needs. Raises SecretNotFound, SecretInUse."""
    row = session.get(SecretRow, (tenant_id, name), with_for_update=True)
    if row is None:
        raise SecretNotFound(name=name)
    user = session.scalars(
        select(JobRow.id)
        .where(JobRow.tenant_id == tenant_id, JobRow.ended_at.is_(None), any_(JobRow.secrets) == name)
        .order_by(JobRow.id)
        .limit(1)
    ).one_or_none()
    if user is not None:
        raise SecretInUse(name=name, job_id=user)
    session.delete(row)
    session.flush()
    return row


def checked_secrets(session: Session, tenant_id: UUID, names: Sequence[str]) -> list[str]:
    """The names, each once; the rows stay locked against being forgotten. Raises UnknownSecret, SecretsTooLarge."""
    wanted = sorted(set(names))
    if not wanted:
        return []
    rows = session.scalars(
        select(SecretRow)
        .where(SecretRow.tenant_id == tenant_id, SecretRow.name.in_(wanted))
        .order_by(SecretRow.name)
        .with_for_update(read=True)
    ).all()
    missing = sorted(set(wanted) - {row.name for row in rows})
    if missing:
        raise UnknownSecret(field="secrets", name=missing[0])
    total = sum(row.size_bytes for row in rows)
    if total > TOTAL_BYTES_MAX:
        raise SecretsTooLarge(field="secrets", total=total, most=TOTAL_BYTES_MAX)
    return wanted


def opened_secrets(
    session: Session, vault: Vault | None, jobs: Sequence[JobRow]
) -> Mapping[UUID, dict[str, str]]:
    """By job, its secrets in clear; one that does not open is left out, loudly, and its job will notice.

    Args:
        session: to read with.
        vault: opens them; without one nobody gets any.
        jobs: about to start.
    """
    wanted = sorted({(job.tenant_id, name) for job in jobs for name in job.secrets})
    if vault is None or not wanted:
        return {}
    named = tuple_(SecretRow.tenant_id, SecretRow.name)
    values: dict[tuple[UUID, str], str] = {}
    for row in session.scalars(select(SecretRow).where(named.in_(wanted))):
        try:
            values[row.tenant_id, row.name] = vault.open(row)
        except SealBroken as broken:
            _log.error("secret_not_opened", reason=str(broken))
    return {
        job.id: {name: values[job.tenant_id, name] for name in job.secrets if (job.tenant_id, name) in values}
        for job in jobs
    }
