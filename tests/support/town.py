"""A town of offices: what becomes of them, and who looks at the books meanwhile."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import sqlalchemy as sa

from slotcache.sql import SqlSlots
from tests.support.history import COUNTED, Entry, History, Journal, Terms, read_journals
from tests.support.offices import POLICY, SLOTS, Office, Plan
from tests.support.processes import Worker
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.threads import PATIENCE, spawn


class Town:
    """All processes, what becomes of them, and who looks at the books.

    Args:
        plan: What they are told.
        server: Where the lists are.

    Attributes:
        suffered: How often what was done to them.
    """

    def __init__(self, plan: Plan, server: Server) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._journal = Journal(plan.folder / "town")
        self._engine = sa.create_engine(plan.engine_url("town"))
        self._proxy = Proxy(*server.address)
        self._kinds: dict[str, tuple[type[Office], Plan]] = {}
        self._started: Counter[str] = Counter()
        self._workers: dict[str, tuple[str, Worker]] = {}
        self._musts: list[Callable[[], None]] = [self._cut, self._kill]
        self.suffered: Counter[str] = Counter()

    def live(self, kinds: Mapping[str, type[Office]]) -> History:
        """Have one process of each kind work until the day is over.

        One whose kind is called "first" changes capacities, and nothing happens to it; one that is
        "cut off" reaches the server through a link that fails.

        Returns:
            What they have written down.
        """
        with ExitStack() as stack:
            stack.enter_context(closing(self))
            stack.enter_context(self._proxy)
            stack.callback(self._end)
            self._open()
            for kind, office in kinds.items():
                cut_off = replace(self._plan, redis=self._proxy.url, is_cut_off=True)
                self._kinds[kind] = office, (cut_off if kind == "cut off" else self._plan)
            workers = [(kind, *self._hire(kind)) for kind in kinds]
            for _, _, worker in workers:
                worker.start("get_ready")
            for _, _, worker in workers:
                worker.answer()
            self._until = time.monotonic() + self._plan.seconds
            looking = spawn(self._look)
            for each in workers:
                self._start(*each)
            while (left := self._until - time.monotonic()) > 0:
                time.sleep(min(left, self._chance.uniform(0.02, 0.12)))
                self._strike()
            self._proxy.heal()
            for _, worker in self._workers.values():
                worker.answer()  # it raises what went wrong there
            looking.result(PATIENCE)
            return self._history()

    def close(self) -> None:
        """Close what it has open."""
        self._engine.dispose()

    def _open(self) -> None:
        """Make the tables, and the books."""
        with SqlSlots(self._engine, claim=self._plan.claim) as slots:
            slots.create_tables()
            for slot, (scope, capacity) in SLOTS.items():
                slots.add([(slot, capacity), (slot + COUNTED, 0)], scope=scope)
        with self._engine.begin() as connection:
            connection.exec_driver_sql(_BOOKS)

    def _hire(self, kind: str) -> tuple[str, Worker]:
        self._started[kind] += 1
        name = f"{kind} {self._started[kind]}"
        return name, Worker(*self._kinds[kind], name)

    def _start(self, kind: str, name: str, worker: Worker) -> None:
        self._workers[name] = kind, worker
        worker.start("live", self._until, kind == "first")

    def _strike(self) -> None:
        """Do one of the things to them that happen: whatever the seed, one of each is a must."""
        if self._musts:
            self._musts.pop()()
            return
        strikes: Sequence[Callable[[], None]] = (
            self._kill,
            self._cut,
            self._proxy.heal,
            self._end_connection,
        )
        (strike,) = self._chance.choices(strikes, (4, 4, 3, 1))
        strike()

    def _kill(self) -> None:
        names = [name for name, (kind, _) in self._workers.items() if kind != "first"]
        if not names:
            return
        name = self._chance.choice(names)
        kind, worker = self._workers.pop(name)
        if worker.has_answered():
            worker.answer()
        with self._journal.call("kill", victim=name):
            worker.kill()
        self.suffered["kills"] += 1
        self._start(kind, *self._hire(kind))

    def _cut(self) -> None:
        cuts: list[Callable[[], None]] = [
            self._proxy.refuse,
            self._proxy.silent,
            self._proxy.deaf,
            self._proxy.reset,
            partial(self._proxy.delay, 0.2),
        ]
        self._chance.choice(cuts)()
        self.suffered["cuts"] += 1

    def _end_connection(self) -> None:
        """Have the database end a connection of one of those to whom things happen."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql(_END_CONNECTION)
        self.suffered["connections ended"] += 1

    def _look(self) -> None:
        """Look at the books, as one who is no part of this."""
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            while time.monotonic() < self._until:
                with self._journal.call("look") as came:
                    rows = connection.exec_driver_sql(_LOOK).all()
                    came["counts"] = {row.slot_id: row.count for row in rows}
                    came["now"] = rows[0].now
                time.sleep(0.015)

    def _end(self) -> None:
        for _, worker in self._workers.values():
            worker.__exit__()

    def _history(self) -> History:
        terms = Terms(
            SLOTS, self._plan.claim, POLICY.ttl, POLICY.stale_ttl, POLICY.min_ttl, POLICY.lock_ttl
        )
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ")
            books = [Entry(*row) for row in connection.exec_driver_sql(_READ_BOOKS)]
            holds = connection.exec_driver_sql("SELECT id::text AS id, state FROM slot_holds")
            states = {row.id: row.state for row in holds}
            slots = connection.exec_driver_sql("SELECT slot_id, remaining FROM slots")
            remaining = {row.slot_id: row.remaining for row in slots}
        return History(terms, read_journals(self._plan.folder), books, states, remaining)


