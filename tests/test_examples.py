"""The examples, run as their readers run them: from another folder, with nothing but Python."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.threads import PATIENCE

EXAMPLES = Path(__file__).parent.parent / "examples"
PLAIN = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
PLAIN.pop("FORCE_COLOR", None)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed_by("quickstart", tmp_path_factory)


@pytest.fixture(scope="module")
def worker_processes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed_by("worker_processes", tmp_path_factory)


@pytest.fixture(scope="module")
def many_processes(redis_program: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed_by("many_processes", tmp_path_factory)


@pytest.fixture(scope="module")
def order_in_one_transaction(tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed_by("order_in_one_transaction", tmp_path_factory)


def printed_by(example: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the demo prints into a pipe; it ends well, in time, and leaves nothing behind."""
    empty = tmp_path_factory.mktemp("empty")
    temporary = tmp_path_factory.mktemp("temporary")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py")],
        cwd=empty,
        env={**PLAIN, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert list(empty.iterdir()) == list(temporary.iterdir()) == []
    return done.stdout


def test_the_quickstart_shows_the_textbook_stale_and_slotcache_not(quickstart: str) -> None:
    claim = "textbook: shows a sold seat as free for 10.0 s; slotcache: 0 stale reads"

    assert claim in lines(quickstart)
    assert f"ok {claim}" in lines(quickstart)


@pytest.mark.parametrize(
    "claim",
    [
        r"64 threads at a cold list: the database saw 1 query",
        r"a warm read takes \d+\.\d\d us for one airport, \d+\.\d\d us for all 860 flights",
        r"178 seats, 600 buyers: 178 sold, 422 refused, 0 oversold",
        r"a hold of 3 s runs out: a list kept for 10 s shows it after 3\.0 s",
    ],
)
def test_the_quickstart_shows_that(claim: str, quickstart: str) -> None:
    assert any(re.fullmatch(f"ok {claim}", line) for line in lines(quickstart)), quickstart


def test_the_quickstart_fits_a_small_terminal_and_leaves_no_colour_codes_in_a_file(
    quickstart: str,
) -> None:
    assert max(map(len, quickstart.splitlines())) <= 80
    assert "\x1b" not in quickstart


@pytest.mark.parametrize(
    "claim",
    [
        r"4 processes, [\d,]+ reads in 1\.4 s, a list that lives for 0\.5 s: \d+ queries",
        r"20 sales, each by another process: 0 of 80 reads right after them are stale",
        r"a worker is killed in mid-query: the others had their answer \d+ ms later",
    ],
)
def test_the_worker_processes_show_that(claim: str, worker_processes: str) -> None:
    assert any(re.fullmatch(f"ok {claim}", line) for line in lines(worker_processes))


@pytest.mark.parametrize(
    "claim",
    [
        r"4 processes, [\d,]+ reads in 1\.4 s, a list that lives for 0\.5 s: \d+ queries",
        r"12 sales, each by another process: 0 of [\d,]+ reads are stale",
        r"it is killed: [\d,]+ reads, 0 failed, 0 are stale, the slowest took \d+ ms",
        r"it is back, empty: all 4 see the sale; queries for the next [\d,]+ reads: \d",
        r"it is silent for 1\.2 s: the slowest of [\d,]+ reads took \d+ ms",
    ],
)
def test_the_many_processes_show_that(claim: str, many_processes: str) -> None:
    assert any(re.fullmatch(f"ok {claim}", line) for line in lines(many_processes)), many_processes


def test_a_server_does_not_outlive_a_demo_that_is_killed(redis_program: str) -> None:
    start = (
        "import sys; from _server import Server; "
        "server = Server(); server.start(); print(server.url, flush=True); sys.stdin.read()"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", start],
        env={**PLAIN, "PYTHONPATH": str(EXAMPLES)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        url = demo.stdout.readline().strip()
        assert listens(url)

        demo.kill()

    end = time.monotonic() + PATIENCE
    while listens(url):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.002)


def listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE):
            return True
    except OSError:
        return False


def test_a_claim_that_is_not_true_is_called_so_and_makes_the_demo_fail() -> None:
    untrue = (
        "import sys; from _stage import Claim, summary; "
        "sys.exit(summary([Claim('one', True), Claim('two', False)], 1.0))"
    )

    done = subprocess.run(
        [sys.executable, "-c", untrue],
        env={**PLAIN, "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "NOT TRUE: two" in lines(done.stdout)


def lines(output: str) -> list[str]:
    return [line.rstrip() for line in output.splitlines()]


@pytest.mark.parametrize(
    "claim",
    [
        r"20 orders, each one commit: 0 of 40 reads right after them are stale",
        r"in two transactions, killed between them: 1 seat is sold, with 0 orders",
        r"in one, ended early 6 times: 0 have left a seat or an order behind",
        r"cleared before the commit: stale for 10\.0 s; after it: 0 stale reads",
        r"12 pairs, 5 seats on one of two flights: 5 fly, 0 fly alone",
    ],
)
def test_an_order_in_one_transaction_shows_that(claim: str, order_in_one_transaction: str) -> None:
    shown = lines(order_in_one_transaction)

    assert any(re.fullmatch(f"ok {claim}", line) for line in shown), order_in_one_transaction
