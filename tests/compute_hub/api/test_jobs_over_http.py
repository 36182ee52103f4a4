"""What an enterprise can ask of a job, and what is refused, over HTTP."""

from typing import Any
from uuid import UUID

from sqlalchemy import update

from compute_hub.sdk import HubClient
from kernel.database import transaction
from kernel.ids import derived_id
from scheduler.tables import JobRow, NodeRow
from tests.compute_hub.api.house import HOST, MODEL, House, job

NOBODY = "00000000-0000-0000-0000-000000000000"


def test_a_job_shows_everything_that_was_asked_of_it(house: House) -> None:
    firm = house.enterprise("1000.00")
    first = firm.post("/v1/jobs", job())
    asked: dict[str, Any] = {
        "priority": "high",
        "preemptible": True,
        "topology": "same-switch",
        "not_before": "2100-01-01T00:00:00Z",
        "depends_on": [first["id"]],
        "held": True,
        "max_retries": 2,
        "retry_on": "failure",
        "time_limit_s": 60,
    }
    shown = firm.get(f"/v1/jobs/{firm.post('/v1/jobs', job(**asked))['id']}")
    assert {name: shown[name] for name in asked} == asked
    assert (shown["attempt"], shown["preemptions"], shown["retry_at"]) == (0, 0, None)
    assert shown["reason"] == "held; it starts after it is released"
    assert firm.get(f"/v1/jobs/{shown['id']}/attempts")["items"] == []


def test_a_job_that_names_no_environment_gets_the_usual_one_and_may_have_none(house: House) -> None:
    firm = house.enterprise("1000.00")
    asked = [
        job(),
        job(environment="llm", argv=["serve", "--model"]),
        job(environment=None),
        job(environment=""),
    ]
    del asked[0]["environment"]
    shown = [firm.post("/v1/jobs", one)["environment"] for one in asked]
    assert shown == ["digits", "llm", "digits", ""]
    assert [one["name"] for one in firm.get("/v1/environments")["environments"] if one["usual"]] == ["digits"]
    words = firm.refused(422, "unknown_environment", "POST", "/v1/jobs", job(environment="other"))
    assert "there are digits, llm" in words


def test_min_pflops_accepts_every_model_that_fast(house: House) -> None:
    firm = house.enterprise("1000.00")
    with transaction(house.engine) as session:
        session.connection().exec_driver_sql(
            "UPDATE nodes SET labels = '{\"pflops\": \"0.256\"}' WHERE name = 'a'"
        )
    taken = firm.post("/v1/jobs", job(accelerator=None, min_pflops=0.2))
    assert taken["accelerator"] == [MODEL]
    words = firm.refused(422, "too_slow_accelerators", "POST", "/v1/jobs", job(min_pflops=0.3))
    assert words.startswith("min_pflops: a job asks for devices of at least 0.3 PFLOPS")


def test_a_waiting_job_is_held_and_released_again_and_an_ended_one_is_not(house: House) -> None:
    firm = house.enterprise("1000.00")
    path = f"/v1/jobs/{firm.post('/v1/jobs', job())['id']}"
    assert firm.post(f"{path}:hold")["held"]
    assert firm.post(f"{path}:hold")["reason"] == "held; it starts after it is released"
    assert not firm.post(f"{path}:release")["held"]
    firm.post(f"{path}:cancel")
    with house.untouched():
        assert "Only a job that waits" in firm.refused(409, "job_not_waiting", "POST", f"{path}:hold")
        firm.refused(409, "job_not_waiting", "POST", f"{path}:release")
        firm.refused(409, "job_not_waiting", "POST", f"{path}:depend", {"depends_on": []})


def test_dependencies_that_would_never_end_are_refused(house: House) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    first, second, third = (firm.post("/v1/jobs", job())["id"] for _ in range(3))
    assert firm.post(f"/v1/jobs/{second}:depend", {"depends_on": [first]})["depends_on"] == [first]
    firm.post(f"/v1/jobs/{third}:depend", {"depends_on": [second, second]})
    with house.untouched():
        cycle = (422, "dependency_cycle", "POST", f"/v1/jobs/{first}:depend")
        words = firm.refused(*cycle, {"depends_on": [third]})
        assert words.startswith(
            f"depends_on: job {first} would wait for itself: {first} -> {third} -> {second}"
        )
        firm.refused(*cycle, {"depends_on": [first]})
        firm.refused(404, "dependency_not_found", "POST", f"/v1/jobs/{first}:depend", {"depends_on": [NOBODY]})
        other.refused(404, "dependency_not_found", "POST", "/v1/jobs", job(depends_on=[first]))
        other.refused(404, "job_not_found", "POST", f"/v1/jobs/{first}:depend", {"depends_on": []})
    with transaction(house.engine) as session:
        session.connection().exec_driver_sql(
            f"UPDATE jobs SET state = 'failed', ended_at = now() WHERE id = '{first}'"
        )
    with house.untouched():
        words = firm.refused(409, "dependency_will_not_succeed", "POST", "/v1/jobs", job(depends_on=[first]))
        assert words.endswith("has already ended (failed), so waiting for it would never end. Leave it out.")
    assert firm.post(f"/v1/jobs/{second}:depend", {"depends_on": []})["depends_on"] == []


