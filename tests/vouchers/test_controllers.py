"""Who controls whom stays a forest, however many record it at once and whatever the code does."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from kernel.database import transaction
from tests.vouchers.world import NOW, World
from vouchers.domain.controllers import ControllerCycle
from vouchers.enterprises import record_controller

INSERT = text("INSERT INTO controllers VALUES (:controlled, :controller, 'x', now())")


def test_two_who_record_each_others_half_of_a_circle_do_not_close_it(world: World) -> None:
    def second() -> None:
        with transaction(world.engine) as session:
            record_controller(session, "north", "south", by="x", at=NOW)

    with ThreadPoolExecutor(1) as pool:
        with transaction(world.engine) as session:
            record_controller(session, "south", "north", by="x", at=NOW)
            waiting = pool.submit(second)
            with world.engine.connect() as watching:
                asked = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
                while not waiting.done() and not watching.execute(asked).scalar_one():
                    watching.rollback()
        with pytest.raises(ControllerCycle):
            waiting.result()


def test_the_database_itself_refuses_a_circle(world: World) -> None:
    with world.engine.begin() as connection:
        for controlled, controller in (("a", "b"), ("b", "c"), ("d", "c")):
            connection.execute(INSERT, {"controlled": controlled, "controller": controller})
    with (
        pytest.raises(IntegrityError, match="already"),
        world.engine.begin() as connection,
    ):
        connection.execute(INSERT, {"controlled": "c", "controller": "a"})
    with pytest.raises(IntegrityError), world.engine.begin() as connection:
        connection.execute(text("UPDATE controllers SET controller = 'a' WHERE controlled = 'b'"))
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE controllers SET controller = 'e' WHERE controlled = 'b'"))
