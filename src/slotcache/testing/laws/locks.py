"""What a lock is: granted to one, until its release or its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from slotcache.protocols import Lock, LockProvider
from slotcache.testing.laws.subject import (
    KEY,
    LONG,
    NAMES,
    ROUNDS,
    LockSubject,
    expect_lock,
    together,
)


def a_lock_has_one_holder(subject: LockSubject) -> None:
    """A free lock is granted; while it is held nobody gets it, not even its holder again."""
    ours, theirs = subject.open(), subject.open()
    expect_lock(ours)
    for locks in (ours, theirs):
        [elsewhere] = together(partial(locks.acquire, KEY, ttl=LONG))
        for lock in (locks.acquire(KEY, ttl=LONG), elsewhere):
            assert lock is None, f"it is held, and was granted again: {lock}"


def a_released_lock_is_free(subject: LockSubject) -> None:
    """A release answers True, and the lock is free for all."""
    ours, theirs = subject.open(), subject.open()
    for first, second in ((ours, theirs), (theirs, ours), (ours, ours)):
        lock = expect_lock(first)
        assert first.release(lock) is True, "it was held, and is not released"
        assert second.release(expect_lock(second)) is True, "it was held, and is not released"


def a_second_release_answers_false(subject: LockSubject) -> None:
    """A second release answers False, and leaves whoever holds the lock by then."""
    locks = subject.open()
    lock = expect_lock(locks)
    locks.release(lock)
    assert locks.release(lock) is False, "it was released before"
    expect_lock(locks)
    assert locks.release(lock) is False, "it was released before, and another holds it"
    assert locks.acquire(KEY, ttl=LONG) is None, "the release freed another's lock"


def a_lock_ends_with_its_ttl(subject: LockSubject) -> None:
    """A lock is free again after its `ttl`, whatever became of its holder; others are held on."""
    ours, theirs = subject.open(), subject.open()
    expect_lock(ours, "another name")
    assert ours.acquire(KEY, ttl=subject.unit) is not None, "a free lock is granted"
    subject.pass_time(2 * subject.unit)
    expect_lock(theirs)
    assert theirs.acquire("another name", ttl=LONG) is None, "its ttl is not over"


def a_late_release_frees_nobody_elses_lock(subject: LockSubject) -> None:
    """Releasing a lock that has expired answers False, and leaves who holds it by then."""
    ours, theirs = subject.open(), subject.open()
    late = ours.acquire(KEY, ttl=subject.unit)
    assert late is not None, "a free lock is granted"
    subject.pass_time(2 * subject.unit)
    lock = expect_lock(theirs)
    for locks in (ours, theirs):
        assert locks.release(late) is False, "it had expired, and another holds it"
        assert locks.acquire(KEY, ttl=LONG) is None, "the release freed another's lock"
    assert theirs.release(lock) is True, "it was held, and is not released"


def an_expired_lock_is_no_longer_yours(subject: LockSubject) -> None:
    """Releasing a lock that has expired answers False, also while nobody else has taken it."""
    locks = subject.open()
    late = locks.acquire(KEY, ttl=subject.unit)
    assert late is not None, "a free lock is granted"
    subject.pass_time(2 * subject.unit)
    assert locks.release(late) is False, "it had expired"
    expect_lock(locks)


def names_stay_apart(subject: LockSubject) -> None:
    """Each name is a lock of its own, whatever characters it is made of and however long."""
    ours, theirs = subject.open(), subject.open()
    held = [expect_lock(ours, name) for name in NAMES]
    for lock in held[::2]:
        assert theirs.release(lock) is True, f"it was held, and is not released: {lock!r:.80}"
    for number, name in enumerate(NAMES):
        granted = theirs.acquire(name, ttl=LONG) is not None
        assert granted == (number % 2 == 0), f"{name!r:.40} was released, or kept, with another"


def anybody_may_release(subject: LockSubject) -> None:
    """A lock is two texts: whoever has them may release it, in any thread, through any object."""
    ours, theirs = subject.open(), subject.open()
    for locks in (ours, theirs):
        lock = expect_lock(ours)
        assert isinstance(lock.name, str), f"its name is no text: {lock}"
        assert isinstance(lock.token, str), f"its token is no text: {lock}"
        [released] = together(partial(locks.release, Lock(lock.name, lock.token)))
        assert released is True, "it was held, and another thread could not release it"
    expect_lock(ours)


def a_made_up_lock_is_not_released(subject: LockSubject) -> None:
    """Releasing what nobody was granted answers False, raises nothing and frees nothing."""
    locks = subject.open()
    made_up = [Lock(KEY, token) for token in ("", "made up", "\0", "../a", "\u00e9", "a" * 10_000)]
    for lock in made_up:
        assert locks.release(lock) is False, f"nobody holds it: {lock!r:.80}"
    held = expect_lock(locks)
    for lock in (*made_up, Lock("another name", held.token)):
        assert locks.release(lock) is False, f"nobody was granted it: {lock!r:.80}"
        assert locks.acquire(KEY, ttl=LONG) is None, f"it was freed by {lock!r:.80}"


def acquire_never_waits(subject: LockSubject) -> None:
    """Who asks for a held lock is told at once, to look at the value again meanwhile."""
    locks = subject.open()
    expect_lock(locks)
    waits = []
    for _ in range(3):
        began, really_began = subject.now(), time.perf_counter()
        assert locks.acquire(KEY, ttl=LONG) is None, "it was granted twice"
        waits.append(max(subject.now() - began, time.perf_counter() - really_began))
    # The shortest, for a busy machine may hold up one or two.
    assert min(waits) < 1.0, f"it waited: {waits} s"


def no_two_hold_a_lock_at_once(subject: LockSubject) -> None:
    """However many ask at once, at most one holds the lock at any time."""
    held = threading.Lock()

    def acquire_and_release(locks: LockProvider) -> int:
        granted = 0
        for _ in range(ROUNDS):
            lock = locks.acquire(KEY, ttl=LONG)
            if lock is not None:
                assert held.acquire(blocking=False), "two held it at once"
            time.sleep(0.001)
            if lock is not None:
                granted += 1
                held.release()
                assert locks.release(lock) is True, "it was held, and is not released"
        return granted

    asking = [partial(acquire_and_release, subject.open()) for _ in range(4)]
    assert sum(together(*asking)) > 0, "it was granted to nobody"


laws: tuple[Callable[[LockSubject], None], ...] = (
    a_lock_has_one_holder,
    a_released_lock_is_free,
    a_second_release_answers_false,
    a_lock_ends_with_its_ttl,
    a_late_release_frees_nobody_elses_lock,
    an_expired_lock_is_no_longer_yours,
    names_stay_apart,
    anybody_may_release,
    a_made_up_lock_is_not_released,
    acquire_never_waits,
    no_two_hold_a_lock_at_once,
)
