"""What the application's own role may not do to vouchers, whatever its code says."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from kernel.database import transaction
from tests.vouchers.world import World

FORBIDDEN = [
    "UPDATE vouchers SET face = face * 2",
    "UPDATE vouchers SET expires_at = now()",
    "UPDATE coverage_lines SET amount_micros = 0",
    "UPDATE covered_charges SET cost_micros = 0",
    "UPDATE claims SET amount = 1",
    "UPDATE claim_lines SET amount = 1",
    "UPDATE hold_lines SET held = 1",
    "UPDATE programme_versions SET document = '{}'",
    "UPDATE appropriations SET amount = 1",
    "UPDATE application_checks SET verdict = 'pass'",
    "UPDATE application_steps SET actor = 'x'",
    "UPDATE claim_steps SET actor = 'x'",
    "UPDATE restorations SET reason = 'x'",
    "UPDATE charge_stretches SET until_micros = 1",
    "DELETE FROM vouchers",
    "DELETE FROM coverage_lines",
    "DELETE FROM covered_charges",
    "DELETE FROM claims",
    "DELETE FROM claim_lines",
    "DELETE FROM application_steps",
    "DELETE FROM restorations",
    "DELETE FROM charge_stretches",
    "DELETE FROM controllers",
    "UPDATE controllers SET controller = 'x'",
    "DELETE FROM enterprise_versions",
    "UPDATE enterprise_versions SET size_class = 'startup'",
    "TRUNCATE vouchers CASCADE",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_decided_amounts_and_recorded_steps_are_out_of_the_applications_reach(
    world: World, statement: str
) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"), transaction(world.engine) as session:
        session.execute(text(statement))
