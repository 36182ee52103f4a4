"""Brings a database to the newest schema with Alembic; the owner role runs it, the application never does."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config

_SCRIPTS: Final = Path(__file__).resolve().parent.parent / "migrations"


def migrate(owner_url: str) -> None:
    """Apply every migration that is missing, each in its own transaction.

    Args:
        owner_url: SQLAlchemy URL of the database as its owner role.
    """
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.set_main_option("sqlalchemy.url", owner_url.replace("%", "%%"))
    command.upgrade(config, "head")
