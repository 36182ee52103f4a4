"""The ledger: accounts, transfers, the hold cache, the entries view, and the functions that alone write them.

The DDL is two SQL files beside this one. The application role may read everything and write nothing: it posts
by calling `ledger_open_accounts`, `ledger_post` and `ledger_post_plain`, which run as the owner.
"""

from pathlib import Path

from alembic import op

revision = "0001_ledger"
down_revision = None
branch_labels = None
depends_on = None

_HERE = Path(__file__).parent


def upgrade() -> None:
    for name in ("0001_ledger_tables.sql", "0001_ledger_functions.sql"):
        _run((_HERE / name).read_text(encoding="utf-8"))


def downgrade() -> None:
    _run("""
        DROP FUNCTION ledger_post, ledger_post_plain, ledger_open_accounts;
        DROP VIEW entries;
        DROP TABLE holds, transfers, accounts;
        DROP DOMAIN account_name, asset, account_total, account_version, entry_sequence,
            transfer_kind, transfer_amount, transfer_movement, transfer_cause;
        DROP FUNCTION ledger_refuse_change, ledger_accounts_exist;
    """)


def _run(script: str) -> None:
    # Straight to psycopg: without parameters it sends a script of many statements as it stands.
    op.get_bind().connection.cursor().execute(script)
