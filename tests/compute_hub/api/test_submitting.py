"""Submissions that come together: one transaction, each accepted or refused by itself."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Connection, Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from compute_hub.api.call import Call
from compute_hub.api.idempotency import IdempotencyKeyReused, first_answer, keyed
from compute_hub.api.job_submission import JobSubmission
from compute_hub.api.job_views import JobView
from compute_hub.api.submitting import NotTogether, Submission, Submitted, submit_alone, submit_together
from compute_hub.identity.keys import Principal
from compute_hub.identity.roles import Role
from compute_hub.settings import Settings
from kernel.database import open_engine, transaction
from kernel.errors import Unfunded
from kernel.ids import new_id
from kernel.postgres import PrivatePostgres
from scheduler.dependencies import checked_dependencies
from scheduler.jobs import WAKE_CHANNEL
from scheduler.refusals import TooManyLiveJobs, UnknownAccelerator
from scheduler.tables import JobRow, SecretRow
from tests.compute_hub.api.house import Asker, House, job

PATH = "POST /v1/jobs"


def submission(
    house: House, firm: Asker, *, key: str = "", settings: Settings | None = None, **changes: object
) -> Submission:
    """As the API takes it from a firm's request."""
    assert firm.tenant_id is not None
    principal = Principal(firm.tenant_id, "Engineer", Role.TENANT, firm.tenant_id)
    call = Call(house.engine, settings or house.settings, principal, PATH, key or str(new_id()))
    body = JobSubmission(**job(**changes))
    return Submission(call, body, call.keyed(body), "")


def queued(house: House, *firms: Asker) -> int:
    """Jobs that these have."""
    query = select(func.count()).where(JobRow.tenant_id.in_([firm.tenant_id for firm in firms]))
    with transaction(house.engine) as session:
        return session.scalars(query).one()


