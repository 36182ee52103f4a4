"""Vouchers: enterprises, programmes, applications, vouchers, holds, coverage and claims.

The DDL is the SQL file beside this one. A state or a cursor may be moved by the application; an amount that was
decided may not, because it has no right to.
"""

from pathlib import Path

from alembic import op

revision = "0002_vouchers"
down_revision = "0001_ledger"
branch_labels = None
depends_on = None

_DDL = Path(__file__).with_suffix(".sql")


def upgrade() -> None:
    # Straight to psycopg: without parameters it sends a script as it stands, signs of per cent included.
    op.get_bind().connection.cursor().execute(_DDL.read_text(encoding="utf-8"))


def downgrade() -> None:
    op.get_bind().exec_driver_sql("ALTER TABLE enterprises DROP CONSTRAINT fk_enterprises_version")
    op.get_bind().exec_driver_sql(
        "DROP TABLE "
        "restorations, charge_stretches, claim_lines, voucher_parts, hold_lines, coverage_lines, "
        "vouchers, objections, application_steps, application_checks, hold_segments, "
        "covered_charges, cycle_closings, claim_steps, appropriations, applications, rounds, "
        "reserve_advances, project_budgets, programme_versions, job_holds, group_members, "
        "claims, related_parties, programmes, enterprise_versions, enterprises, controllers"
    )
    op.get_bind().exec_driver_sql("DROP FUNCTION controllers_refuse_cycle")
