"""An operator's orders to nodes, reservations and what is kept of them; an enterprise may only look at its own."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy.dialects.postgresql import Range

from kernel.clock import utc_now
from kernel.database import transaction
from kernel.ids import new_id
from scheduler.tables import AllocationRow, DeviceRow, JobRow, NodeRow, RunRow
from tests.compute_hub.api.house import MODEL, House, Json, job, node

WHY = {"reason": "fan 3 rattles"}


def _new_node(house: House, devices: int = 2) -> str:
    name = f"node-{house.number()}"
    with transaction(house.engine) as session:
        session.add(node(name))
        session.flush()
        session.add_all(
            DeviceRow(node=name, index=index, model=MODEL, vendor="cambricon", healthy=True)
            for index in range(devices)
        )
    return name


def _shown(house: House, name: str) -> Json:
    return next(one for one in house.auditor.get("/v1/cluster")["nodes"] if one["name"] == name)


def test_the_centre_shows_which_machines_gangs_may_span(house: House) -> None:
    alone, spanning = _new_node(house), _new_node(house)
    with transaction(house.engine) as session:
        for name, said in ((alone, ("", "it is not root")), (spanning, ("192.0.2.7", ""))):
            session.get_one(NodeRow, name).spanning = dict(zip(("address", "problem"), said, strict=True))
    shown = [
        (one["span_address"], one["span_problem"])
        for one in (_shown(house, name) for name in (alone, spanning))
    ]
    assert shown == [("", "it is not root"), ("192.0.2.7", "")]


def _span(begins_h: float, ends_h: float) -> dict[str, str]:
    now = utc_now()
    return {
        "begins_at": (now + timedelta(hours=begins_h)).isoformat(),
        "ends_at": (now + timedelta(hours=ends_h)).isoformat(),
    }


def _runs_on(house: House, firm_job: str, name: str, since_h: float) -> None:
    """A job that has held device 0 of a node for so many hours."""
    begun, run_id = utc_now() - timedelta(hours=since_h), new_id()
    with transaction(house.engine) as session:
        number = session.get_one(DeviceRow, (name, 0)).number
        session.add(
            RunRow(
                id=run_id, job_id=UUID(firm_job), attempt=1, rank=0, node=name, epoch=1, state="running",
                devices=[[0, 0, 1000]], acknowledged=False,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            AllocationRow(
                id=new_id(), run_id=run_id, node=name, device_index=0, model=MODEL,
                slots=Range(number * 1000, number * 1000 + 1000), span=Range(begun, None),
            )
        )  # fmt: skip
        row = session.get_one(JobRow, UUID(firm_job))
        row.state, row.attempt, row.placed_at = "running", 1, begun


def test_a_node_is_cordoned_drained_and_opened_again_and_it_is_kept_who_did_it(house: House) -> None:
    name, operator = _new_node(house), house.operator
    assert _shown(house, name)["standing"] == "up"
    assert operator.post(f"/v1/nodes/{name}:cordon", WHY)["standing"] == "cordoned"
    drained = operator.post(f"/v1/nodes/{name}:drain", WHY | {"deadline_s": 600})
    assert (drained["standing"], drained["drain_by"] is None) == ("drained", False)
    _runs_on(house, house.enterprise("10.00").post("/v1/jobs", job())["id"], name, 0)
    assert _shown(house, name)["standing"] == "draining"
    assert operator.post(f"/v1/nodes/{name}:resume", WHY)["drain_by"] is None
    assert operator.post(f"/v1/nodes/{name}:label", {"labels": {"zone": "east"}})["labels"] == {"zone": "east"}
    events = house.auditor.get("/v1/node-events", node=name)["items"]
    assert [event["kind"] for event in events] == ["labelled", "resumed", "draining", "cordoned"]
    assert {event["by"] for event in events} == {events[0]["by"]}
    assert events[0]["by"] is not None
    assert events[3]["sentence"] == "takes no new jobs: fan 3 rattles"
    page = house.auditor.get("/v1/node-events", node=name, limit=1)
    rest = house.auditor.get("/v1/node-events", node=name, after=page["next"])
    assert [*page["items"], *rest["items"]] == events


def test_one_device_is_cordoned_and_opened_again(house: House) -> None:
    name = _new_node(house)
    shown = house.operator.post(f"/v1/nodes/{name}/devices/1:cordon", WHY)
    assert [device["cordoned"] for device in shown["devices"]] == [False, True]
    shown = house.operator.post(f"/v1/nodes/{name}/devices/1:resume", WHY)
    assert not any(device["cordoned"] for device in shown["devices"])


def test_nodes_are_the_operators_and_no_tenants(house: House) -> None:
    name, firm = _new_node(house), house.enterprise("10.00")
    reservation = {"nodes": {name: []}, **_span(1, 2), **WHY}
    with house.untouched():
        for path in ("cordon", "drain", "resume"):
            firm.refused(403, "wrong_role", "POST", f"/v1/nodes/{name}:{path}", WHY)
            house.authority.refused(403, "wrong_role", "POST", f"/v1/nodes/{name}:{path}", WHY)
        firm.refused(403, "wrong_role", "POST", "/v1/reservations", reservation)
        firm.refused(403, "wrong_role", "GET", "/v1/node-events")
        firm.refused(403, "wrong_role", "GET", "/v1/cluster:demand")


def test_what_cannot_be_meant_of_a_node_is_refused_and_leaves_nothing(house: House) -> None:
    name, operator = _new_node(house), house.operator
    firm = house.enterprise("10.00")
    with house.untouched():
        operator.refused(404, "node_not_found", "POST", "/v1/nodes/nowhere:drain", WHY)
        operator.refused(404, "device_not_found", "POST", f"/v1/nodes/{name}/devices/7:cordon", WHY)
        operator.refused(422, "malformed_request", "POST", f"/v1/nodes/{name}:drain", {"reason": ""})
        operator.refused(422, "malformed_request", "POST", f"/v1/nodes/{name}:drain", WHY | {"deadline_s": -1})
        taken = {"labels": {"hub.link": "127.0.0.1:1"}}
        operator.refused(422, "label_taken", "POST", f"/v1/nodes/{name}:label", taken)
        for nodes, span, tenant, status, code in (
            ({name: []}, _span(2, 1), None, 422, "reservation_in_the_past"),
            ({name: []}, _span(-2, -1), None, 422, "reservation_in_the_past"),
            ({"nowhere": []}, _span(1, 2), None, 404, "node_not_found"),
            ({name: [9]}, _span(1, 2), None, 404, "device_not_found"),
            ({name: [0]}, _span(1, 2), str(firm.tenant_id), 422, "whole_nodes_only"),
            ({}, _span(1, 2), None, 422, "malformed_request"),
        ):
            body = {"nodes": nodes, **span, "tenant_id": tenant, **WHY}
            operator.refused(status, code, "POST", "/v1/reservations", body)


def test_no_device_is_reserved_twice_at_one_time(house: House) -> None:
    name, operator = _new_node(house), house.operator
    first = operator.post("/v1/reservations", {"nodes": {name: [0]}, **_span(1, 2.5), **WHY})
    with house.untouched():
        words = operator.refused(
            409, "already_reserved", "POST", "/v1/reservations", {"nodes": {name: []}, **_span(2, 4), **WHY}
        )
    assert f"device 0 of node {name!r} is already reserved" in words
    operator.post("/v1/reservations", {"nodes": {name: [1]}, **_span(2, 4), **WHY})
    operator.post("/v1/reservations", {"nodes": {name: [0]}, **_span(3, 4), **WHY})
    operator.post(f"/v1/reservations/{first['id']}:cancel")
    operator.post("/v1/reservations", {"nodes": {name: [0]}, **_span(1, 2.5), **WHY})
    operator.refused(409, "reservation_over", "POST", f"/v1/reservations/{first['id']}:cancel")
    operator.refused(404, "reservation_not_found", "POST", f"/v1/reservations/{new_id()}:cancel")


def test_time_a_tenant_had_reserved_and_did_not_use_is_accounted_to_it(house: House) -> None:
    name, firm, other = _new_node(house), house.enterprise("10.00"), house.enterprise("10.00")
    _runs_on(house, firm.post("/v1/jobs", job())["id"], name, 1)
    body = {"nodes": {name: []}, **_span(-2, 8), "tenant_id": str(firm.tenant_id), **WHY}
    made = house.operator.post("/v1/reservations", body)
    hour = 3_600_000
    assert (made["purpose"], made["nodes"]) == ("tenant", {name: [0, 1]})
    assert made["reserved_card_ms"] // 10_000 == 4 * hour // 10_000
    assert made["used_card_ms"] // 10_000 == hour // 10_000
    assert made["unused_card_ms"] == made["reserved_card_ms"] - made["used_card_ms"]
    (seen,) = firm.get("/v1/reservations")["items"]
    assert (seen["id"], seen["unused_card_ms"] >= made["unused_card_ms"]) == (made["id"], True)
    assert other.get("/v1/reservations")["items"] == []
    cancelled = house.operator.post(f"/v1/reservations/{made['id']}:cancel")
    (later,) = firm.get("/v1/reservations")["items"]
    assert later["unused_card_ms"] == cancelled["unused_card_ms"]


def test_what_waiting_jobs_need_is_told_by_shape(house: House) -> None:
    firm = house.enterprise("1000.00")
    for _ in range(2):
        firm.post("/v1/jobs", job(devices_per_node=2, memory_mib=777))
    firm.post("/v1/jobs", job(memory_mib=777, held=True))
    demands = house.operator.get("/v1/cluster:demand")["demands"]
    (mine,) = [one for one in demands if one["memory_mib"] == 777]
    assert (mine["jobs"], mine["nodes"], mine["devices_per_node"]) == (2, 1, 2)
    assert mine["accelerator"] == [MODEL]
