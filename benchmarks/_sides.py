"""One of several processes of an application, whose readers all want the same lists."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from _contenders import Contender, Loop, SlowTable, contender


@dataclass(frozen=True)
class List:
    """A list that several processes share.

    Attributes:
        name: The contender.
        table: What it shows.
        life: The seconds that it lives.
        key: Tells it from other lists of the same contender.
    """

    name: str
    table: SlowTable
    life: float
    key: str = ""


@dataclass(frozen=True)
class Read:
    """How a read went.

    Attributes:
        seconds: What it took.
        shown: The version that it showed; None: it raised.
        least: The version that it had to show.
    """

    seconds: float
    shown: int | None
    least: int

    @property
    def stale(self) -> bool:
        """Whether it showed the past."""
        return self.shown is not None and self.shown < self.least


class Side:
    """What runs in such a process: made there, and told what to do.

    Args:
        url: Of the server.
        lists: Whatever may be read.
        readers: How many of them there are: threads, or tasks of one loop.
    """

    def __init__(self, url: str, lists: Sequence[List], readers: int) -> None:
        warnings.simplefilter("ignore")
        logging.disable()
        self._lists = {
            (each.name, each.key): (
                contender(each.name, url, each.table, each.life, each.key),
                each,
            )
            for each in lists
        }
        self._readers = readers
        self._pool = ThreadPoolExecutor(readers)
        self._loop = Loop()

    def read(self, name: str, key: str = "") -> int:
        """Read once; return the version that was shown."""
        cache, _ = self._lists[name, key]
        return cache.shown(self._loop.call(cache.read))

    def clear(self, name: str, key: str = "") -> object:
        """Have the cache forget it; return what it answers, or what it raises, as text."""
        cache, _ = self._lists[name, key]
        try:
            return self._loop.call(cache.clear)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def change(self, seconds: float, rate: float, name: str, key: str = "") -> int:
        """Change the table and clear, so many times a second; return how often that was."""
        cache, shared = self._lists[name, key]
        began = time.monotonic()
        changes = 0
        while (now := time.monotonic()) < began + seconds:
            time.sleep(max(0.0, began + changes / rate - now))
            version = shared.table.change()
            self._loop.call(cache.clear)
            shared.table.acknowledge(version)
            changes += 1
        return changes

    def rush(
        self, begin: float, end: float, name: str, key: str = "", pause: float = 0.0
    ) -> list[Read]:
        """Have all readers read from one instant on, once at least, and until another is over.

        Args:
            begin: The first instant, of `time.monotonic`, which all processes share.
            end: The last one.
            name: The contender.
            key: Which of its lists.
            pause: Seconds after which a reader comes again, on average.
        """
        cache, shared = self._lists[name, key]
        crowd = Crowd(cache, shared.table, begin, end, pause)
        if cache.is_async:
            return self._loop.run(crowd.read_soon(self._readers))
        reads = [self._pool.submit(crowd.read) for _ in range(self._readers)]
        return [read for one in reads for read in one.result()]


@dataclass(frozen=True)
class Crowd:
    """Readers of one list, of one process, who read and pause from one instant to another."""

    cache: Contender
    table: SlowTable
    begin: float
    end: float
    pause: float

    def read(self) -> list[Read]:
        """Be one of them."""
        reads: list[Read] = []
        time.sleep(max(0.0, self.begin - time.monotonic()))
        while not reads or time.monotonic() < self.end:
            time.sleep(self._wait())
            least, began = self.table.acknowledged, time.perf_counter()
            try:
                found = self.cache.read()
            except Exception:
                found = None
            reads.append(self._read(began, found, least))
        return reads

    async def read_soon(self, readers: int) -> list[Read]:
        """Be all of them."""
        reads = await asyncio.gather(*(self._read_soon() for _ in range(readers)))
        return [read for one in reads for read in one]

    async def _read_soon(self) -> list[Read]:
        reads: list[Read] = []
        await asyncio.sleep(max(0.0, self.begin - time.monotonic()))
        while not reads or time.monotonic() < self.end:
            await asyncio.sleep(self._wait())
            least, began = self.table.acknowledged, time.perf_counter()
            try:
                found = await self.cache.read()
            except Exception:
                found = None
            reads.append(self._read(began, found, least))
        return reads

    def _read(self, began: float, found: Any, least: int) -> Read:
        seconds = time.perf_counter() - began
        return Read(seconds, None if found is None else self.cache.shown(found), least)

    def _wait(self) -> float:
        return random.expovariate(1 / self.pause) if self.pause else 0.0
