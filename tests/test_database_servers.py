"""The SQL servers that other tests run on do what they say."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support import databases
from tests.support.databases import (
    DatabaseServer,
    MariadbServer,
    OwnServer,
    PostgresServer,
    children_of,
    is_alive,
)
from tests.support.servers import NOBODY, until
from tests.support.threads import PATIENCE, spawn

ROOT = Path(__file__).parent.parent
BOTH = ["postgres", "mariadb"]


@pytest.fixture(params=BOTH)
def shared(request):
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture(params=BOTH)
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=BOTH)
def own(request):
    return request.getfixturevalue(f"own_{request.param}")


def execute(url, statement):
    return DatabaseServer(url).execute(statement)


def processes_of(server):
    return [server.pid, *children_of(server.pid)]


def test_each_test_has_an_empty_database_of_its_own(shared):
    first, second = shared.new_database(), shared.new_database()

    for url in (first, second):
        execute(url, "CREATE TABLE a (b INT)")

    for url in (first, second):
        shared.drop_database(url)
        with pytest.raises(sa.exc.OperationalError):
            execute(url, "SELECT 1")


def test_a_database_is_dropped_under_an_open_transaction(shared):
    url = shared.new_database()
    execute(url, "CREATE TABLE a (b INT)")
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    connection = engine.connect()
    connection.execute(sa.text("SELECT * FROM a"))

    shared.drop_database(url)

    with pytest.raises(sa.exc.DBAPIError):
        connection.execute(sa.text("SELECT * FROM a"))
    connection.close()


def test_a_database_keeps_all_of_unicode(url):
    execute(url, "CREATE TABLE a (b VARCHAR(9))")
    DatabaseServer(url).execute("INSERT INTO a VALUES (:b)", b="\N{SNOWMAN}\N{SAUROPOD}")

    assert execute(url, "SELECT b FROM a") == [("\N{SNOWMAN}\N{SAUROPOD}",)]


def test_a_server_that_was_killed_comes_back_with_its_data(own):
    url, port, pid = own.new_database(), own.port, own.pid
    execute(url, "CREATE TABLE a (b INT)")
    execute(url, "INSERT INTO a VALUES (7)")
    processes = processes_of(own)

    own.kill()

    assert not any(map(is_alive, processes))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    own.start()
    assert execute(url, "SELECT b FROM a") == [(7,)]
    assert own.port == port
    assert own.pid != pid


def test_a_server_that_is_closed_leaves_nothing(own):
    folder, processes = own.folder, processes_of(own)

    own.close()

    assert not folder.exists()
    assert not any(map(is_alive, processes))


def test_a_stopped_server_is_silent_until_it_goes_on(own):
    engine = sa.create_engine(own.url)
    with engine.connect() as connection:
        own.stop_answering()
        answer = spawn(lambda: connection.execute(sa.text("SELECT 1")).scalar())
        with pytest.raises(TimeoutError):
            answer.result(0.05)

        own.go_on()

        assert answer.result(PATIENCE) == 1
    engine.dispose()


def test_a_server_does_not_run_as_root(shared):
    if not isinstance(shared, OwnServer):
        pytest.skip("it is somebody else's")
    # Whoever else runs the tests is the one that runs the server.
    user = os.geteuid() or NOBODY

    assert {Path(f"/proc/{pid}").stat().st_uid for pid in processes_of(shared)} == {user}
    assert shared.folder.stat().st_uid == user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_programs_that_others_must_not_read_are_copied(postgres_program, monkeypatch):
    monkeypatch.setattr(databases, "nobody_may_run", lambda program: False)
    monkeypatch.setattr(databases, "postgres_programs", databases.postgres_programs.__wrapped__)

    copy = databases.postgres_programs()

    assert copy != postgres_program
    monkeypatch.undo()
    assert databases.nobody_may_run(copy / "initdb")


def test_a_port_that_is_taken_is_left_to_its_owner(own):
    other = type(own)()
    other._move_to(own.port)

    with other:
        assert other.port != own.port
        assert other.execute("SELECT 1") == own.execute("SELECT 1") == [(1,)]


def test_a_server_takes_more_options(postgres_program, mariadb_program):
    with PostgresServer("-c", "default_transaction_isolation=serializable") as server:
        assert server.execute("SHOW default_transaction_isolation") == [("serializable",)]
    with MariadbServer("--transaction-isolation=SERIALIZABLE", durable=True) as server:
        assert server.execute("SELECT @@tx_isolation") == [("SERIALIZABLE",)]


def test_an_option_that_is_wrong_is_told_with_the_servers_own_words(postgres_program):
    server = PostgresServer("-c", "nonsense=1")

    with pytest.raises(AssertionError, match='unrecognized configuration parameter "nonsense"'):
        server.start()


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_is_left_of_a_server_when_its_process_is_killed(kind, request):
    request.getfixturevalue(f"{kind}_program")
    code = (
        "from tests.support.databases import MariadbServer, PostgresServer, children_of\n"
        f"server = {kind.title()}Server()\n"
        "server.start()\n"
        "print(server.folder, server.pid, *children_of(server.pid), flush=True)\n"
        "input()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with child:
        folder, *processes = child.stdout.readline().decode().split()
        assert is_alive(int(processes[0]))

        child.send_signal(signal.SIGKILL)

        until(lambda: not Path(folder).exists(), "its folder is still there")
        assert not any(is_alive(int(pid)) for pid in processes)
