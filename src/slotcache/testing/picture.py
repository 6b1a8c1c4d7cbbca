"""A timeline as a sequence diagram: an SVG that runs nothing and loads nothing."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from slotcache.testing.timeline import Event, Timeline

__all__ = ["picture"]

_PORTS = {
    "cache": ("clear", "fill", "look"),
    "lock": ("lock", "release"),
    "table": ("change", "commit", "find", "query"),
}
_PORT_OF = {call: port for port, calls in _PORTS.items() for call in calls}

_ACTOR = 170
_GAP = 230
_PORT = 110
_MARGIN = 100
_NARROWEST = 500
_HEAD = 36
_LINE = 22
_CHARACTER = 7
_SHORT = 20

_STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #f1f3f5; stroke: #6e7781; stroke-width: 1.5 }
  .port { fill: #fff3d6; stroke: #b7791f }
  .note { fill: #f1f3f5; stroke: #d0d7de }
  .broken { fill: #ffebe9; stroke: #cf222e; stroke-width: 1.5 }
  .life { stroke: #d0d7de; stroke-width: 1.5 }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.5 }
  .answer { stroke-dasharray: 4 3 }
  .tip { fill: #57606a }
  text { fill: #1f2328; font: 13px ui-sans-serif, system-ui, sans-serif; text-anchor: middle }
  .name { font-weight: 600 }
  .said { font-size: 12px; text-anchor: start; stroke: #ffffff; stroke-width: 4px;
    paint-order: stroke }
  .noted { font-size: 12px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d }
    .box { fill: #21262d; stroke: #8b949e }
    .port { fill: #3a2d10; stroke: #d4a72c }
    .note { fill: #21262d; stroke: #30363d }
    .broken { fill: #3c1618; stroke: #f85149 }
    .life { stroke: #30363d }
    .arrow { stroke: #9198a1 }
    .tip { fill: #9198a1 }
    text { fill: #e6edf3 }
    .said { stroke: #0d1117 }
  }
"""

_TIP = """\
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" \
orient="auto"><path class="tip" d="M0 0 10 5 0 10z"/></marker></defs>"""


def picture(timeline: Timeline) -> str:
    """Return `timeline` as an SVG: a line for each actor, and for each port that it calls."""
    return "\n".join(_Drawing(timeline).elements()) + "\n"


class _Drawing:
    """A drawing that grows downwards.

    Attributes:
        bottom: How far down it reaches.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        actors = timeline.actors()
        called = {_PORT_OF.get(event.what) for event in timeline.events}
        ports = [port for port in _PORTS if port in called]
        first = _MARGIN + _ACTOR * (len(actors) - 1) + _GAP
        self._actors = dict(zip(actors, itertools.count(_MARGIN, _ACTOR), strict=False))
        self._ports = dict(zip(ports, itertools.count(first, _PORT), strict=False))
        ends = (*self._actors.values(), *self._ports.values())
        self._width = max([_NARROWEST, *(end + _MARGIN for end in ends)])
        self.bottom = _HEAD + 44

    def elements(self) -> Iterator[str]:
        """Yield its lines of SVG."""
        happened = [each for event in self._timeline.events for each in self._event(event)]
        lines = [self._life(x) for x in (*self._actors.values(), *self._ports.values())]
        banner = list(self._banner())
        yield from self._page()
        yield from lines
        yield from self._heads(self._actors, "box")
        yield from self._heads(self._ports, "box port")
        yield from happened
        yield from banner
        yield "</svg>"

    def _page(self) -> Iterator[str]:
        width, height = self._width, self.bottom + 24
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-labelledby="title">'
        )
        yield f'<title id="title">{escape(self._timeline.broken or "What happened")}</title>'
        yield f"<style>{_STYLE}</style>"
        yield _TIP
        yield _box("page", 0.5, 0.5, width - 1, height - 1)

    def _life(self, x: int) -> str:
        return f'<path class="life" d="M{x} {_HEAD} {x} {self.bottom}"/>'

    def _heads(self, columns: dict[str, int], kind: str) -> Iterator[str]:
        for name, x in columns.items():
            half = max(40, len(name) * _CHARACTER // 2 + 12)
            yield _box(kind, x - half, _HEAD - 16, 2 * half, 32)
            yield _text("name", x, _HEAD + 5, name)

    def _event(self, event: Event) -> Iterator[str]:
        port = _PORT_OF.get(event.what)
        if port is None:
            yield from self._note(self._actors[event.who], event)
            return
        caller, called = self._actors[event.who], self._ports[port]
        yield from self._arrow("arrow", caller, called, event.what)
        if event.answer:
            yield from self._arrow("arrow answer", called, caller, event.answer)
        self.bottom += 6

    def _arrow(self, kind: str, start: int, end: int, words: str) -> Iterator[str]:
        y = self.bottom
        yield f'<path class="{kind}" marker-end="url(#tip)" d="M{start} {y} {end} {y}"/>'
        yield _text("said", min(start, end) + 12, y - 6, words)
        self.bottom += _LINE

    def _note(self, x: int, event: Event) -> Iterator[str]:
        words = [line for line in (event.what, event.answer) if line]
        if len(str(event)) <= _SHORT:
            words = [str(event)]
        half = max(map(len, words)) * _CHARACTER // 2 + 6
        top = self.bottom - _LINE + 4
        yield _box("note", x - half, top, 2 * half, 6 + 16 * len(words))
        for number, line in enumerate(words):
            yield _text("noted", x, top + 15 + 16 * number, line)
        self.bottom += 16 * len(words) + 14

    def _banner(self) -> Iterator[str]:
        if self._timeline.broken is None:
            return
        words = textwrap.wrap(self._timeline.broken, (self._width - 80) // _CHARACTER)
        yield _box("broken", 24, self.bottom, self._width - 48, 14 + 18 * len(words))
        for number, line in enumerate(words):
            yield _text("name", self._width // 2, self.bottom + 20 + 18 * number, line)
        self.bottom += 14 + 18 * len(words)


def _box(kind: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" '
        f'rx="{min(8, height // 5):g}"/>'
    )


def _text(kind: str, x: int, y: int, words: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'
