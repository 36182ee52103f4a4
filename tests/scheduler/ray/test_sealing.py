"""Secrets on their way through Ray."""

from kernel.ids import new_id
from scheduler.node.lines import question
from scheduler.node.protocol import OverRequest, RunSpec, SyncRequest
from scheduler.ray.sealing import sealed, unsealed

SECRET = "do not show" * 6000


def spec(**secrets: str) -> RunSpec:
    return RunSpec(
        run_id=str(new_id()), job_id="j", tenant_id="t", attempt=1, argv=("true",), workspace="/w", log="/l",
        secrets=secrets,
    )  # fmt: skip


def test_what_may_lie_in_the_object_store_shows_no_secret_and_the_key_is_small_enough_to_go_along() -> None:
    request = SyncRequest(1, 6000, (spec(token=SECRET), spec(), spec(key=SECRET, other="x")))
    line, key = sealed(request)
    assert b"do not show" in question("sync", request)
    assert b"do not show" not in line
    assert 0 < len(key) < 100
    assert unsealed(line, key) == question("sync", request)
    assert sealed(request)[1] != key


def test_what_is_asked_ahead_is_sealed_like_what_is_asked() -> None:
    request = OverRequest(("r",), 100, SyncRequest(1, 6000, (spec(token=SECRET),)))
    line, key = sealed(request)
    assert b"do not show" not in line
    assert unsealed(line, key) == question("sync_when_over", request)


def test_a_request_without_secrets_travels_as_it_is_asked() -> None:
    request = SyncRequest(1, 6000, (spec(),))
    line, key = sealed(request)
    assert line == question("sync", request)
    assert unsealed(line, key) == line