def test_an_array_is_one_thing_with_an_index(house: House) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    array = firm.post("/v1/job-arrays", {"job": job(), "size": 12, "running_max": 2})
    assert (array["size"], array["running_max"], array["states"]) == (12, 2, {"queued": 12})
    path = f"/v1/job-arrays/{array['id']}"
    third = firm.get(f"/v1/jobs/{array['id']}.3")
    assert (third["array_id"], third["array_index"]) == (array["id"], 3)
    assert third["id"] == str(derived_id("array job", array["id"], 3))
    seen = [item["array_index"] for item in firm.get("/v1/jobs", array_id=array["id"])["items"]]
    assert sorted(seen) == list(range(12))
    page = firm.get("/v1/jobs", array_id=array["id"], limit=5)
    rest = firm.get("/v1/jobs", array_id=array["id"], after=page["next"])
    assert [item["array_index"] for item in [*page["items"], *rest["items"]]] == seen
    follower = firm.post("/v1/jobs", job(depends_on=[array["id"]]))
    assert len(follower["depends_on"]) == 12
    firm.post(f"/v1/jobs/{array['id']}.3:cancel")
    with house.untouched():
        other.refused(404, "array_not_found", "GET", path)
        other.refused(404, "array_not_found", "POST", f"{path}:cancel")
        firm.refused(404, "job_not_found", "GET", f"/v1/jobs/{array['id']}.12")
        firm.refused(422, "malformed_request", "GET", f"/v1/jobs/{array['id']}.x")
        firm.refused(422, "malformed_request", "POST", "/v1/job-arrays", {"job": job(), "size": 1001})
        large = {"job": job(depends_on=[array["id"]]), "size": 1000}
    with transaction(house.engine) as session:
        assert session.get_one(JobRow, UUID(third["id"])).stop_reason == "cancelled"
    assert firm.post(f"{path}:cancel")["states"] == {"queued": 12}
    assert firm.post("/v1/job-arrays", large | {"size": 2})["states"] == {"queued": 2}


def test_an_array_with_too_many_dependencies_is_refused(house: House) -> None:
    firm = house.enterprise("1000.00")
    array = firm.post("/v1/job-arrays", {"job": job(), "size": 30})
    with house.untouched():
        large = {"job": job(depends_on=[array["id"]]), "size": 1000}
        assert "30 others" in firm.refused(422, "array_too_large", "POST", "/v1/job-arrays", large)


def test_jobs_are_listed_by_state(house: House) -> None:
    firm = house.enterprise("1000.00")
    taken = firm.post("/v1/jobs", job())["id"]
    assert [item["id"] for item in firm.get("/v1/jobs", state="queued")["items"]] == [taken]
    assert firm.get("/v1/jobs", state="failed")["items"] == []
    firm.refused(422, "malformed_request", "GET", "/v1/jobs", params={"state": "lost"})


def test_a_ray_job_says_so_and_its_ranks_may_talk(house: House) -> None:
    firm = house.enterprise("1000.00")
    shown = [firm.post("/v1/jobs", job(**asked)) for asked in ({"kind": "ray"}, {"nodes": 2}, {})]
    assert [one["kind"] for one in shown] == ["ray", "distributed", "batch"]
    with transaction(house.engine) as session:
        assert session.get_one(JobRow, UUID(shown[0]["id"])).network == "job"
    with house.untouched():
        words = firm.refused(422, "malformed_request", "POST", "/v1/jobs", job(kind="ray", network="none"))
        assert "the ranks of a Ray job talk to each other" in words
        firm.refused(422, "malformed_request", "POST", "/v1/jobs", job(kind="slurm"))


def test_a_gang_whose_ranks_talk_is_refused_where_no_machine_has_so_many_nodes_and_none_spans(
    house: House,
) -> None:
    firm = house.enterprise("1000.00")
    on_machines_of_their_own = update(NodeRow).values(host_id=NodeRow.name)
    with transaction(house.engine) as session:
        session.execute(on_machines_of_their_own)
    try:
        for gang in ({"nodes": 2}, {"nodes": 2, "kind": "ray"}):
            for path in ("/v1/jobs", "/v1/jobs:quote"):
                words = firm.refused(422, "gang_beyond_one_machine", "POST", path, job(**gang))
                assert "no more than 1 such nodes" in words
        assert firm.post("/v1/jobs", job(nodes=2, network="none"))["state"] == "queued"
        assert firm.post("/v1/jobs", job(kind="ray"))["state"] == "queued"
        with transaction(house.engine) as session:
            session.execute(update(NodeRow).values(spanning={"address": "192.0.2.1", "problem": ""}))
        assert firm.post("/v1/jobs", job(nodes=2))["state"] == "queued"
    finally:
        with transaction(house.engine) as session:
            session.execute(update(NodeRow).values(host_id=HOST, spanning={}))
    assert firm.post("/v1/jobs", job(nodes=2))["state"] == "queued"


def test_a_client_that_asks_again_under_its_key_has_one_job(house: House) -> None:
    firm = house.enterprise("1000.00")
    with HubClient(house.server.url, firm.key) as hub:
        first, again = (hub.post("/v1/jobs", job(), key="mine")["id"] for _ in range(2))
        assert first == again
        assert hub.post("/v1/jobs", job())["id"] != first
