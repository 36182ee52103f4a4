"""Answers already given, so that a repeated request with the same Idempotency-Key gets the first answer again."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.database import Table


class IdempotencyRow(Table):
    """The first answer to a principal's key, with the digest of what was asked."""

    __tablename__ = "idempotency_keys"

    principal_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    request_sha256: Mapped[str] = mapped_column(Text)
    answer: Mapped[dict[str, Any]]
    answered_at: Mapped[datetime]
