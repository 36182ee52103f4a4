"""Which database this installation uses: the operator's, or the private one below the state directory."""

from datetime import datetime
from typing import Final

from sqlalchemy import Engine

from compute_hub.billing.rates import set_rate
from compute_hub.billing.tables import RateRow
from compute_hub.settings import Settings
from kernel.database import open_engine, transaction
from kernel.errors import Invalid
from kernel.ids import derived_id
from kernel.migrations import migrate
from kernel.money import parse_yuan
from kernel.postgres import OWNER_ROLE, PrivatePostgres

_NAME: Final = "hub"


class NoDatabase(Invalid):
    """There is none of the operator's own to migrate."""

    sentence = "{field}: name the database, and HUB_MIGRATION_URL its owner; `hub up` migrates one of its own."


def private_server(settings: Settings) -> PrivatePostgres:
    """The private PostgreSQL of this installation, not yet started."""
    return PrivatePostgres(settings.state_directory.resolve() / "postgres")


def application_url(settings: Settings) -> str:
    """The URL every process of the hub uses."""
    return settings.database_url or private_server(settings).url(_NAME)


def prepare_database(settings: Settings, at: datetime) -> PrivatePostgres | None:
    """Start the private server if the operator named no database; then migrate, and set configured first prices."""
    if settings.database_url is not None:
        migrate_database(settings, at)
        return None
    server = private_server(settings)
    server.start()
    server.create_database(_NAME)
    _migrate(settings, server.url(_NAME, OWNER_ROLE), at)
    return server


def migrate_database(settings: Settings, at: datetime) -> None:
    """Bring the operator's database to this version, and set configured first prices. Raises NoDatabase."""
    if settings.database_url is None:
        raise NoDatabase(field="HUB_DATABASE_URL")
    _migrate(settings, settings.migration_url or settings.database_url, at)


def _migrate(settings: Settings, owner_url: str, at: datetime) -> None:
    migrate(owner_url)
    engine = open_engine(application_url(settings), pool_size=1)
    _first_prices(engine, settings, at)
    engine.dispose()


def _first_prices(engine: Engine, settings: Settings, at: datetime) -> None:
    with transaction(engine) as session:
        known = {rate.model for rate in session.query(RateRow)}
        for price in settings.prices:
            if price.model not in known:
                micros = parse_yuan(price.price_cny_per_card_hour, field="price_cny_per_card_hour")
                set_rate(
                    session,
                    price.model,
                    micros,
                    effective_from=at,
                    by=derived_id("principal", "configuration"),
                    at=at,
                )
