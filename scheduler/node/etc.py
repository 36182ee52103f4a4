"""The /etc that every sandbox shows: the job's user and host, and what programs of /usr need to start."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from scheduler.node.view import HOSTNAME, INSIDE_UID

_COPIED: Final = ("ld.so.cache", "localtime", "mime.types", "ssl/certs/ca-certificates.crt", "ssl/openssl.cnf")
_FILES: Final = {
    "passwd": f"job:x:{INSIDE_UID}:{INSIDE_UID}:job:/job:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": f"job:x:{INSIDE_UID}:\nnogroup:x:65534:\n",
    "hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
    "hostname": f"{HOSTNAME}\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
}


def make_etc(state_directory: Path) -> Path:
    """Write it anew below the state directory, readable by every job uid; its path."""
    etc = state_directory / "etc"
    shutil.rmtree(etc, ignore_errors=True)
    etc.mkdir(mode=0o755)
    for name, text in _FILES.items():
        (etc / name).write_text(text, encoding="ascii")
    for name in _COPIED:
        with suppress(OSError):
            (etc / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path("/etc", name), etc / name)
    with suppress(OSError):
        shutil.copytree("/etc/alternatives", etc / "alternatives", symlinks=True)
    for path in (etc, *etc.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return etc
