"""How many holds a second, and how long the unlucky wait: threads that create holds for a while."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from time import perf_counter, sleep

from _holds_sides import THREADS, Create, PostgresTables, SqliteTables
from _runner import Spread


@dataclass(frozen=True)
class Rush:
    """What the threads of one turn did.

    Attributes:
        each: How many holds each thread created in time.
        late: How many more they created, which they had begun in time.
        seconds: How long they were given.
        longest: The most seconds that one call took, the late ones included.
    """

    each: list[int]
    late: int
    seconds: float
    longest: float

    @property
    def rate(self) -> float:
        """Holds a second; never none, even if a turn was too short for one."""
        return max(1, sum(self.each)) / self.seconds

    @property
    def slowest_share(self) -> float:
        """What the slowest thread created, for each that a thread created on average."""
        return min(self.each) / statistics.fmean(self.each) if any(self.each) else 0.0


@dataclass(frozen=True)
class Rate:
    """One side: its holds a second, and how that compares with the floor of the same rounds.

    Attributes:
        holds_a_second: Over the rounds.
        ratio: To the floor; more is better.
        longest_ms: The most milliseconds that one call took: the median of the rounds, and of all.
        slowest_share: As in `Rush`: the median of the rounds, and the least.
        live_holds: How many there were at the end of a turn, on all slots, in the median.
    """

    holds_a_second: Spread
    ratio: Spread
    longest_ms: dict[str, float]
    slowest_share: dict[str, float]
    live_holds: int


def compare(
    tables: PostgresTables | SqliteTables, *, slots: int, rounds: int, seconds: float
) -> dict[str, Rate]:
    """Have all sides take turns on the same tables; the first is the floor."""
    sides = tables.sides()
    try:
        threads = {
            name: [side.for_a_thread() for _ in range(THREADS)] for name, side in sides.items()
        }
        for creates in threads.values():
            rush(creates, slots, seconds / 4)
        rushes: dict[str, list[Rush]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, creates in threads.items():
                tables.renew()
                turn = rush(creates, slots, seconds)
                _check(tables, name, turn)
                rushes[name].append(turn)
    finally:
        for side in sides.values():
            side.close()
    return _summary(rushes)


def rush(creates: list[Create], slots: int, seconds: float) -> Rush:
    """Let each thread create holds, on slots at random, as fast as it can."""
    ready, start = threading.Barrier(len(creates) + 1), threading.Event()
    each, late, longest = [0] * len(creates), [0] * len(creates), [0.0] * len(creates)
    end = float("inf")
    failures: list[BaseException] = []

    def work(me: int, create: Create) -> None:
        choose, created, most = Random(me), 0, 0.0
        ready.wait()
        start.wait()
        try:
            began = perf_counter()
            while began < end:
                create(choose.randint(1, slots))
                ended = perf_counter()
                most = max(most, ended - began)
                created += ended <= end
                late[me] += ended > end
                began = ended
        except BaseException as failure:
            failures.append(failure)
        each[me], longest[me] = created, most

    workers = [
        threading.Thread(target=work, args=(me, create)) for me, create in enumerate(creates)
    ]
    for worker in workers:
        worker.start()
    ready.wait()
    end = perf_counter() + seconds
    start.set()
    sleep(seconds)
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return Rush(each, sum(late), seconds, max(longest))


def _check(tables: PostgresTables | SqliteTables, name: str, turn: Rush) -> None:
    """Each call has made a hold, and each place was taken."""
    holds, places = tables.taken()
    assert holds == sum(turn.each) + turn.late, name
    assert places == (0 if name.endswith("counted") else holds), name


def _summary(rushes: Mapping[str, list[Rush]]) -> dict[str, Rate]:
    floor = next(iter(rushes.values()))
    found = {}
    for name, turns in rushes.items():
        longest = [turn.longest * 1e3 for turn in turns]
        shares = [turn.slowest_share for turn in turns]
        ratios = [turn.rate / least.rate for turn, least in zip(turns, floor, strict=True)]
        found[name] = Rate(
            Spread.of([turn.rate for turn in turns]),
            Spread.of(ratios),
            {"median": round(statistics.median(longest), 1), "most": round(max(longest), 1)},
            {"median": round(statistics.median(shares), 3), "least": round(min(shares), 3)},
            round(statistics.median(sum(turn.each) + turn.late for turn in turns)),
        )
    return found


def print_rates(rates: Mapping[str, Rate], goals: Mapping[str, float]) -> None:
    """Print what was measured, with the verdicts on those sides that have a goal."""
    width = max(map(len, rates))
    line = f"{{:{width}}} {{:>8}} {{:>6}} {{:>12}} {{:>16}} {{:>9}} {{:>7}}   {{}}"
    heads = ["holds/s", "ratio", "p10 to p90", "longest, ms", "slowest", "live"]
    print(line.format("", *heads, "goal"))
    for name, each in rates.items():
        goal = ""
        if name in goals:
            met = "met" if each.ratio.median >= goals[name] else "missed"
            goal = f"{goals[name]:g}: {met}"
        figures = [
            f"{each.holds_a_second.median:,.0f}",
            f"{each.ratio.median:.2f}",
            f"{each.ratio.p10:.2f} to {each.ratio.p90:.2f}",
            f"{each.longest_ms['median']:,.0f}, most {each.longest_ms['most']:,.0f}",
            f"{each.slowest_share['median']:.0%}",
            f"{each.live_holds:,}",
        ]
        print(line.format(name, *figures, goal).rstrip())
