"""Calling the invalidation hook so that a change which is committed cannot look failed (P8)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from contextlib import ExitStack

from slotcache.protocols import InvalidationHook, Scope

__all__ = ["Hook", "check_hook", "tell_all"]

_log = logging.getLogger("slotcache")


class Hook:
    """An invalidation hook whose failures are logged and counted, and go no further.

    Args:
        on_change: What is called with the scope whose list changed; None: nothing.

    Attributes:
        failures: How often it has raised.
    """

    def __init__(self, on_change: InvalidationHook | None) -> None:
        self._on_change = on_change
        self.failures = 0

    def calls_the_same(self, other: Hook) -> bool:
        """Whether one of the two need be told."""
        return self._on_change == other._on_change

    def tell(self, scope: Scope | None) -> None:
        """Say that the list of this scope has changed."""
        if self._on_change is None:
            return
        try:
            answer = self._on_change(scope)
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError("the hook returned a coroutine, which nobody here can await")
        except Exception:
            self.failures += 1
            _log.exception(
                "the hook that clears the list failed for scope %r: the cached list is out of date "
                "until its ttl ends",
                scope,
            )


def tell_all(told: Iterable[tuple[Hook, Scope | None]]) -> None:
    """Tell hooks of scopes, each once: all of them, also when a signal cuts in."""
    with ExitStack() as each:
        for hook, scope in reversed(_once(told)):
            each.callback(hook.tell, scope)


def _once(told: Iterable[tuple[Hook, Scope | None]]) -> list[tuple[Hook, Scope | None]]:
    by_scope: dict[Scope | None, list[Hook]] = {}
    for hook, scope in told:
        hooks = by_scope.setdefault(scope, [])
        if not any(map(hook.calls_the_same, hooks)):
            hooks.append(hook)
    return [(hook, scope) for scope, hooks in by_scope.items() for hook in hooks]


def check_hook(name: str, hook: object, *, otherwise: str) -> None:
    """Refuse what cannot be called, or not by who waits for no coroutine."""
    if not callable(hook):
        raise TypeError(f"{name} must be callable with a scope, not {hook!r}: {otherwise}")
    if any(map(inspect.iscoroutinefunction, (hook, type(hook).__call__))):
        raise TypeError(
            f"{name}={hook!r} is asynchronous, and nobody here can await it: give a plain function"
        )
