"""The points where a coroutine waits, and what may happen at each."""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeAlias

import slotcache

Place: TypeAlias = tuple[str, str, int]
"""An `await` of the library: its module, its function, and its line."""

_LIBRARY = str(Path(slotcache.__file__).parent) + os.sep


class Points:
    """Counts at how many points coroutines wait, and lets something happen at some of them.

    Args:
        at: At which, counted from 1.
        strike: What happens there.
        late: Whether it happens when what is waited for is there, in the last instant before the
            coroutine hears of it; else as soon as it waits.

    Attributes:
        count: At how many they have waited so far.
        task: The task that has come to one of those where it happens.
    """

    def __init__(self, at: set[int], strike: Callable[[], object], *, late: bool = False) -> None:
        self.count = 0
        self.task: asyncio.Task[Any] | None = None
        self._waited_at: set[tuple[CodeType, int]] = set()
        self._at = at
        self._strike = strike
        self._late = late
        self._is_over = False

    def end(self) -> None:
        """Count no more."""
        self._is_over = True

    @property
    def places(self) -> set[Place]:
        """Which of the library's own `await`s they have been at."""
        return {
            (_module_of(code.co_filename), code.co_name, _line_of(code, instruction))
            for code, instruction in self._waited_at
        }

    async def of(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run this coroutine, in this task, and return what it returns."""
        return await _Stepped(coroutine, self._reached)

    def _reached(self, coroutine: object, waits_for: Any) -> None:
        if self._is_over:
            return
        self.count += 1
        self._waited_at.update(_awaits_of(coroutine))
        if self.count not in self._at:
            return
        self.task = asyncio.current_task()
        if self._late and asyncio.isfuture(waits_for):
            waits_for.add_done_callback(lambda _: self._strike())
        else:
            self._strike()


class _Stepped:
    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], reached: Callable[[object, Any], None]
    ) -> None:
        self._coroutine = coroutine
        self._reached = reached

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        error: BaseException | None = None
        while True:
            try:
                waits_for = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self._reached(self._coroutine, waits_for)
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown
            else:
                error = None


def awaits_in(modules: Iterable[ModuleType]) -> set[Place]:
    """Every `await` that is written in these modules."""
    found: set[Place] = set()
    for module in modules:
        path = str(module.__file__)
        for line, function in _awaits_below(ast.parse(Path(path).read_text()), ""):
            found.add((_module_of(path), function, line))
    return found


def _awaits_below(node: ast.AST, function: str) -> Iterator[tuple[int, str]]:
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.Await):
            yield each.lineno, function
        inner = each.name if isinstance(each, ast.AsyncFunctionDef) else function
        yield from _awaits_below(each, inner)


def _awaits_of(waiting: object) -> Iterator[tuple[CodeType, int]]:
    """Where a coroutine waits, and where the one that it waits for does, and so on."""
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None and frame.f_code.co_filename.startswith(_LIBRARY):
            yield frame.f_code, frame.f_lasti
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)


def _module_of(path: str) -> str:
    return path.removeprefix(_LIBRARY).removesuffix(".py")


def _line_of(code: CodeType, instruction: int) -> int:
    """Where the `await` begins: the line of a frame may be another one of its statement."""
    line, *_ = next(islice(code.co_positions(), instruction // 2, None))
    assert line is not None
    return line
