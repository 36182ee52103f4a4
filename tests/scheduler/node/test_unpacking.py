"""What an archive may not make of a working directory, without a node around it."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from scheduler.node.bundle import Refused, unpack

ENTRIES_MAX = 500


def unpacked(folder: Path, *members: tarfile.TarInfo) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member)
    content = buffer.getvalue()
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        digest = hashlib.sha256(content).hexdigest()
        unpack(io.BytesIO(content), top, sha256=digest, bytes_max=1 << 20, entries_max=ENTRIES_MAX)
    finally:
        os.close(top)


def test_one_name_with_folders_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="200 folders deep"):
        unpacked(tmp_path, tarfile.TarInfo("a/" * 5000 + "b"))
    assert not list(tmp_path.iterdir())


def test_the_folders_that_names_lie_in_count_as_entries(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="more than 500 entries"):
        unpacked(tmp_path, *(tarfile.TarInfo(f"{number}/" + "a/" * 150 + "b") for number in range(10)))
    made = sum(len(folders) for _, folders, _ in os.walk(tmp_path))
    assert made <= ENTRIES_MAX


def test_a_hard_link_to_nothing_is_refused_with_a_sentence(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.LNKTYPE, "./"
    with pytest.raises(Refused, match="leads to no file"):
        unpacked(tmp_path, link)


def test_a_working_directory_whose_unpacking_was_broken_off_is_unpacked_again(tmp_path: Path) -> None:
    folder, file, symbolic, hard = map(tarfile.TarInfo, ("a", "a/file", "a/symbolic", "a/hard"))
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    symbolic.type, symbolic.linkname = tarfile.SYMTYPE, "file"
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/file"
    unpacked(tmp_path, folder, file, symbolic)
    unpacked(tmp_path, folder, file, symbolic, hard)
    unpacked(tmp_path, folder, file, symbolic, hard)
    assert (tmp_path / "a" / "symbolic").readlink() == Path("file")
    assert (tmp_path / "a" / "hard").samefile(tmp_path / "a" / "file")
