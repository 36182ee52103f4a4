"""Scheduler: nodes, devices, jobs, runs and allocations.

The DDL is the SQL file beside this one.
"""

from pathlib import Path

from alembic import op

revision = "0003_scheduler"
down_revision = "0002_vouchers"
branch_labels = None
depends_on = None

_DDL = Path(__file__).with_suffix(".sql")


def upgrade() -> None:
    op.get_bind().exec_driver_sql(_DDL.read_text(encoding="utf-8"))
