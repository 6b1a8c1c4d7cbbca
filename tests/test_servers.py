"""The servers and the proxy that other tests run on do what they say."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.proxy import Proxy, end_of
from tests.support.servers import (
    ErrorReply,
    RedisServer,
    Server,
    encode_command,
    read_reply,
    until,
)
from tests.support.threads import PATIENCE, spawn

ROOT = Path(__file__).parent.parent


class Client:
    """One connection, on which requests are sent and answers are looked at."""

    def __init__(self, server: Server | Proxy) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self.stream = self.socket.makefile("rb")

    def send(self, *words):
        self.socket.sendall(encode_command(*words))

    def call(self, *words):
        self.send(*words)
        return read_reply(self.stream)

    def hears_within(self, seconds):
        """Whether anything comes by then, be it the end."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) is not None
        except TimeoutError:
            return False
        finally:
            self.socket.settimeout(PATIENCE)

    def close(self):
        self.stream.close()
        self.socket.close()


@pytest.fixture
def proxy(own_redis):
    with Proxy(*own_redis.address) as proxy:
        yield proxy


@pytest.fixture
def connect():
    clients = []

    def connect(server):
        clients.append(Client(server))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it is just about to go
        return False
    return False


# Servers


def test_the_shared_server_answers(redis_server, redis_prefix):
    assert redis_server.command("SET", f"{redis_prefix}:a", 1) == b"OK"
    assert redis_server.command("GET", f"{redis_prefix}:a") == b"1"


def test_an_error_is_raised(redis_server):
    with pytest.raises(ErrorReply, match="unknown command"):
        redis_server.command("NONSENSE")


def test_its_pid_is_the_servers_own(own_redis):
    assert f"process_id:{own_redis.pid}\r\n".encode() in own_redis.command("INFO", "server")


def test_a_killed_server_refuses_at_once_and_comes_back_empty_on_its_port(own_redis):
    own_redis.command("SET", "a", 1)
    port, pid = own_redis.port, own_redis.pid

    own_redis.kill()

    assert refuses(port)
    own_redis.start()
    assert (own_redis.port, own_redis.command("GET", "a")) == (port, None)
    assert own_redis.pid != pid


def test_a_restarted_server_is_empty_and_on_its_port(own_redis):
    own_redis.command("SET", "a", 1)
    port = own_redis.port

    own_redis.restart()

    assert (own_redis.port, own_redis.command("GET", "a")) == (port, None)


def test_a_stopped_server_is_silent_until_it_goes_on_and_has_lost_nothing(own_redis):
    own_redis.command("SET", "a", 1)

    own_redis.stop_answering()

    with pytest.raises(TimeoutError):
        own_redis.command("GET", "a", timeout=0.05)
    own_redis.go_on()
    assert own_redis.command("GET", "a") == b"1"


def test_a_stopped_server_can_be_closed(own_redis):
    own_redis.stop_answering()

    own_redis.close()

    assert refuses(own_redis.port)


def test_a_closed_server_leaves_no_folder(own_redis):
    folder = Path(own_redis.command("CONFIG", "GET", "dir")[1].decode())
    assert folder.exists()

    own_redis.close()

    assert not folder.exists()


def test_a_server_with_a_password_wants_it_and_has_it_in_its_url(redis_program):
    with RedisServer(password="secret") as server:
        assert Server(server.url).command("PING") == b"PONG"
        with pytest.raises(ErrorReply, match="NOAUTH"):
            Server(f"redis://127.0.0.1:{server.port}").command("PING")