def ids(answers: Sequence[Submitted | Exception]) -> list[object]:
    """Of those that are queued, and the classes of the errors."""
    return [one.job_id if isinstance(one, Submitted) else type(one) for one in answers]


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Transactions that are ended in the block."""
    ended: list[str] = []

    def note(*_: object) -> None:
        ended.append("commit")

    event.listen(engine, "commit", note)
    yield ended
    event.remove(engine, "commit", note)


@contextmanager
def poisoned(house: House, postgres: PrivatePostgres, name: str) -> Iterator[None]:
    """The database takes no job of this name."""
    with postgres.superuser(str(house.engine.url.database)) as root:
        root.execute(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF NEW.name = '{name}' THEN RAISE 'poison'; END IF; RETURN NEW; END $$"
        )
        root.execute("CREATE TRIGGER poison BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION poison()")
        yield
        root.execute("DROP TRIGGER poison ON jobs")
        root.execute("DROP FUNCTION poison()")


def test_those_that_come_together_are_queued_in_one_transaction_and_each_is_answered_by_itself(
    house: House,
) -> None:
    rich, other, poor = (house.enterprise(yuan) for yuan in ("1000.00", "1000.00", None))
    together = [
        submission(house, rich, name="first"),
        submission(house, rich, accelerator="nobody's"),
        submission(house, poor),
        submission(house, other, name="last"),
    ]
    with statements(house.engine) as ended:
        first, unknown, unfunded, last = submit_together(house.engine, together)
    assert ended == ["commit"]
    assert isinstance(unknown, UnknownAccelerator)
    assert isinstance(unfunded, Unfunded)
    for answer, asked in ((first, together[0]), (last, together[3])):
        assert isinstance(answer, Submitted)
        view = JobView.model_validate_json(answer.answer)
        assert (view.id, view.name, view.state) == (answer.job_id, asked.body.name, "queued")
        assert view.tenant_id == asked.call.tenant_id
    assert [queued(house, firm) for firm in (rich, other, poor)] == [1, 1, 0]
    assert rich.get(f"/v1/jobs/{ids([first])[0]}")["name"] == "first"


def test_a_refused_one_may_be_repeated_under_its_key_and_an_accepted_one_is_answered_again(
    house: House,
) -> None:
    firm = house.enterprise()
    poor, twin = submission(house, firm, key="poor"), submission(house, firm, key="other")
    assert all(isinstance(answer, Exception) for answer in submit_together(house.engine, [poor, twin]))
    house.operator.post(
        f"/v1/enterprises/{firm.tenant_id}/deposits", {"amount_cny": "1000.00", "reference": "late"}
    )
    first = submit_together(house.engine, [poor, twin])
    again = submit_together(house.engine, [twin, poor])
    assert first == list(reversed(again))
    assert queued(house, firm) == 2


def test_a_key_that_comes_twice_is_answered_once_and_another_request_under_it_is_refused(house: House) -> None:
    firm = house.enterprise("1000.00")
    first, second = (submission(house, firm, key="mine") for _ in range(2))
    answered, put_off = submit_together(house.engine, [first, second])
    assert isinstance(put_off, NotTogether)
    assert ids([answered]) == [submit_alone(second).job_id]
    (reused,) = submit_together(house.engine, [submission(house, firm, key="mine", name="another")])
    assert isinstance(reused, IdempotencyKeyReused)
    assert queued(house, firm) == 1


def test_who_asks_under_a_key_that_somebody_is_at_waits_alone(house: House) -> None:
    firm = house.enterprise("1000.00")
    mine = submission(house, firm, key="taken")
    with transaction(house.engine) as session:
        assert first_answer(session, mine.keyed) is None
        put_off, queued_at_once = submit_together(house.engine, [mine, submission(house, firm)])
        assert isinstance(put_off, NotTogether)
        assert isinstance(queued_at_once, Submitted)


@pytest.mark.parametrize("named", ["depends_on", "secrets"])
def test_who_waits_for_another_request_of_its_tenant_waits_alone(house: House, named: str) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    assert firm.tenant_id is not None
    needed = UUID(firm.post("/v1/jobs", job(held=True))["id"])
    firm.ask("PUT", "/v1/secrets/token", {"value": "hidden"})
    depends_on, secrets = ([str(needed)], []) if named == "depends_on" else ([], ["token"])
    waiting = submission(house, firm, depends_on=depends_on, secrets=secrets)
    with transaction(house.engine) as session:
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10s'"))  # nobody waits for ever
        checked_dependencies(session, None, [needed], tenant_id=firm.tenant_id)
        session.get_one(SecretRow, (firm.tenant_id, "token"), with_for_update=True)
        put_off, *others = submit_together(
            house.engine, [waiting, submission(house, firm), submission(house, other)]
        )
        assert session.scalar(text("SELECT 1")) == 1
    assert isinstance(put_off, NotTogether)
    assert all(isinstance(one, Submitted) for one in others)
    assert submit_alone(waiting) == submit_alone(waiting)
    assert (queued(house, firm), queued(house, other)) == (3, 1)


def test_over_http_a_key_that_somebody_is_at_holds_nobody_else_up(house: House) -> None:
    firm = house.enterprise("1000.00")
    with transaction(house.engine) as session:
        row = session.execute(
            text("SELECT principal_id FROM api_keys WHERE tenant_id = :t"), {"t": firm.tenant_id}
        )
        taken = keyed(row.scalar_one(), PATH, "taken", None)
    with ThreadPoolExecutor(1) as pool:
        with transaction(house.engine) as session:
            assert first_answer(session, taken) is None
            slow = pool.submit(firm.post, "/v1/jobs", job(), headers={"Idempotency-Key": "taken"})
            assert firm.post("/v1/jobs", job())["state"] == "queued"
            waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while not session.scalar(waiting):
                assert not slow.done()
            assert firm.post("/v1/jobs", job())["state"] == "queued"
            assert not slow.done()
        assert slow.result(30)["state"] == "queued"
    assert queued(house, firm) == 3


def test_what_the_database_refuses_takes_nobody_with_it(house: House, postgres: PrivatePostgres) -> None:
    firm = house.enterprise("1000.00")
    with poisoned(house, postgres, "poison"):
        together = [submission(house, firm, name=name) for name in ("good", "poison", "fine")]
        with house.untouched():
            answers = submit_together(house.engine, together)
        assert ids(answers) == [NotTogether] * 3
        for one in (together[0], together[2]):
            submit_alone(one)
        with pytest.raises(DBAPIError, match="poison"):
            submit_alone(together[1])
        defect = httpx.post(f"{house.server.url}/v1/jobs", headers=headers(firm), json=job(name="poison"))
        assert defect.status_code == 500
    assert queued(house, firm) == 2
    assert firm.post("/v1/jobs", job(name="poison"))["name"] == "poison"


def test_a_tenants_bound_counts_those_that_come_with_it(house: House) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    bound = house.settings.model_copy(update={"live_jobs_per_tenant_max": 3})
    together = [submission(house, firm, settings=bound) for _ in range(5)]
    together.insert(1, submission(house, other, settings=bound))
    answers = submit_together(house.engine, together)
    assert [isinstance(answer, Submitted) for answer in answers] == [True] * 4 + [False] * 2
    assert all(isinstance(answer, TooManyLiveJobs) for answer in answers[4:])
    assert (queued(house, firm), queued(house, other)) == (3, 1)


def test_the_controller_hears_of_all_that_come_together_once(house: House) -> None:
    firm = house.enterprise("1000.00")
    with house.engine.connect() as connection:
        driver = connection.execution_options(isolation_level="AUTOCOMMIT").connection.driver_connection
        assert driver is not None
        driver.execute(f"LISTEN {WAKE_CHANNEL}")
        submit_together(house.engine, [submission(house, firm) for _ in range(3)])
        assert len(list(driver.notifies(timeout=10, stop_after=1))) == 1
        assert list(driver.notifies(timeout=0)) == []
        driver.execute(f"UNLISTEN {WAKE_CHANNEL}")


def test_when_the_connection_breaks_nobody_is_told_that_nothing_was_done(
    house: House, postgres: PrivatePostgres
) -> None:
    firm = house.enterprise("1000.00")
    away = open_engine(house.engine.url.render_as_string(hide_password=False))

    def hang_up(connection: Connection, *_: object) -> None:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        with postgres.superuser() as root:
            root.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])

    event.listen(away, "commit", hang_up)
    mine = submission(house, firm)
    with pytest.raises(DBAPIError) as broken:
        submit_together(away, [mine, submission(house, firm)])
    assert broken.value.connection_invalidated
    away.dispose()
    assert isinstance(submit_together(house.engine, [mine])[0], Submitted)
    assert queued(house, firm) == 1


def test_over_http_many_clients_at_once_get_their_own_answers(house: House) -> None:
    firms = [house.enterprise("1000.00") for _ in range(4)]

    def ask(number: int) -> tuple[str, str]:
        firm = firms[number % 4]
        if number % 5 == 0:
            return firm.refused(
                422, "unknown_accelerator", "POST", "/v1/jobs", job(accelerator=f"m{number}")
            ), ""
        made = firm.post("/v1/jobs", job(name=f"job {number}"))
        assert made["tenant_id"] == str(firm.tenant_id)
        return made["name"], made["id"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(80)))
    for number, (said, _) in enumerate(answers):
        assert f"m{number}" in said if number % 5 == 0 else said == f"job {number}"
    assert len({job_id for _, job_id in answers if job_id}) == queued(house, *firms) == 64


def headers(firm: Asker) -> dict[str, str]:
    """Of a request that has an effect."""
    return {"Authorization": f"Bearer {firm.key}", "Idempotency-Key": str(new_id())}
