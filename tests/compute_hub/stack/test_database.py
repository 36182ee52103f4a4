"""Which database an operator's commands work on."""

from pathlib import Path

import pytest

from compute_hub.settings import Settings
from compute_hub.stack.database import NoDatabase, migrate_database
from kernel.clock import utc_now


def test_only_a_database_of_the_operators_own_is_migrated_by_command(tmp_path: Path) -> None:
    with pytest.raises(NoDatabase, match="HUB_DATABASE_URL: name the database"):
        migrate_database(Settings(state_directory=tmp_path, database_url=None), utc_now())