_BOOKS = f"""
CREATE TABLE books (
    slot_id bigint, count int, transaction bigint, at float8, who text, capacity int, remaining int,
    hold_id uuid, owner text, quantity int, state text, created float8, expires float8
);
CREATE FUNCTION next_count(slot bigint) RETURNS int LANGUAGE sql AS $$
    UPDATE slots SET capacity = capacity + 1, remaining = remaining + 1
    WHERE slot_id = slot + {COUNTED} RETURNING capacity
$$;
CREATE FUNCTION book_slot() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO books SELECT
        NEW.slot_id, next_count(NEW.slot_id), txid_current(),
        extract(epoch FROM clock_timestamp()), current_setting('application_name'),
        NEW.capacity, NEW.remaining;
    RETURN NULL;
END $$;
CREATE FUNCTION book_hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO books SELECT
        slot_id, next_count(slot_id), txid_current(),
        extract(epoch FROM clock_timestamp()), current_setting('application_name'),
        capacity, remaining, NEW.id, NEW.owner, NEW.quantity, NEW.state,
        extract(epoch FROM NEW.created_at), extract(epoch FROM NEW.expires_at)
    FROM slots WHERE slot_id = NEW.slot_id;
    RETURN NULL;
END $$;
CREATE TRIGGER book_slot AFTER UPDATE ON slots FOR EACH ROW WHEN (
    NEW.slot_id < {COUNTED}
    AND (NEW.capacity, NEW.remaining) IS DISTINCT FROM (OLD.capacity, OLD.remaining)
) EXECUTE FUNCTION book_slot();
CREATE TRIGGER book_hold AFTER INSERT OR UPDATE ON slot_holds FOR EACH ROW
    EXECUTE FUNCTION book_hold();
"""
"""Writes down each change of a slot or a hold, in its own transaction, and counts those of a slot.

Whoever changes anything of a slot has its row locked: so the counts are in the order of commits.
"""

_READ_BOOKS = """
SELECT slot_id, count, transaction, at, who, capacity, remaining,
    hold_id::text, owner, coalesce(quantity, 0), state, coalesce(created, 0), coalesce(expires, 0)
FROM books ORDER BY slot_id, count
"""

_LOOK = f"""
SELECT slot_id - {COUNTED} AS slot_id, capacity AS count,
    extract(epoch FROM clock_timestamp())::float8 AS now
FROM slots WHERE slot_id > {COUNTED}
"""

_END_CONNECTION = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name !~ '^(town|first)'
ORDER BY random() LIMIT 1
"""
