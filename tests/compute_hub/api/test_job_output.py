"""Logs and files of jobs over HTTP: followed to the end, and nothing given away that a job only points to."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from compute_hub.cli.waiting import wait_for_end
from compute_hub.identity.keys import find_key, revoke_key
from compute_hub.job_files import open_download
from compute_hub.job_following import Followers, TooManyFollowers
from compute_hub.sdk import HubClient, Refused
from compute_hub.workers.keeper import keep_once
from kernel.clock import utc_now
from kernel.database import transaction
from kernel.postgres import PrivatePostgres
from scheduler.tables import JobRow
from tests.compute_hub.api.house import Asker, House, job


def _change(house: House, job_id: str, **fields: object) -> None:
    with transaction(house.engine) as session:
        row = session.get_one(JobRow, UUID(job_id))
        for name, value in fields.items():
            setattr(row, name, value)


def _folder(house: House, firm: Asker, job_id: str, attempt: int = 1) -> Path:
    folder = house.settings.workspaces / str(firm.tenant_id) / job_id / f"attempt-{attempt}"
    (folder / "rank-0").mkdir(parents=True)
    return folder


def _say(folder: Path, data: bytes, rank: int = 0) -> None:
    with (folder / f"rank-{rank}.log").open("ab") as log:
        log.write(data)


def test_a_log_is_followed_over_attempts_until_the_job_has_ended(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job(max_retries=1))["id"]
    _change(house, job_id, state="running", attempt=1)
    first = _folder(house, firm, job_id)
    _say(first, "épo".encode()[:1])  # half a character
    seen: list[tuple[str, Any]] = []
    with HubClient(house.server.url, firm.key) as hub:
        for kind, data in hub.follow(job_id):
            seen.append((kind, data))
            texts = [part["text"] for what, part in seen if what == "log"]
            if len(seen) == 1:
                _say(first, "épo".encode()[1:] + b"ch 1\n\xff\n")
            if "".join(texts).endswith("�\n") and data.get("attempt") == 1 and kind == "log":
                _say(_folder(house, firm, job_id, 2), b"epoch 2\n")
                _change(house, job_id, attempt=2)
            if texts[-1:] == ["epoch 2\n"] and kind == "log":
                _change(house, job_id, state="succeeded", reason="finished", ended_at=utc_now())
    assert "".join(data["text"] for kind, data in seen if kind == "log") == "époch 1\n�\nepoch 2\n"
    assert [data["attempt"] for kind, data in seen if kind == "log" and data["text"]][-1] == 2
    assert seen[-1] == ("end", {"state": "succeeded", "reason": "finished"})
    assert [data["state"] for kind, data in seen if kind == "state"] == ["running", "running", "succeeded"]
    assert (
        firm.ask("GET", f"/v1/jobs/{job_id}/logs", params={"attempt": "1"}).content == b"\xc3\xa9poch 1\n\xff\n"
    )


def test_what_a_job_keeps_for_its_next_attempt_is_listed_and_downloaded(house: House, tmp_path: Path) -> None:
    firm, other = house.enterprise("1000.00"), house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    kept = house.settings.workspaces / str(firm.tenant_id) / job_id / "checkpoints" / "rank-0"
    kept.mkdir(parents=True)
    (kept / "step").write_text("7")
    asked = {"params": {"checkpoints": "true"}}
    listed = firm.ask("GET", f"/v1/jobs/{job_id}/artifacts", **asked).json()["items"]
    assert [(item["path"], item["size_bytes"]) for item in listed] == [("step", 1)]
    assert firm.ask("GET", f"/v1/jobs/{job_id}/artifacts").json()["items"] == []
    with HubClient(house.server.url, firm.key) as hub:
        assert hub.download(job_id, "step", tmp_path / "step", checkpoints=True) == 1
    assert (tmp_path / "step").read_text() == "7"
    assert other.ask("GET", f"/v1/jobs/{job_id}/artifacts", **asked).status_code == 404


def test_a_broken_connection_goes_on_after_the_last_event(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, state="failed", attempt=1, ended_at=utc_now())
    _say(_folder(house, firm, job_id), b"one two")
    path, asked = f"/v1/jobs/{job_id}/logs", {"params": {"follow": "true"}}
    whole = firm.ask("GET", path, **asked).text
    assert "id: 1.7\n" in whole
    assert '"text": "one two"' in whole
    rest = firm.ask("GET", path, **asked, headers={"Last-Event-ID": "1.4"}).text
    assert '"text": "two"' in rest
    for broken in ("x", "1", "1.-1", "1.2.3"):
        firm.refused(422, "malformed_request", "GET", path, headers={"Last-Event-ID": broken})


def test_who_follows_or_waits_goes_on_when_the_database_has_been_away(
    house: House, postgres: PrivatePostgres
) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, state="running", attempt=1)
    folder, name = _folder(house, firm, job_id), str(house.engine.url.database)
    _say(folder, b"before ")
    asked = threading.Barrier(3)

    def take_away() -> None:
        with postgres.superuser() as root:
            root.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            root.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            for _ in range(3):
                firm.refused(503, "database_unreachable", "GET", f"/v1/jobs/{job_id}")
            threading.Event().wait(1)
            root.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
        _say(folder, b"and after")
        _change(house, job_id, state="succeeded", ended_at=utc_now())

    def wait() -> Any:  # noqa: ANN401 - JSON
        with HubClient(house.server.url, firm.key) as hub:
            asked.wait()
            return wait_for_end(hub, job_id)

    def follow() -> str:
        with HubClient(house.server.url, firm.key) as hub:
            texts = [""]
            for kind, data in hub.follow(job_id):
                if kind == "log":
                    texts.append(data["text"])
                if texts == ["", "before "]:
                    asked.wait()
                    texts.append("")
            return "".join(texts)

    with ThreadPoolExecutor(2) as threads:
        waiting, following = threads.submit(wait), threads.submit(follow)
        asked.wait()
        take_away()
        assert waiting.result()["state"] == "succeeded"
        assert following.result() == "before and after"


def test_followers_are_bounded(house: House) -> None:
    with pytest.raises(TooManyFollowers):
        Followers(0).check("firm")
    with HubClient(house.server.url, house.enterprise().key) as hub, pytest.raises(Refused) as refused:
        next(hub.follow("00000000-0000-0000-0000-000000000000"))
    assert refused.value.problem_code == "job_not_found"


@pytest.mark.slow
def test_one_enterprise_leaves_room_for_the_others_to_follow() -> None:
    async def said(*, heard: int) -> AsyncIterator[bytes]:
        for _ in range(heard):
            yield b"event"

    async def follow() -> None:
        followers = Followers(3, own_most=2)
        greedy = [followers.counted("firm", said(heard=2)) for _ in range(2)]
        for events in greedy:
            await anext(events)
        with pytest.raises(TooManyFollowers, match="2 logs"):
            followers.check("firm")
        followers.check("another")
        async for _ in greedy[0]:
            pass
        followers.check("firm")
        await greedy[1].aclose()

    asyncio.run(follow())


def test_who_follows_hears_no_more_when_the_key_is_revoked(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, state="running", attempt=1)
    _say(_folder(house, firm, job_id), b"begun\n")
    with HubClient(house.server.url, firm.key) as hub, pytest.raises(Refused) as refused:
        for kind, _ in hub.follow(job_id):
            if kind == "log":
                with transaction(house.engine) as session:
                    key = find_key(session, firm.key)
                    assert key is not None
                    revoke_key(session, key.id, at=utc_now())
    assert refused.value.problem_code == "unknown_key"


def test_a_log_that_ends_in_half_a_character_is_told_to_its_end_and_goes_on_from_there(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, state="succeeded", attempt=1, ended_at=utc_now())
    _say(_folder(house, firm, job_id), b"ab" + "é".encode()[:1])
    with HubClient(house.server.url, firm.key) as hub:
        told = list(hub.follow(job_id))
    assert "".join(data["text"] for kind, data in told if kind == "log") == "ab\N{REPLACEMENT CHARACTER}"
    state = {"Last-Event-ID": "1.2"}
    again = firm.ask("GET", f"/v1/jobs/{job_id}/logs", params={"follow": "true"}, headers=state).text
    assert "id: 1.2\n" in again
    assert "\N{REPLACEMENT CHARACTER}" in again


def test_what_a_job_changes_while_it_is_looked_at_and_times_beyond_the_calendar_are_no_trouble(
    house: House,
) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, attempt=1)
    work = _folder(house, firm, job_id) / "rank-0"
    (work / "late").write_bytes(b"first")
    os.utime(work / "late", ns=(0, 2**62))
    assert firm.get(f"/v1/jobs/{job_id}/artifacts")["items"][0]["path"] == "late"
    size, chunks = open_download(job_id, work, "late")
    with (work / "late").open("ab") as file:
        file.write(b", second")
    assert (size, b"".join(chunks)) == (5, b"first")


@pytest.mark.slow
def test_many_follow_a_log_at_once_and_none_holds_a_thread(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, state="running", attempt=1)
    _say(_folder(house, firm, job_id), b"hello")
    reached, ends = threading.Barrier(61, timeout=60), []

    def follow() -> None:
        with HubClient(house.server.url, firm.key) as hub:
            for kind, _ in hub.follow(job_id):
                if kind == "log":
                    reached.wait()
            ends.append(kind)

    threads = [threading.Thread(target=follow) for _ in range(60)]
    for thread in threads:
        thread.start()
    reached.wait()
    assert firm.get(f"/v1/jobs/{job_id}")["state"] == "running"
    _change(house, job_id, state="succeeded", ended_at=utc_now())
    for thread in threads:
        thread.join()
    assert ends == ["end"] * 60


def test_files_of_a_job_are_listed_and_downloaded(house: House, tmp_path: Path) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    path = f"/v1/jobs/{job_id}/artifacts"
    assert firm.get(path)["items"] == []
    _change(house, job_id, attempt=1)
    work = _folder(house, firm, job_id) / "rank-0"
    (work / "out").mkdir()
    (work / "out" / "modèle 1.bin").write_bytes(b"x" * 100_000)
    (work / "out" / "two").write_bytes(b"")
    (listed,) = firm.get(path)["items"]
    assert (listed["path"], listed["kind"]) == ("out", "directory")
    below = firm.get(path, folder="out/")["items"]
    assert [(entry["path"], entry["size_bytes"]) for entry in below] == [
        ("out/modèle 1.bin", 100_000),
        ("out/two", 0),
    ]
    page = firm.get(path, folder="out", limit=1)
    assert firm.get(path, folder="out", after=page["next"])["items"] == below[1:]
    with HubClient(house.server.url, firm.key) as hub:
        target = tmp_path / "model"
        assert hub.download(job_id, "out/modèle 1.bin", target) == 100_000
        assert target.read_bytes() == b"x" * 100_000
        with pytest.raises(Refused, match="left nothing readable at 'out'"):
            hub.download(job_id, "out", tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [target]
    answer = firm.ask("GET", f"{path}:download", params={"path": "out/modèle 1.bin"})
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''mod%C3%A8le%201.bin"
    thief = house.enterprise("1.00")
    thief.refused(404, "job_not_found", "GET", path)
    thief.refused(404, "job_not_found", "GET", f"{path}:download", params={"path": "out/two"})


def test_links_pipes_and_ways_out_of_the_working_directory_give_nothing_away(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, attempt=1)
    work = _folder(house, firm, job_id) / "rank-0"
    secret = house.folder / f"secret-{job_id}"
    secret.write_text("secret", encoding="utf-8")
    (work / "link").symlink_to(secret)
    (work / "folder-link").symlink_to(house.folder)
    (work / "up").symlink_to("..")
    (work / "hard").hardlink_to(secret)
    os.mkfifo(work / "pipe")
    (work / "deep").mkdir()
    (work / "deep" / "loop").symlink_to("../deep")
    kinds = {entry["path"]: entry["kind"] for entry in firm.get(f"/v1/jobs/{job_id}/artifacts")["items"]}
    assert kinds == dict.fromkeys(("link", "folder-link", "up", "hard", "pipe"), "other") | {
        "deep": "directory"
    }
    download = f"/v1/jobs/{job_id}/artifacts:download"
    for name in (
        "link",
        "hard",
        "pipe",
        "up",
        "deep",
        f"folder-link/{secret.name}",
        "deep/loop/loop",
        "nothing",
    ):
        words = firm.refused(404, "artifact_not_readable", "GET", download, params={"path": name})
        assert "secret." not in words
    for name in ("..", "../rank-0.log", "/etc/passwd", "deep/../../rank-0.log", "a\x00b", "."):
        firm.refused(422, "malformed_artifact_path", "GET", download, params={"path": name})
    listing = f"/v1/jobs/{job_id}/artifacts"
    for name in ("folder-link", "up", "deep/loop", "link", "nothing"):
        firm.refused(404, "artifact_not_readable", "GET", listing, params={"folder": name})
    firm.refused(422, "malformed_artifact_path", "GET", listing, params={"folder": "../.."})


def test_a_folder_is_listed_to_its_end_however_many_entries_it_has(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    _change(house, job_id, state="running", attempt=1)
    many = _folder(house, firm, job_id) / "rank-0" / "many"
    many.mkdir()
    names = [f"{number:05}" for number in range(10_500)]
    for name in names:
        (many / name).touch()
    (many / os.fsdecode(b"\xff")).touch()
    with HubClient(house.server.url, firm.key) as hub:
        found = [item["path"] for item in hub.pages(f"/v1/jobs/{job_id}/artifacts", folder="many")]
        behind = hub.get(f"/v1/jobs/{job_id}/artifacts", folder="many", after="n", limit=1)
    assert found == [*(f"many/{name}" for name in names), "many/\N{REPLACEMENT CHARACTER}"]
    assert (behind["items"], behind["next"]) == ([], None)


def test_what_is_no_longer_kept_says_so(house: House) -> None:
    firm = house.enterprise("1000.00")
    job_id = firm.post("/v1/jobs", job())["id"]
    folder, now = _folder(house, firm, job_id), utc_now()
    _say(folder, b"done\n")
    _change(house, job_id, state="succeeded", attempt=1, ended_at=now, files_removed_at=now)
    with HubClient(house.server.url, firm.key) as hub:
        assert hub.log(job_id) == b"done\n"
        for query in ("", "?checkpoints=true"):
            with pytest.raises(Refused, match=r"The files of job .* are no longer kept"):
                hub.get(f"/v1/jobs/{job_id}/artifacts{query}")
        _change(house, job_id, logs_removed_at=now)
        with pytest.raises(Refused, match=r"The logs of job .* are no longer kept") as refused:
            hub.log(job_id)
        with pytest.raises(Refused, match=r"The logs of job .* are no longer kept"):
            list(hub.follow(job_id))
    assert refused.value.problem_code == "no_longer_kept"


def test_the_keeper_removes_what_is_over_its_time_as_the_operator_set_it(house: House) -> None:
    firm = house.enterprise("1000.00")
    old, new = (firm.post("/v1/jobs", job())["id"] for _ in range(2))
    for job_id, days in ((old, 15), (new, 13)):
        folder = _folder(house, firm, job_id)
        _say(folder, b"done\n")
        (folder / "rank-0" / "result").touch()
        _change(house, job_id, state="succeeded", attempt=1, ended_at=utc_now() - timedelta(days=days))
    while keep_once(house.engine, house.settings, threading.Event()):
        pass
    with HubClient(house.server.url, firm.key) as hub:
        assert [hub.get(f"/v1/jobs/{one}")["files_removed_at"] is None for one in (old, new)] == [False, True]
        assert hub.log(old) == b"done\n"
        assert hub.get(f"/v1/jobs/{new}/artifacts")["items"][0]["path"] == "result"
        with pytest.raises(Refused, match="no longer kept"):
            hub.get(f"/v1/jobs/{old}/artifacts")
