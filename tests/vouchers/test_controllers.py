"""Who controls whom stays a forest, however many record it at once and whatever the code does."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from kernel.database import transaction
from tests.vouchers.world import NOW, World
from vouchers.domain.controllers import ControllerCycle
from vouchers.enterprises import record_controller

INSERT = text("INSERT INTO controllers VALUES (:controlled, :version, :controller, '', 'x', now())")
END = text("UPDATE controllers SET ended_at = now() WHERE controlled = :controlled AND ended_at IS NULL")
REOPEN = text("UPDATE controllers SET ended_at = NULL WHERE controlled = :controlled AND version = 1")


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
    def record(connection: Connection, controlled: str, controller: str, version: int = 1) -> None:
        connection.execute(INSERT, {"controlled": controlled, "controller": controller, "version": version})

    with world.engine.begin() as connection:
        for controlled, controller in (("a", "b"), ("b", "c"), ("d", "c")):
            record(connection, controlled, controller)
    with pytest.raises(IntegrityError, match="already"), world.engine.begin() as connection:
        record(connection, "c", "a")
    with pytest.raises(IntegrityError, match="already"), world.engine.begin() as connection:
        connection.execute(END, {"controlled": "b"})
        record(connection, "b", "a", 2)
    with pytest.raises(IntegrityError, match="in_force"), world.engine.begin() as connection:
        record(connection, "b", "e", 2)
    with world.engine.begin() as connection:
        connection.execute(END, {"controlled": "b"})
        record(connection, "b", "e", 2)
        record(connection, "c", "a")
    with pytest.raises(IntegrityError, match="already"), world.engine.begin() as connection:
        connection.execute(END, {"controlled": "b"})
        connection.execute(REOPEN, {"controlled": "b"})
