"""API keys. A key is stored as the SHA-256 of its 192 random bits, so a copy of this table opens nothing."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class ApiKeyRow(Table):
    """One key of one principal (a person or a program) in one role."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(
            "role IN ('authority', 'first_reviewer', 'approver', 'operator', 'tenant', 'auditor')", name="role"
        ),
        CheckConstraint("(role = 'tenant') = (tenant_id IS NOT NULL)", name="tenant"),
        CheckConstraint(
            "authority IS NULL OR role IN ('authority', 'first_reviewer', 'approver')", name="authority"
        ),
        CheckConstraint("length(key_sha256) = 32", name="digest"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    key_sha256: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    principal_id: Mapped[UUID]
    principal_name: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    tenant_id: Mapped[UUID | None]
    authority: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
