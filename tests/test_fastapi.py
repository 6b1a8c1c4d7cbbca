"""examples/fastapi_app.py, served by uvicorn, and asked by HTTP clients over real sockets."""

import asyncio
import importlib
import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from slotcache import Busy
from tests.support.threads import PATIENCE

EXAMPLES = Path(__file__).parent.parent / "examples"
NOBODYS = uuid.UUID(int=0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the application is served; it ends without a warning, and without an error.

    The socket listens before there is a server, so nobody has to wait until there is one.
    """
    home = tmp_path_factory.mktemp("fastapi")
    with (home / "log").open("w+") as log:
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            fd, port = listening.fileno(), listening.getsockname()[1]
            uvicorn = [sys.executable, "-W", "error", "-m", "uvicorn", "--no-access-log"]
            served = ["--app-dir", str(EXAMPLES), "--fd", str(fd), "fastapi_app:app"]
            server = subprocess.Popen([*uvicorn, *served], cwd=home, pass_fds=[fd], stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) in (0, -signal.SIGTERM)
        finally:
            server.kill()
            server.wait()
            log.seek(0)
            said = log.read()
            print(said)
    assert "Application shutdown complete" in said
    assert "Warning" not in said
    assert "Traceback" not in said


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        yield client


def any_key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def held(client: httpx.Client, slot: int = 1, **wanted: float) -> Any:
    """A new hold."""
    answer = client.post(f"/slots/{slot}/hold", json=wanted, headers=any_key())
    assert answer.status_code == 201
    return answer.json()


def free(client: httpx.Client, slot: int = 1) -> Any:
    listed = client.get("/slots/availability").json()
    return listed[slot - 1]["remaining"]


def problem(answer: httpx.Response) -> Any:
    """The fields of an error."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == answer.status_code
    assert told["detail"]
    return told


def test_the_list_is_answered_whole_or_by_scope(client):
    everything = client.get("/slots/availability")
    monday = client.get("/slots/availability", params={"scope": "monday"})
    sunday = client.get("/slots/availability", params={"scope": "sunday"})

    assert everything.headers["Content-Type"] == "application/json"
    assert [slot["slot_id"] for slot in everything.json()] == [1, 2]
    assert monday.json() == everything.json()
    assert sunday.json() == []


def test_a_list_that_the_client_has_is_not_sent_again(client):
    first = client.get("/slots/availability")
    etag = first.headers["ETag"]

    for known in (etag, f'"another", {etag}', f"W/{etag}"):
        again = client.get("/slots/availability", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == etag

    hold = held(client)
    changed = client.get("/slots/availability", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != etag

    client.delete(f"/holds/{hold['id']}")
    as_before = client.get("/slots/availability", headers={"If-None-Match": etag})
    assert as_before.status_code == 304


def test_a_request_that_is_sent_twice_makes_one_hold(client):
    before = free(client)
    key = any_key()

    first = client.post("/slots/1/hold", json={"quantity": 2}, headers=key)
    again = client.post("/slots/1/hold", json={"quantity": 2}, headers=key)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == {**first.json(), "replayed": True}
    assert free(client) == before - 2
    client.delete(f"/holds/{first.json()['id']}")


def test_a_key_is_not_for_two_requests(client):
    key = any_key()
    hold = client.post("/slots/1/hold", json={}, headers=key).json()

    other = client.post("/slots/1/hold", json={"quantity": 2}, headers=key)

    assert other.status_code == 422
    assert problem(other)["title"] == "IdempotencyConflict"
    assert problem(other)["hold_id"] == hold["id"]
    client.delete(f"/holds/{hold['id']}")


def test_a_hold_is_confirmed_once_and_given_up_once(client):
    before = free(client, 2)
    hold = held(client, 2, quantity=3)
    path = f"/holds/{hold['id']}"
    assert (hold["state"], free(client, 2)) == ("held", before - 3)

    for replayed in (False, True):
        sold = client.post(f"{path}/confirm")
        assert (sold.status_code, sold.json()["state"]) == (200, "confirmed")
        assert (sold.json()["replayed"], free(client, 2)) == (replayed, before - 3)

    for replayed in (False, True):
        gone = client.delete(path)
        assert (gone.status_code, gone.json()["state"]) == (200, "cancelled")
        assert (gone.json()["replayed"], free(client, 2)) == (replayed, before)

    too_late = client.post(f"{path}/confirm")
    assert too_late.status_code == 409
    assert problem(too_late)["title"] == "IllegalTransition"
    assert problem(too_late)["state"] == "cancelled"


def test_more_than_there_is_is_refused_with_what_there_is(client):
    left = free(client)

    answer = client.post("/slots/1/hold", json={"quantity": left + 1}, headers=any_key())

    assert answer.status_code == 409
    assert problem(answer)["title"] == "SlotFull"
    assert (problem(answer)["requested"], problem(answer)["remaining"]) == (left + 1, left)
    assert free(client) == left


def test_a_hold_that_has_expired_is_gone(client):
    hold = held(client, ttl=0.05)
    ends = datetime.fromisoformat(hold["expires_at"])
    time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()) + 0.001)

    answer = client.post(f"/holds/{hold['id']}/confirm")

    assert answer.status_code == 410
    assert problem(answer)["title"] == "HoldExpired"
    assert datetime.fromisoformat(problem(answer)["expires_at"]) == ends


@pytest.mark.parametrize(
    ("method", "path", "title"),
    [
        ("POST", "/slots/7/hold", "SlotNotFound"),
        ("POST", f"/holds/{NOBODYS}/confirm", "HoldNotFound"),
        ("DELETE", f"/holds/{NOBODYS}", "HoldNotFound"),
    ],
)
def test_what_is_not_there_is_not_found(client, method, path, title):
    answer = client.request(method, path, json={}, headers=any_key())

    assert answer.status_code == 404
    assert problem(answer)["title"] == title


@pytest.mark.parametrize(
    ("path", "wanted", "headers", "told"),
    [
        ("/slots/1/hold", {}, {}, "idempotency-key"),
        ("/slots/1/hold", {}, {"Idempotency-Key": "k" * 256}, "1 to 255 characters"),
        ("/slots/1/hold", {"quantity": 0}, any_key(), "greater than 0"),
        ("/slots/1/hold", {"quantity": "many"}, any_key(), "valid integer"),
        ("/slots/1/hold", {"ttl": 10_000}, any_key(), "max_lifetime=3600"),
        ("/slots/one/hold", {}, any_key(), "valid integer"),
        (f"/slots/{2**63}/hold", {}, any_key(), "64 bits"),
        ("/holds/one/confirm", {}, {}, "valid UUID"),
    ],
)
def test_what_can_never_be_is_refused_and_told(client, path, wanted, headers, told):
    answer = client.post(path, json=wanted, headers=headers)

    assert answer.status_code == 422
    assert told in answer.text


def test_fifty_clients_want_ten_places(url, client):
    """Ten get one; and no list that is asked for after an answer shows what was before it."""
    total = free(client, 2)
    assert total == 10
    taken: list[str] = []
    given_up: list[str] = []

    async def one(client: httpx.AsyncClient) -> int:
        answer = await client.post("/slots/2/hold", json={}, headers=any_key())
        if answer.status_code == 201:
            taken.append(answer.json()["id"])
        known_by_then = len(taken)
        listed = (await client.get("/slots/availability")).json()
        assert 0 <= listed[1]["remaining"] <= total - known_by_then
        return answer.status_code

    async def give_up(client: httpx.AsyncClient, hold_id: str) -> None:
        assert (await client.delete(f"/holds/{hold_id}")).status_code == 200
        given_up.append(hold_id)
        known_by_then = len(given_up)
        listed = (await client.get("/slots/availability")).json()
        assert known_by_then <= listed[1]["remaining"] <= total

    async def all_at_once() -> list[int]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
            statuses = await asyncio.gather(*(one(client) for _ in range(50)))
            await asyncio.gather(*(give_up(client, hold_id) for hold_id in taken))
        return statuses

    statuses = asyncio.run(all_at_once())

    assert sorted(statuses) == [201] * 10 + [409] * 40
    assert len(set(taken)) == 10
    assert free(client, 2) == total


def test_twenty_requests_with_one_key_make_one_hold(url, client):
    before = free(client)
    key = any_key()

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
            posts = (client.post("/slots/1/hold", json={}, headers=key) for _ in range(20))
            return await asyncio.gather(*posts)

    answers = asyncio.run(all_at_once())

    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    (hold_id,) = {answer.json()["id"] for answer in answers}
    assert free(client) == before - 1
    client.delete(f"/holds/{hold_id}")


def test_clients_that_hang_up_in_mid_request_lose_no_place(url, client):
    """They send it again by the same key, and have the one hold that it has made, or makes now."""
    before = free(client)
    keys = [any_key() for _ in range(6)]
    for number, key in enumerate(keys):
        hang_up(url, key, after=number * 0.002)

    again = [client.post("/slots/1/hold", json={}, headers=key) for key in keys]

    assert {answer.status_code for answer in again} <= {200, 201}
    ids = {answer.json()["id"] for answer in again}
    assert (len(ids), free(client)) == (6, before - 6)
    for hold_id in ids:
        client.delete(f"/holds/{hold_id}")
    assert free(client) == before


@pytest.fixture
def fastapi_app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example in this process, without a server."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("fastapi_app")


def test_a_slot_that_stays_locked_can_be_asked_for_again_later(fastapi_app):
    answer = asyncio.run(fastapi_app.refused(None, Busy(waited=3.0)))

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert json.loads(answer.body)["waited"] == 3.0


def test_a_request_that_the_server_cancels_loses_no_place(fastapi_app, tmp_path, monkeypatch):
    """Some do, when a client has gone: uvicorn does not. Here it is cancelled wherever it waits."""
    monkeypatch.chdir(tmp_path)
    app = fastapi_app.app
    statuses = []

    async def cancel_each() -> None:
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Any, receive: Any, send: Any) -> None:
                await app({**scope, "state": dict(state)}, receive, send)

            transport = httpx.ASGITransport(with_state)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                for seconds in (*(number * 0.001 for number in range(12)), PATIENCE):
                    key = any_key()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await client.post("/slots/1/hold", json={}, headers=key)

                    again = await client.post("/slots/1/hold", json={}, headers=key)
                    listed = await client.get("/slots/availability")
                    assert listed.json()[0]["remaining"] == 9
                    await client.delete(f"/holds/{again.json()['id']}")
                    statuses.append(again.status_code)

    asyncio.run(cancel_each())

    assert (statuses[0], statuses[-1]) == (201, 200)  # cancelled before the hold, and after it


def hang_up(url: str, key: dict[str, str], *, after: float) -> None:
    """Send a request, and close the connection before the answer is read."""
    address = httpx.URL(url)
    body = json.dumps({})
    head = f"POST /slots/1/hold HTTP/1.1\r\nHost: {address.host}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in key.items()
    )
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((address.host, address.port), PATIENCE) as connection:
        connection.sendall(f"{head}{body}".encode())
        time.sleep(after)
