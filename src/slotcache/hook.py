"""Calling the invalidation hook so that a change which is committed cannot look failed (P8).

Written once, for both worlds: what differs is how a hook is called, and waited for.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

from slotcache.protocols import AsyncInvalidationHook, InvalidationHook, Scope
from slotcache.threaded import Threads

__all__ = ["Call", "Hook", "call_here", "call_on_asyncio", "check_hook", "tell_all"]

_log = logging.getLogger("slotcache")

Call: TypeAlias = Callable[[Any, Scope | None], Awaitable[None]]
"""How a hook is called with a scope: it is done when that is."""


class Hook:
    """An invalidation hook whose failures are logged and counted, and go no further.

    Args:
        on_change: What is called with the scope whose list changed; None: nothing.

    Attributes:
        failures: How often it has raised.
    """

    def __init__(self, on_change: InvalidationHook | AsyncInvalidationHook | None) -> None:
        self._on_change = on_change
        self.failures = 0

    def calls_the_same(self, other: Hook) -> bool:
        """Whether one of the two need be told."""
        return self._on_change == other._on_change

    async def tell(self, scope: Scope | None, call: Call) -> None:
        """Say that the list of this scope has changed."""
        if self._on_change is None:
            return
        try:
            await call(self._on_change, scope)
        except Exception:
            self.failures += 1
            _log.exception(
                "the hook that clears the list failed for scope %r: the cached list is out of date "
                "until its ttl ends",
                scope,
            )


async def call_here(hook: InvalidationHook, scope: Scope | None) -> None:
    """Call a hook where nobody can wait for a coroutine."""
    answer = hook(scope)
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("the hook returned a coroutine, which nobody here can await")


async def call_on_asyncio(
    hook: InvalidationHook | AsyncInvalidationHook, scope: Scope | None
) -> None:
    """Call a hook on an event loop: in a thread, as it may block, if it is no coroutine function.

    Cancelled meanwhile, the thread goes on, or will begin: nobody but that hook can clear the list.
    """
    if _is_async(hook):
        answer: object = hook(scope)
    else:
        # Of its own: those of the loop may all be waiting for this.
        thread = Threads()
        told = thread.submit(hook, scope)
        thread.close()
        answer = await asyncio.shield(asyncio.wrap_future(told))
    if inspect.isawaitable(answer):
        await answer


async def tell_all(told: Iterable[tuple[Hook, Scope | None]], call: Call) -> None:
    """Tell hooks of scopes, each once: all of them, also when a signal or cancellation cuts in."""
    async with AsyncExitStack() as each:
        for hook, scope in reversed(_once(told)):
            each.push_async_callback(hook.tell, scope, call)


def _once(told: Iterable[tuple[Hook, Scope | None]]) -> list[tuple[Hook, Scope | None]]:
    by_scope: dict[Scope | None, list[Hook]] = {}
    for hook, scope in told:
        hooks = by_scope.setdefault(scope, [])
        if not any(map(hook.calls_the_same, hooks)):
            hooks.append(hook)
    return [(hook, scope) for scope, hooks in by_scope.items() for hook in hooks]


def check_hook(name: str, hook: object, *, otherwise: str, awaits: bool = False) -> None:
    """Refuse what cannot be called, or, by who `awaits` no coroutine, a coroutine function."""
    if not callable(hook):
        raise TypeError(f"{name} must be callable with a scope, not {hook!r}: {otherwise}")
    if _is_async(hook) and not awaits:
        raise TypeError(
            f"{name}={hook!r} is asynchronous, and nobody here can await it: give a plain "
            "function, or use what is for asyncio, such as AsyncHoldManager"
        )


def _is_async(hook: object) -> bool:
    return any(map(inspect.iscoroutinefunction, (hook, type(hook).__call__)))
