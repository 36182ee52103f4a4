"""Uploaded working directories: what is in them arrives in /job, and nothing of them anywhere else."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.node.protocol import Bundle, EndReason, RunStatus
from tests.scheduler.node.harness import Machine, Node

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def pack(*members: tuple[tarfile.TarInfo, bytes], compress: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compress else "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def run_with(
    node: Node, archive: bytes, script: str = "true", digest: str | None = None
) -> tuple[RunStatus, str]:
    sha256 = digest or hashlib.sha256(archive).hexdigest()
    path = Path(node.config["workspace_root"]) / "bundles" / sha256[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive)
    spec = replace(node.spec("/bin/sh", "-c", script), bundle=Bundle(str(path), sha256))
    status = node.run(spec)
    return status, Path(spec.log).read_text() if Path(spec.log).exists() else ""


@pytest.mark.parametrize("compress", [True, False])
def test_a_working_directory_arrives_with_its_files_folders_and_links(node: Node, compress: bool) -> None:  # noqa: FBT001
    archive = pack(
        (member("src", tarfile.DIRTYPE, mode=0o755), b""),
        (member("./src/run.sh", mode=0o755), b"#!/bin/sh\necho started in $PWD\n"),
        (member("data/a/b.txt"), b"deep\n"),
        (member("link", tarfile.SYMTYPE, "data/a/b.txt"), b""),
        compress=compress,
    )
    status, log = run_with(node, archive, "src/run.sh; cat link; touch src/mine && stat -c %u src/run.sh")
    assert (status.exit_code, log) == (0, "started in /job\ndeep\n1000\n")


TRICKS: dict[str, Callable[[], bytes]] = {
    "absolute path": lambda: pack((member("/hub-escape"), b"x")),
    "parent folder": lambda: pack((member("../../hub-escape"), b"x")),
    "parent folder in the middle": lambda: pack((member("a/../../../hub-escape"), b"x")),
    "absolute link": lambda: pack((member("l", tarfile.SYMTYPE, "/etc/shadow"), b"")),
    "link upwards": lambda: pack((member("a/l", tarfile.SYMTYPE, "../../x"), b"")),
    "file through a link to a folder": lambda: pack(
        (member("d", tarfile.SYMTYPE, "."), b""), (member("d/x"), b"x")
    ),
    "chain of links": lambda: pack(
        (member("a/b", tarfile.DIRTYPE), b""),
        (member("a/b/up", tarfile.SYMTYPE, ".."), b""),
        (member("a/b/up/up2", tarfile.SYMTYPE, ".."), b""),
    ),
    "hard link outwards": lambda: pack((member("h", tarfile.LNKTYPE, "/etc/shadow"), b"")),
    "hard link upwards": lambda: pack((member("h", tarfile.LNKTYPE, "../../secret"), b"")),
    "device": lambda: pack((member("disk", tarfile.BLKTYPE), b"")),
    "character device": lambda: pack((member("tty", tarfile.CHRTYPE), b"")),
    "pipe": lambda: pack((member("pipe", tarfile.FIFOTYPE), b"")),
    "not an archive": lambda: b"\x7fELF" + bytes(4000),
    "torn archive": lambda: pack((member("x"), bytes(100_000)), compress=False)[:50_000],
    "torn compression": lambda: pack((member("x"), bytes(range(256)) * 400))[:-50],
    "too large": lambda: pack(*((member(f"f{n}"), bytes(MIB)) for n in range(9))),
    "too many": lambda: pack(*((member(f"f{n}"), b"") for n in range(60))),
}


@pytest.mark.parametrize("trick", TRICKS, ids=lambda name: name.replace(" ", "-"))
def test_an_archive_with_a_trick_is_refused_by_name_and_nothing_starts(machine: Machine, trick: str) -> None:
    node = machine.node(limits={"bundle_bytes": 8 * MIB, "bundle_entries": 50})
    before = set(Path("/tmp").glob("hub-escape*"))  # noqa: S108 - where a trick would write
    status, log = run_with(node, TRICKS[trick](), "echo started")
    assert status.end_reason is EndReason.START_FAILED, status
    assert "working directory was refused" in status.reason
    assert log == ""
    assert not list(machine.folder.rglob("hub-escape"))
    assert set(Path("/tmp").glob("hub-escape*")) == before  # noqa: S108


def test_an_archive_whose_content_was_changed_is_refused(node: Node) -> None:
    status, _ = run_with(node, pack((member("x"), b"x")), digest="0" * 64)
    assert status.end_reason is EndReason.START_FAILED
    assert "SHA-256" in status.reason


def test_a_header_that_claims_gigabytes_is_refused(node: Node) -> None:
    info = member("x", tarfile.XHDTYPE)
    info.size = 8 * 1024**3
    status, _ = run_with(node, gzip.compress(info.tobuf() + bytes(MIB)))
    assert status.end_reason is EndReason.START_FAILED
