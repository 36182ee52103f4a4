"""What tenants upload: bounded for each, and nothing of what is refused stays."""

import os
from datetime import timedelta
from operator import attrgetter
from pathlib import Path

import pytest

from compute_hub.uploads import (
    Incoming,
    TooManyUploads,
    UploadBrokenOff,
    UploadNotFound,
    find_upload,
    remove_broken_off,
)
from kernel.clock import utc_now

PIECE = 100_000
AT = utc_now()


def kept(folder: Path, begin: bytes, needed: set[str], tenant: str = "t", *, later_h: int = 0) -> str:
    incoming = Incoming(folder, tenant, bytes_max=PIECE, kept_bytes_max=3 * PIECE)
    try:
        incoming.write(b"\x1f\x8b" + begin)
        incoming.write(bytes(PIECE - 2 - len(begin)))
        return incoming.keep(lambda: needed, AT + timedelta(hours=later_h))
    finally:
        incoming.close()


def stored(folder: Path, tenant: str = "t") -> set[str]:
    return {name.removesuffix(".tar.gz") for name in map(attrgetter("name"), (folder / tenant).iterdir())}


def test_what_nobody_needs_any_more_makes_room_and_the_oldest_goes_first(tmp_path: Path) -> None:
    first, second, third = (kept(tmp_path, begin, set()) for begin in (b"1", b"2", b"3"))
    for age, digest in enumerate((third, second, first)):
        os.utime(tmp_path / "t" / f"{digest}.tar.gz", (age + 1, age + 1))
    fourth = kept(tmp_path, b"4", {third})
    assert stored(tmp_path) == {first, third, fourth}


def test_what_is_new_or_needed_stays_and_then_there_is_no_room(tmp_path: Path) -> None:
    digests = {kept(tmp_path, begin, set()) for begin in (b"1", b"2", b"3")}
    with pytest.raises(TooManyUploads, match="300000 bytes together"):
        kept(tmp_path, b"4", set())
    with pytest.raises(TooManyUploads):
        kept(tmp_path, b"4", digests, later_h=2)
    assert stored(tmp_path) == digests
    assert kept(tmp_path, b"1", set(), tenant="another") in digests


def test_what_a_job_has_just_named_stays_though_the_job_is_not_seen_yet(tmp_path: Path) -> None:
    digests = [kept(tmp_path, begin, set()) for begin in (b"1", b"2", b"3")]
    for age, digest in enumerate(digests):
        os.utime(tmp_path / "t" / f"{digest}.tar.gz", (age + 1, age + 1))
    find_upload(tmp_path, "t", digests[0])
    fourth = kept(tmp_path, b"4", set())
    assert stored(tmp_path) == {digests[0], digests[2], fourth}
    with pytest.raises(UploadNotFound):
        find_upload(tmp_path, "t", digests[1])


def test_uploads_that_never_end_take_no_more_than_their_tenant_may_have(tmp_path: Path) -> None:
    begun = [Incoming(tmp_path, "t", bytes_max=PIECE, kept_bytes_max=3 * PIECE) for _ in range(20)]
    for incoming in begun:
        incoming.write(b"\x1f\x8b" + bytes(PIECE - 2))
    assert sum(file.stat().st_size for file in (tmp_path / "t").iterdir()) <= 6 * PIECE
    for incoming in begun:
        incoming.close()
    assert stored(tmp_path) == set()


def test_what_a_killed_process_left_makes_room(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    left = tmp_path / "t" / ".incoming-x"
    left.write_bytes(bytes(3 * PIECE))
    os.utime(left, (1, 1))
    assert stored(tmp_path) == {".incoming-x"}
    digest = kept(tmp_path, b"1", set())
    assert stored(tmp_path) == {digest}


def test_what_is_broken_off_goes_after_an_hour_and_who_goes_on_then_hears_of_it(tmp_path: Path) -> None:
    whole = kept(tmp_path, b"1", set())
    incoming = Incoming(tmp_path, "t", bytes_max=PIECE, kept_bytes_max=3 * PIECE)
    incoming.write(b"\x1f\x8b")
    assert remove_broken_off(tmp_path, AT + timedelta(minutes=50)) == 0
    assert len(stored(tmp_path)) == 2
    assert remove_broken_off(tmp_path, AT + timedelta(hours=2)) == 1
    assert stored(tmp_path) == {whole}
    incoming.write(b"more")
    with pytest.raises(UploadBrokenOff, match="Send it again"):
        incoming.keep(set, AT)
    incoming.close()
    assert stored(tmp_path) == {whole}
    assert remove_broken_off(tmp_path / "nobody", AT) == 0
