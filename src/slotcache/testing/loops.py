"""An event loop for code that knows nothing of it: so one test is for both halves."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")

_PATIENCE = 60.0


class LoopThread:
    """An event loop that runs in a thread of its own until it is closed.

    With it a law examines an async backend, and a test that is written once is one of both halves.

    Args:
        factory: Makes the loop; None: asyncio's own.
        debug: Whether asyncio checks what it is used for.

    Examples:
        >>> from slotcache.sql import AsyncSqlSlots
        >>> from slotcache.testing import LoopThread
        >>> with LoopThread() as loop:
        ...     slots = loop.blocking(AsyncSqlSlots.sqlite(":memory:"))
        ...     slots.create_tables()
        ...     slots.add([(1, 30)])
        ...     print(slots.load().availability)
        ...     slots.close()
        Availability(1: 30/30)
    """

    def __init__(
        self,
        *,
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        debug: bool = False,
    ) -> None:
        self.loop = (factory or asyncio.new_event_loop)()
        self.loop.set_debug(debug)
        self._thread = threading.Thread(target=self._run, name="slotcache loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, from any other thread; return what it returns.

        Raises:
            TimeoutError: It took more than a minute.
            Exception: What it raised.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(_PATIENCE)
        except CancelledError:
            raise asyncio.CancelledError from None
        except TimeoutError:
            future.cancel()
            raise

    def blocking(self, thing: Any) -> Any:
        """Return a stand-in for an object: its coroutine methods run there, and are waited for."""
        return _Blocking(thing, self)

    def close(self) -> None:
        """Cancel what still runs there, and end the loop."""
        if self.loop.is_closed():
            return
        self.run(_cancel_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


class _Blocking:
    def __init__(self, thing: Any, loop: LoopThread) -> None:
        self._thing = thing
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if inspect.iscoroutinefunction(value):
            return functools.partial(self._wait_for, value)
        if name in ("locks", "within"):  # they return others of their kind
            return lambda *args: _Blocking(value(*args), self._loop)
        return value

    def __enter__(self) -> Self:
        self._loop.run(self._thing.__aenter__())
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.run(self._thing.__aexit__(*exception))

    def _wait_for(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kw: Any) -> T:
        return self._loop.run(method(*args, **kw))


async def _cancel_others() -> None:
    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
