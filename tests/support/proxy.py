"""A proxy in front of a server that speaks Redis's protocol, which does what networks do."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self, TypedDict, Unpack

from tests.support.servers import free_port
from tests.support.threads import PATIENCE

Matching = bytes | Callable[[bytes], bool]
"""Which requests: those that contain these bytes, or of which this is true."""


class Which(TypedDict, total=False):
    """What a fault hits: all requests and their replies, again and again, unless it is said here.

    Attributes:
        only_for: Which requests, and replies to them.
        times: How often; all is well after that.
    """

    only_for: Matching
    times: int


class Proxy:
    """Passes all on, on both ways, until it is told to do otherwise.

    One fault at most is on at a time: another one takes its place, and `heal` ends it. It hits what
    comes from then on, on connections old and new. A request is one command, also in a pipeline,
    and a reply is the whole answer to it. What the server sends without being asked counts as a
    reply to the last request before it.

    Attributes:
        accepted: How many connections were made to it.
        requests: All requests that have arrived, as they were sent.
        struck: How often a fault has hit a request or a reply; when it is a reply, the server has
            executed the request.
    """

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.accepted = 0
        self.requests: list[bytes] = []
        self.struck = 0
        self._changed = threading.Condition()
        self._fault: _Fault | None = None
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._links: list[_Link] = []

    def refuse(self) -> None:
        """Listen no more, and reset the connections that there are."""
        self.heal()
        self._stop_listening()
        for link in self._links:
            link.drop(reset=True)

    def silent(self, **which: Unpack[Which]) -> None:
        """Swallow requests: the server does not get them, and no answer comes."""
        self._use(None, **which)

    def deaf(self, **which: Unpack[Which]) -> None:
        """Swallow replies: the server has done what it was told, and nobody hears of it."""
        self._use(lambda link, reply: None, **which)

    def delay(self, seconds: float, **which: Unpack[Which]) -> None:
        """Hold each reply back for so long, or until another fault is on, or none."""

        def late(link: _Link, reply: bytes) -> None:
            link.pause(seconds)
            link.answer(reply)

        self._use(late, **which)

    def trickle(self, seconds: float, **which: Unpack[Which]) -> None:
        """Pass replies byte by byte, with so long a pause after each."""

        def slow(link: _Link, reply: bytes) -> None:
            for byte in reply:
                link.answer(bytes([byte]))
                link.pause(seconds)

        self._use(slow, **which)

    def cut_after(self, size: int, **which: Unpack[Which]) -> None:
        """Pass so many bytes of a reply, and close its connection."""

        def cut(link: _Link, reply: bytes) -> None:
            link.answer(reply[:size])
            link.drop()

        self._use(cut, **which)

    def reset(self, **which: Unpack[Which]) -> None:
        """Reset the connection (RST) instead of passing a reply."""
        self._use(lambda link, reply: link.drop(reset=True), **which)

    def garbage(self, data: bytes, **which: Unpack[Which]) -> None:
        """Answer with this instead of the reply."""
        self._use(lambda link, reply: link.answer(data), **which)

    def lose_next_reply(self, *, only_for: Matching = b"") -> None:
        """Swallow one reply, and close its connection; the server has done what it was told."""
        self._use(lambda link, reply: link.drop(), only_for=only_for, times=1)

    def heal(self) -> None:
        """Pass all on again. What was swallowed is lost."""
        with self._changed:
            if self._fault:
                self._fault.is_over = True
            self._fault = None
            self._changed.notify_all()
        self._listen()

    def count(self, matching: Matching = b"") -> int:
        """Return how many such requests have arrived."""
        return sum(_matches(matching, request) for request in list(self.requests))

    def wait_for_request(
        self, matching: Matching = b"", *, count: int = 1, timeout: float = PATIENCE
    ) -> None:
        """Wait until so many such requests have arrived, since the beginning."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self.count(matching) >= count, timeout)
        assert arrived, f"no such request came: {self.requests[-5:]}"

    def wait_until_struck(self, count: int = 1, *, timeout: float = PATIENCE) -> None:
        """Wait until faults have hit so often, since the beginning."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self.struck >= count, timeout)
        assert arrived, f"faults have struck {self.struck} times"

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop_listening()
        for link in self._links:
            link.drop()
        for thread in self._threads:
            thread.join(PATIENCE)
        alive = [thread.name for thread in self._threads if thread.is_alive()]
        assert not alive, f"these did not end: {alive}"

    def _use(
        self,
        on_reply: Callable[[_Link, bytes], None] | None,
        *,
        only_for: Matching = b"",
        times: int | None = None,
    ) -> None:
        self.heal()
        with self._changed:
            self._fault = _Fault(on_reply, only_for, times)

    def _strike(self, request: bytes, *, replied: bool) -> _Fault | None:
        """Return the fault that hits this request or the reply to it, if one does."""
        with self._changed:
            fault = self._fault
            if fault is None or (fault.on_reply is not None) != replied:
                return None
            if not _matches(fault.only_for, request):
                return None
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self._fault = None
            self.struck += 1
            self._changed.notify_all()
            return fault

    def _arrived(self, request: bytes) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._accepting = self._spawn(self._accept, self._listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            # Unlike `close` this wakes the thread that waits for connections.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._accepting.join(PATIENCE)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                try:
                    server = socket.create_connection(self.server, PATIENCE)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                link = _Link(self, client, server)
                self._links.append(link)
                self._spawn(link.pass_requests)
                self._spawn(link.pass_replies)

    def _spawn(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, name=work.__name__, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread


@dataclass
class _Fault:
    on_reply: Callable[[_Link, bytes], None] | None
    """What is done with a reply; None for a fault that swallows requests."""
    only_for: Matching
    times: int | None
    is_over: bool = False


class _Link:
    """One connection to the proxy, and the proxy's own that goes with it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._awaiting: deque[bytes] = deque()
        self._last = b""
        self._fault: _Fault | None = None
        self._is_dropped = False
        self._ended = 0

    def pass_requests(self) -> None:
        with self._until_dropped():
            for request in _values(self._client):
                self._proxy._arrived(request)
                if self._proxy._strike(request, replied=False):
                    continue
                self._last = request
                # What is sent to a subscriber cannot be told from the answers to its request.
                if b"SUBSCRIBE" not in request[:40].upper():
                    self._awaiting.append(request)
                self._server.sendall(request)

    def pass_replies(self) -> None:
        with self._until_dropped():
            for reply in _values(self._server):
                is_asked_for = self._awaiting and not reply.startswith(b">")
                request = self._awaiting.popleft() if is_asked_for else self._last
                self._fault = self._proxy._strike(request, replied=True)
                if self._fault is None or self._fault.on_reply is None:
                    self.answer(reply)
                else:
                    self._fault.on_reply(self, reply)

    def answer(self, data: bytes) -> None:
        self._client.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait for so long, or until the fault is over or the connection dropped."""
        fault = self._fault
        with self._proxy._changed:
            self._proxy._changed.wait_for(
                lambda: self._is_dropped or (fault is not None and fault.is_over), seconds
            )

    def drop(self, *, reset: bool = False) -> None:
        """Have both threads end. The last of them closes, so that none uses a closed socket."""
        with self._proxy._changed, suppress(OSError):
            self._is_dropped = True
            self._proxy._changed.notify_all()
            if reset:
                self._client.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            with suppress(OSError):
                # Only what is not shut down for writing is reset when it is closed.
                self._client.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            self._server.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _until_dropped(self) -> Iterator[None]:
        try:
            with suppress(OSError):
                yield
        finally:
            if not self._is_dropped:
                self.drop()
            with self._proxy._changed:
                self._ended += 1
                if self._ended == 2:
                    self._client.close()
                    self._server.close()


def _matches(matching: Matching, request: bytes) -> bool:
    return matching in request if isinstance(matching, bytes) else matching(request)


def _values(source: socket.socket) -> Iterator[bytes]:
    """Yield each request or reply as soon as it is complete."""
    received = bytearray()
    while data := source.recv(65536):
        received += data
        while received and (end := end_of(received)) is not None:
            yield bytes(received[:end])
            del received[:end]


def end_of(data: bytes | bytearray, start: int = 0) -> int | None:
    """Return where a value of RESP2 or RESP3 ends, or None when it is not there yet."""
    end_of_line = data.find(b"\r\n", start)
    if end_of_line < 0:
        return None
    kind, line = data[start : start + 1], data[start + 1 : end_of_line]
    end: int | None = end_of_line + 2
    if kind in b"$!=":
        end = end_of_line + 2 + (int(line) + 2 if int(line) >= 0 else 0)
        return end if end <= len(data) else None
    if kind in b"*~>%|":
        # A map has pairs; an attribute is one, followed by the value that it is about.
        count = int(line) * (2 if kind in b"%|" else 1) + (kind == b"|")
        for _ in range(count):
            if end is None:
                return None
            end = end_of(data, end)
    return end