def test_a_server_takes_more_options(redis_program):
    with RedisServer("--maxmemory", "3mb") as server:
        assert server.command("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"3145728"]


def test_an_option_that_is_wrong_is_told_with_the_servers_own_words(redis_program):
    with pytest.raises(AssertionError, match="nonsense"):
        RedisServer("--nonsense", "1").start()


def test_a_port_that_is_taken_is_left_to_its_owner(own_redis):
    other = RedisServer()
    other._move_to(own_redis.port)

    with other:
        assert other.port != own_redis.port
        assert other.command("PING") == b"PONG"


def test_a_url_may_name_a_database(own_redis):
    Server(f"{own_redis.url}/3").command("SET", "a", 1)

    assert own_redis.command("GET", "a") is None
    assert Server(f"{own_redis.url}/3").command("GET", "a") == b"1"


def test_the_cluster_is_ok_and_has_all_slots(redis_cluster, redis_prefix):
    info = redis_cluster.command("CLUSTER", "INFO")

    assert b"cluster_state:ok\r\n" in info
    assert b"cluster_slots_ok:16384\r\n" in info
    assert redis_cluster.command("SET", f"{redis_prefix}:a", 1) == b"OK"


def test_nothing_is_left_of_a_server_when_its_process_is_killed(redis_program):
    code = (
        "from tests.support.servers import RedisServer\n"
        "server = RedisServer()\n"
        "server.start()\n"
        "print(server.port, server._keeper.folder, flush=True)\n"
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
        port, folder = child.stdout.readline().split()
        with socket.create_connection(("127.0.0.1", int(port)), PATIENCE) as connection:
            child.send_signal(signal.SIGKILL)

            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""

    until(lambda: refuses(int(port)), "the server is still there")
    until(lambda: not Path(folder.decode()).exists(), "its folder is still there")


# The proxy


def test_a_proxy_passes_all_on_and_counts_it(proxy, connect):
    client = connect(proxy)

    assert client.call("SET", "a", "x" * 200_000) == b"OK"
    assert client.call("GET", "a") == b"x" * 200_000
    assert (proxy.accepted, len(proxy.requests), proxy.struck) == (1, 2, 0)
    assert (proxy.count(b"GET"), proxy.count(lambda request: len(request) > 100_000)) == (1, 1)


def test_a_pipeline_is_counted_by_its_commands(proxy, connect):
    client = connect(proxy)

    client.socket.sendall(encode_command("PING") * 3)

    assert [read_reply(client.stream) for _ in range(3)] == [b"PONG"] * 3
    assert proxy.count(b"PING") == 3


def test_one_can_wait_for_a_request(proxy, connect):
    client = connect(proxy)
    waiting = spawn(lambda: proxy.wait_for_request(b"GET", count=2))

    client.call("GET", "a")
    client.call("PING")
    assert not waiting.done()
    client.call("GET", "a")

    waiting.result(PATIENCE)


def test_a_request_that_does_not_come_is_waited_for_no_longer_than_that(proxy):
    with pytest.raises(AssertionError, match="no such request"):
        proxy.wait_for_request(b"GET", timeout=0.01)


def test_one_that_refuses_resets_what_there_is_and_is_back_on_its_port(proxy, connect):
    client = connect(proxy)
    client.call("PING")

    proxy.refuse()

    with pytest.raises(ConnectionResetError):
        client.call("PING")
    assert refuses(proxy.port)
    proxy.heal()
    assert connect(proxy).call("PING") == b"PONG"


def test_a_silent_one_keeps_requests_from_the_server(proxy, connect, own_redis):
    old = connect(proxy)
    old.call("PING")

    proxy.silent()

    new = connect(proxy)
    old.send("INCR", "a")
    new.send("INCR", "a")
    proxy.wait_until_struck(2)
    assert not old.hears_within(0.05)
    assert own_redis.command("GET", "a") is None
    proxy.heal()
    assert (old.call("PING"), new.call("PING")) == (b"PONG", b"PONG")


def test_a_deaf_one_lets_the_server_do_it_and_says_nothing(proxy, connect, own_redis):
    client = connect(proxy)
    client.call("PING")

    proxy.deaf()

    client.send("INCR", "a")
    proxy.wait_until_struck()
    assert own_redis.command("GET", "a") == b"1"
    assert not client.hears_within(0.05)
    proxy.heal()
    assert client.call("GET", "a") == b"1"


def test_a_delayed_reply_comes_no_earlier(proxy, connect):
    client = connect(proxy)
    proxy.delay(0.1)

    began = time.monotonic()

    assert client.call("PING") == b"PONG"
    assert time.monotonic() - began >= 0.1


def test_a_delayed_reply_comes_when_it_is_healed(proxy, connect):
    client = connect(proxy)
    proxy.delay(1000)

    client.send("PING")
    proxy.wait_until_struck()
    assert not client.hears_within(0.02)
    proxy.heal()

    assert read_reply(client.stream) == b"PONG"


def test_a_trickling_reply_comes_byte_by_byte(proxy, connect):
    client = connect(proxy)
    proxy.trickle(0.01)

    began = time.monotonic()

    assert client.call("PING") == b"PONG"
    assert time.monotonic() - began >= 0.06


def test_a_reply_is_cut_after_so_many_bytes_and_again_until_it_is_healed(proxy, connect):
    proxy.cut_after(3)

    for client in (connect(proxy), connect(proxy)):
        client.send("PING")
        assert client.stream.read() == b"+PO"

    proxy.heal()
    assert connect(proxy).call("PING") == b"PONG"


def test_a_fault_strikes_as_often_as_it_is_told_to(proxy, connect):
    proxy.cut_after(3, times=1)

    client = connect(proxy)
    client.send("PING")

    assert client.stream.read() == b"+PO"
    assert connect(proxy).call("PING") == b"PONG"


def test_a_reset_comes_in_place_of_the_reply(proxy, connect):
    client = connect(proxy)
    proxy.reset()

    with pytest.raises(ConnectionResetError):
        client.call("PING")


def test_garbage_comes_in_place_of_the_reply(proxy, connect):
    client = connect(proxy)
    proxy.garbage(b":7\r\n", times=1)

    assert client.call("PING") == 7
    assert client.call("PING") == b"PONG"


def test_a_lost_reply_is_that_of_a_request_that_was_executed(proxy, connect, own_redis):
    client = connect(proxy)
    proxy.lose_next_reply()

    client.send("INCR", "a")

    assert client.stream.read() == b""
    assert own_redis.command("GET", "a") == b"1"
    assert connect(proxy).call("INCR", "a") == 2


@pytest.mark.parametrize("fault", ["silent", "deaf", "reset", "lose_next_reply"])
def test_a_fault_for_some_requests_passes_all_others(fault, proxy, connect):
    client = connect(proxy)

    getattr(proxy, fault)(only_for=b"INCR")

    assert client.call("SET", "a", 1) == b"OK"
    assert proxy.struck == 0
    client.send("INCR", "a")
    proxy.wait_until_struck()
    assert connect(proxy).call("GET", "a") == (b"1" if fault == "silent" else b"2")


def test_a_fault_hits_the_right_reply_of_a_pipeline(proxy, connect):
    client = connect(proxy)
    proxy.garbage(b"+hit\r\n", only_for=lambda request: b"GET" in request)

    commands = [("SET", "a", 1), ("GET", "a"), ("PING",)]
    client.socket.sendall(b"".join(encode_command(*command) for command in commands))

    assert [read_reply(client.stream) for _ in commands] == [b"OK", b"hit", b"PONG"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_what_a_subscriber_is_sent_counts_as_a_reply_to_its_request(
    protocol, proxy, connect, own_redis
):
    client = connect(proxy)
    client.send("HELLO", protocol)
    client.send("SUBSCRIBE", "news")
    client.hears_within(PATIENCE)
    until(lambda: own_redis.command("PUBSUB", "NUMSUB", "news")[1] == 1, "nobody subscribed")
    proxy.lose_next_reply(only_for=b"SUBSCRIBE")

    own_redis.command("PUBLISH", "news", "unheard")
    end = client.stream.read()

    assert b"unheard" not in end


def test_a_proxy_whose_server_is_gone_closes_its_connections(proxy, connect, own_redis):
    client = connect(proxy)
    client.call("PING")

    own_redis.kill()

    assert client.stream.read() == b""
    assert connect(proxy).stream.read() == b""
    own_redis.start()
    assert connect(proxy).call("PING") == b"PONG"


def test_no_thread_outlives_a_proxy_and_its_port_refuses(own_redis, connect):
    with Proxy(*own_redis.address) as proxy:
        proxy.delay(1000)
        client = connect(proxy)
        client.send("PING")
        proxy.wait_until_struck()

    assert not any(thread.is_alive() for thread in proxy._threads)
    assert refuses(proxy.port)


@pytest.mark.parametrize(
    "value",
    [
        b"PING\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b"$0\r\n\r\n",
        b"$4\r\n\r\n\r\n\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*2\r\n*1\r\n:1\r\n$1\r\na\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"%0\r\n",
        b"|1\r\n+a\r\n:1\r\n+OK\r\n",
        b">2\r\n+a\r\n_\r\n",
        b"~1\r\n#t\r\n",
        b"=5\r\ntxt:a\r\n",
    ],
)
def test_a_value_ends_where_it_ends(value):
    assert end_of(value + b"+more\r\n") == len(value)
    assert [end_of(value[:size]) for size in range(len(value))] == [None] * len(value)
