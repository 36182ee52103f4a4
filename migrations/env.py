"""Alembic's entry: online migrations only, on the URL that `kernel.migrations` or the command line gives."""

from alembic import context
from sqlalchemy import NullPool, create_engine

from migrations.schema import metadata

url = context.config.get_main_option("sqlalchemy.url")
assert url is not None  # noqa: S101 - kernel.migrations always sets it

with create_engine(url, poolclass=NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
