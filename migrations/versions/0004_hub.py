"""The hub: API keys, repeated requests, usage, rates, charges and the funding of jobs.

The DDL is the SQL file beside this one.
"""

from pathlib import Path

from alembic import op

revision = "0004_hub"
down_revision = "0003_scheduler"
branch_labels = None
depends_on = None

_DDL = Path(__file__).with_suffix(".sql")


def upgrade() -> None:
    # Straight to psycopg: without parameters it sends a script of many statements as it stands.
    op.get_bind().connection.cursor().execute(_DDL.read_text(encoding="utf-8"))
