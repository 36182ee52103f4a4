from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from kernel.migrations import migrate
from migrations.schema import metadata
from tests.conftest import Database


def test_the_migrated_database_is_what_the_tables_say(database: Database) -> None:
    engine = create_engine(database.owner_url)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
        checks = connection.execute(
            text("SELECT conname FROM pg_constraint WHERE contype IN ('c', 'x')")
        ).scalars()
        found = set(checks)
    engine.dispose()
    assert differences == []
    named = {
        constraint.name
        for table in metadata.tables.values()
        for constraint in table.constraints
        if type(constraint).__name__ in {"CheckConstraint", "ExcludeConstraint"}
    }
    assert named <= found


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database.owner_url)
