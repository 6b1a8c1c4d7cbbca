"""P11 the lock is an optimisation.

A lock that expires early, is lost, is granted twice or cannot be asked for costs a query. It never
costs a wrong answer: what may be shown to whom is decided by generations, in the cache, and by no
lock. So a process that stands still for an hour while it holds the lock, a lock server that was
restarted, and locks that exclude nobody at all are merely slow.

Limits: P3 is what such a lock costs: queries, as many at a time as there are processes. Within one
service readers go on sharing theirs.

Shown: The code that ships is run through every schedule of two readers and a writer with locks that
exclude nobody, with the lock lost while its holder goes on, granted to two, or failing before and
after it was taken or given back; in one process and in two. On each backend, in each world, random
histories without a working lock show what is true.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.exploring import no_schedule_breaks
from tests.support.scenarios import SPEC
from tests.support.shelf import NoLocks, Shelf, left


@pytest.mark.one_world("the explorer runs the flow of both worlds by itself")
@pytest.mark.parametrize("happening", SPEC["P11"])
def test_no_schedule_without_a_lock_that_works_shows_what_is_wrong(happening, record_property):
    no_schedule_breaks(record_property, f"P11: {happening}", SPEC["P11"][happening])


deeds = st.tuples(st.sampled_from(["read", "change", "clear"]), st.integers(0, 2))


@settings(max_examples=settings().max_examples // 10)
@given(steps=st.lists(st.tuples(deeds, st.lists(deeds, max_size=3)), max_size=6))
def test_no_history_without_a_lock_that_works_shows_what_is_wrong(backend, steps):
    """While a query runs, three processes go on, and query as well."""
    with backend.opened() as storage:
        shelf = Shelf()
        processes = [storage.service(shelf, locks=NoLocks()) for _ in range(3)]

        def do(deed: str, process: int) -> None:
            service = processes[process]
            if deed == "read":
                must_show = shelf.remaining
                assert left(service.get_availability()) <= must_show
                return
            shelf.remaining -= deed == "change"
            assert service.clear_availability_cache()

        for deed, others in steps:

            def meanwhile(others: list[tuple[str, int]] = others, busy: int = deed[1]) -> None:
                shelf.during_load = lambda: None
                for other in others:
                    if other[1] != busy:
                        do(*other)

            shelf.during_load = meanwhile
            do(*deed)
