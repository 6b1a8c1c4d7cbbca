"""S10, S11: what 32 readers wait when a list is missing: 2 processes, 16 readers each.

The query lasts 50 ms, and the list has 1,000 slots. In an episode all readers begin at one instant,
and read once each. The floor is a thread that does nothing but to sleep for as long as the query
lasts, at the same instant. Goals: exactly one load in each episode; when it was cold or cleared,
99 of 100 readers have it within 60 ms; and no lock is taken by those who find it warm.

cold
    It was never read.
cleared
    It was warm until it was cleared.
expired
    Its life of 1 s is over. Slotcache does not refresh ahead of that yet: so the goal, the p99 of
    a warm read, cannot be met. With `lock_timeout=0` only the one who queries waits.
warm
    Commands that the server carried out for one read of a warm list, those inside scripts too. A
    lock shows as `set`.

Readers are threads, or tasks where the cache is for asyncio. `_contenders.py` tells how each is
used, and what it promises.

    python3 dev.py bench redis_expiry [--quick] [--output FILE]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from _contenders import PACKAGES, SlowTable, installed_of
from _processes import Worker
from _redis import Server
from _runner import environment, milliseconds, options, verdict, write
from _sides import List, Side
from _slots import HOUR

GOAL = 60.0
SLOTS, QUERY, LIFE = 1_000, 0.05, 1.0
CONTENDERS = [
    *("slotcache", "slotcache, no waiting", "dogpile.cache redis", "cashews", "cashews early"),
    *("aiocache", "Django RedisCache", "cachelib RedisCache"),
]
FLOOR = "floor"
SCENES = ("cold", "cleared", "expired")


@dataclass
class Episodes:
    """What became of all episodes of one scene with one contender."""

    reads: list[float] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            **milliseconds(self.reads),
            "loads": round(fmean(self.loads), 2),
            "most_loads": max(self.loads),
        }


class Stage:
    """Two processes with a list for each scene and contender, and one that sleeps."""

    def __init__(
        self, server: Server, names: Sequence[str], readers: int, stack: ExitStack
    ) -> None:
        lives = dict.fromkeys(SCENES, HOUR) | {"expired": LIFE}
        self._server = server
        self._tables = {
            (name, scene): SlowTable(SLOTS, QUERY) for name in names for scene in SCENES
        }
        lists = [
            List(name, table, lives[scene], scene) for (name, scene), table in self._tables.items()
        ]
        self._sides = [
            stack.enter_context(Worker(Side, server.url, lists, readers)) for _ in range(2)
        ]
        self._sleeper = stack.enter_context(Worker(Sleeper))

    def prepare(self, scene: str, names: Sequence[str]) -> None:
        """Have the lists of all contenders as they are when the scene begins."""
        if scene == "cold":
            self._server.command("FLUSHDB")
            return
        for name in names:
            for side in self._sides:
                side.call("read", name, scene)
            if scene == "cleared":
                self._sides[0].call("clear", name, scene)
        if scene == "expired":
            time.sleep(LIFE + 0.05)

    def play(self, name: str, scene: str, found: Episodes) -> None:
        """Have all readers read it once."""
        table = self._tables[name, scene]
        loads, begin = table.loads, time.monotonic() + 0.02
        for side in self._sides:
            side.begin("rush", begin, 0.0, name, scene)
        reads = [read for side in self._sides for read in side.answer()]
        assert all(read.shown is not None for read in reads), f"{name} raised"
        found.reads += [read.seconds for read in reads]
        time.sleep(QUERY)  # what is done in the background
        found.loads.append(table.loads - loads)

    def sleep(self, found: Episodes) -> None:
        """Have somebody sleep instead."""
        found.reads.append(self._sleeper.call("sleep", QUERY))
        found.loads.append(1)

    def warm(self, name: str, reads: int) -> dict[str, float]:
        """Return which commands a read of a warm list is, on average."""
        side = self._sides[0]
        side.call("read", name, "cold")
        before = self._server.commands()
        for _ in range(reads):
            side.call("read", name, "cold")
        after = self._server.commands()
        counts = {each: calls - before.get(each, 0) for each, calls in after.items()}
        return {each: round(n / reads, 2) for each, n in counts.items() if n >= reads / 2}


class Sleeper:
    """What runs in the process that reads nothing."""

    def sleep(self, seconds: float) -> float:
        began = time.perf_counter()
        time.sleep(seconds)
        return time.perf_counter() - began


def main() -> None:
    """Measure, print a table and write the results."""
    chosen = options("redis_expiry", "Measure what readers wait when a list is missing.")
    episodes, readers, warm_reads = (1, 4, 20) if chosen.quick else (20, 16, 500)
    rehearsals = 0 if chosen.quick else 1

    where = environment(*PACKAGES)
    names = installed_of(CONTENDERS)
    with Server() as server, ExitStack() as stack:
        stage = Stage(server, names, readers, stack)
        measured = measure(stage, names, rehearsals, episodes)
        warm = {name: stage.warm(name, warm_reads) for name in names}
    for name, commands in warm.items():
        measured[f"warm: {name}"] = {"commands": commands}
    print_waits(measured, verdicts(measured))
    write(
        chosen.output,
        {
            "benchmark": "redis_expiry",
            "goal": {"cold, cleared": GOAL, "unit": "milliseconds, p99", "most_loads": 1},
            "environment": where,
            "processes": 2,
            "readers_a_process": readers,
            "episodes": episodes,
            "measured": measured,
        },
    )


def measure(
    stage: Stage, names: Sequence[str], rehearsals: int, episodes: int
) -> dict[str, dict[str, Any]]:
    """Play every scene with everybody in turn, several times."""
    found = {(scene, name): Episodes() for scene in SCENES for name in (FLOOR, *names)}
    for episode in range(-rehearsals, episodes):
        for scene in SCENES:
            stage.prepare(scene, names)
            for name in names:
                # Everybody connects in the rehearsal.
                stage.play(name, scene, found[scene, name] if episode >= 0 else Episodes())
            stage.sleep(found[scene, FLOOR])
    return {f"{scene}: {name}": each.summary() for (scene, name), each in found.items()}


def verdicts(measured: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Say of each goal whether it is met."""
    said = {}
    for scene in ("cold", "cleared"):
        ours = measured[f"{scene}: slotcache"]
        loads = verdict(ours["most_loads"], 1)
        said[f"{scene}: slotcache"] = f"loads, {loads}; p99, {verdict(ours['p99'], GOAL)}"
    loads = verdict(measured["expired: slotcache"]["most_loads"], 1)
    said["expired: slotcache"] = f"loads, {loads}; p99 of a warm read: not without refresh-ahead"
    locks = measured["warm: slotcache"]["commands"].get("set", 0)
    said["warm: slotcache"] = f"locks, {verdict(locks, 0)}"
    return said


def print_waits(measured: dict[str, dict[str, Any]], said: dict[str, str]) -> None:
    width = max(map(len, measured))
    line = f"{{:{width}}} {{:>8}} {{:>8}} {{:>8}} {{:>8}} {{:>6}}   {{}}"
    print(line.format("", "p50, ms", "p99", "most", "loads", "most", "goal"))
    for name, each in measured.items():
        if "commands" in each:
            counts = ", ".join(
                f"{command} {count:g}" for command, count in each["commands"].items()
            )
            print(f"{name:{width}} {counts}   {said.get(name, '')}".rstrip())
        else:
            figures = (f"{each[which]:.1f}" for which in ("p50", "p99", "most"))
            loads = (f"{each['loads']:.2f}", each["most_loads"])
            print(line.format(name, *figures, *loads, said.get(name, "")).rstrip())


if __name__ == "__main__":
    main()
