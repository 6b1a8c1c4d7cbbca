"""The table of moves, and the two pictures of it in docs/explanation/life-of-a-hold.md.

Both are made from `TRANSITIONS`; only the places of the four boxes are given here:

    python3 -m tests.test_lifecycle     writes them
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest

from slotcache import (
    TRANSITIONS,
    Hold,
    HoldExpired,
    HoldState,
    IllegalTransition,
    SlotcacheError,
)
from slotcache.lifecycle import next_state

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "life-of-a-hold.md"
DRAWING = PAGE.with_suffix(".svg")
BEGIN, END = "<!-- moves -->", "<!-- /moves -->"
WRITE_IT_ANEW = "write it anew: python3 -m tests.test_lifecycle"

OPERATIONS = tuple(dict.fromkeys(operation for _, operation in TRANSITIONS))

WIDTH, HEIGHT = 950, 382
HALF_WIDTH, HALF_HEIGHT = 68, 24
LEGEND = HEIGHT - 24
DETOUR = 885


@dataclass(frozen=True)
class Box:
    """Where a state is drawn.

    Attributes:
        x: Its middle.
        y: Its middle.
        loops: The side for arrows from it to itself: 0, -1 is above, 1, 0 is to the right.
    """

    x: int
    y: int
    loops: tuple[int, int]


BOXES = {
    HoldState.HELD: Box(200, 168, (0, -1)),
    HoldState.CONFIRMED: Box(480, 60, (1, 0)),
    HoldState.CANCELLED: Box(480, 168, (1, 0)),
    HoldState.EXPIRED: Box(480, 276, (1, 0)),
}

STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #f1f3f5; stroke: #6e7781; stroke-width: 1.5 }
  .held { fill: #fff3d6; stroke: #b7791f }
  .confirmed { fill: #dcf5e3; stroke: #2b8a4b }
  .arrow { fill: none; stroke: #57606a; stroke-width: 1.5 }
  .stays { stroke-dasharray: 4 3 }
  .tip { fill: #57606a }
  text { fill: #1f2328; font: 13px ui-sans-serif, system-ui, sans-serif }
  .state { font-weight: 600; letter-spacing: 0.5px; text-anchor: middle }
  .move { text-anchor: middle; stroke: #ffffff; stroke-width: 6px; paint-order: stroke }
  .beside { text-anchor: start }
  .note { fill: #57606a; font-size: 12px }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d }
    .box { fill: #21262d; stroke: #8b949e }
    .held { fill: #3a2d10; stroke: #d4a72c }
    .confirmed { fill: #12331d; stroke: #3fb950 }
    .arrow { stroke: #9198a1 }
    .tip, .note { fill: #9198a1 }
    text { fill: #e6edf3 }
    .move { stroke: #0d1117 }
  }
"""

HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" \
height="{HEIGHT}" role="img" aria-labelledby="title">
<title id="title">The states of a hold, and the moves between them</title>
<style>{STYLE}</style>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" \
orient="auto"><path class="tip" d="M0 0 10 5 0 10z"/></marker></defs>
<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>
"""


def drawing() -> str:
    """Return the table as a picture: a box for each state, an arrow for each pair of states."""
    moves: dict[tuple[HoldState, HoldState], list[str]] = {}
    for (state, operation), after in TRANSITIONS.items():
        moves.setdefault((state, after), []).append(operation)
    arrows = [arrow(state, after, ", ".join(names)) for (state, after), names in moves.items()]
    boxes = [box(state) for state in HoldState]
    return HEAD + "\n".join([entry(), *arrows, *boxes, *legend()]) + "\n</svg>\n"


def entry() -> str:
    """Return the arrow that leads to a new hold."""
    held = BOXES[HoldState.HELD]
    edge = held.x - HALF_WIDTH
    return f"{line(edge - 110, held.y, edge, held.y)}\n{label(edge - 62, held.y, 'create')}"


def legend() -> list[str]:
    """Return what the two kinds of arrows mean."""
    solid, dashed = "another state", "the same state: a replay, or a later end (extend)"
    return [
        line(24, LEGEND, 64, LEGEND),
        f'<text class="note" x="72" y="{LEGEND + 4}">{solid}</text>',
        line(174, LEGEND, 214, LEGEND, "stays"),
        f'<text class="note" x="222" y="{LEGEND + 4}">{dashed}</text>',
    ]


def box(state: HoldState) -> str:
    """Return a state's box, with its name in it."""
    place = BOXES[state]
    return (
        f'<rect class="box {state.value}" x="{place.x - HALF_WIDTH}" y="{place.y - HALF_HEIGHT}" '
        f'width="{2 * HALF_WIDTH}" height="{2 * HALF_HEIGHT}" rx="8"/>'
        f'<text class="state" x="{place.x}" y="{place.y + 5}">{state.name}</text>'
    )


def arrow(state: HoldState, after: HoldState, names: str) -> str:
    """Return an arrow from one box to another, or back to itself, with a name on it."""
    start, end = BOXES[state], BOXES[after]
    if state is after:
        return loop(start, names)
    right, down = end.x - start.x, end.y - start.y
    if right:  # from side to side
        out = HALF_WIDTH if right > 0 else -HALF_WIDTH
        points = start.x + out, start.y, end.x - out, end.y
    elif any(min(start.y, end.y) < each.y < max(start.y, end.y) for each in column(start)):
        return around(start, end, names)
    else:
        out = HALF_HEIGHT if down > 0 else -HALF_HEIGHT
        points = start.x, start.y + out, end.x, end.y - out
    middle = (points[0] + points[2]) // 2, (points[1] + points[3]) // 2
    return f"{line(*points)}\n{label(*middle, names)}"


def column(place: Box) -> list[Box]:
    """Return the boxes that stand below or above this one."""
    return [each for each in BOXES.values() if each.x == place.x]


def around(start: Box, end: Box, names: str) -> str:
    """Return an arrow from below one box to above another, around what is between and beside."""
    below, above = start.y + HALF_HEIGHT, end.y - HALF_HEIGHT
    middle = (start.y + end.y) // 2
    curve = (
        f"M{start.x} {below} C{start.x + 40} {below + 45} {DETOUR} {below + 45} {DETOUR} {middle} "
        f"C{DETOUR} {above - 45} {end.x + 40} {above - 45} {end.x} {above}"
    )
    return (
        f'<path class="arrow" marker-end="url(#tip)" d="{curve}"/>\n{label(DETOUR, middle, names)}'
    )


def loop(place: Box, names: str) -> str:
    """Return an arrow that leaves a box and comes back to it, on the side that has room."""
    right, down = place.loops
    x, y = place.x + right * HALF_WIDTH, place.y + down * HALF_HEIGHT
    across, along = 11, 42
    leaves = f"{x + down * across} {y - right * across}"
    bends = f"{x + right * along + down * across * 2} {y + down * along - right * across * 2}"
    bends_back = f"{x + right * along - down * across * 2} {y + down * along + right * across * 2}"
    comes_back = f"{x - down * across} {y + right * across}"
    curve = f"M{leaves} C{bends} {bends_back} {comes_back}"
    text = label(x + right * 40, y + down * 46, names, "beside" if right else "")
    return f'<path class="arrow stays" marker-end="url(#tip)" d="{curve}"/>\n{text}'


def line(x1: int, y1: int, x2: int, y2: int, kind: str = "") -> str:
    """Return a straight arrow."""
    kinds = f"arrow {kind}".strip()
    return f'<path class="{kinds}" marker-end="url(#tip)" d="M{x1} {y1} {x2} {y2}"/>'


def label(x: int, y: int, name: str, kind: str = "") -> str:
    """Return the name of a move."""
    kinds = f"move {kind}".strip()
    return f'<text class="{kinds}" x="{x}" y="{y + 4}">{escape(name)}</text>'


def table() -> str:
    """Return the table as Markdown: what each operation does in each state."""
    head = ["", *(f"`{operation}`" for operation in OPERATIONS)]
    rows = [[state.name, *(cell(state, each) for each in OPERATIONS)] for state in HoldState]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def cell(state: HoldState, operation: str) -> str:
    """Return where an operation leads, or what it raises."""
    try:
        after = next_state(hold_that_is(state), operation)
    except SlotcacheError as refused:
        return f"`{type(refused).__name__}`"
    return f"stays {after.name}" if after is state else after.name


def hold_that_is(state: HoldState) -> Hold:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    return Hold(
        id=UUID(int=1),
        slot_id=1,
        scope=None,
        quantity=1,
        state=state,
        created_at=noon,
        expires_at=noon,
    )


def test_the_docs_have_this_table():
    page = PAGE.read_text(encoding="utf-8")

    written = page.partition(BEGIN)[2].partition(END)[0].strip()

    assert written == table(), WRITE_IT_ANEW


def test_the_docs_have_this_drawing():
    assert DRAWING.read_text(encoding="utf-8") == drawing(), WRITE_IT_ANEW
    assert f"({DRAWING.name})" in PAGE.read_text(encoding="utf-8")


def test_the_drawing_shows_every_state_and_every_move_and_runs_nothing():
    root = ET.fromstring(drawing())
    elements = [each.tag.rpartition("}")[2] for each in root.iter()]
    texts = [each.text or "" for each in root.iter() if each.tag.endswith("text")]
    named = [name for text in texts for name in text.split(", ")]

    assert set(elements) <= {"svg", "title", "style", "defs", "marker", "path", "rect", "text"}
    assert {state.name for state in HoldState} <= set(named)
    for operation in OPERATIONS:
        pairs = [state for state, each in TRANSITIONS if each == operation]
        assert named.count(operation) == len(pairs)


def test_what_was_given_up_stays_so():
    afters = {after for (before, _), after in TRANSITIONS.items() if before is HoldState.CANCELLED}
    assert afters == {HoldState.CANCELLED}


def test_what_has_expired_lives_again_by_one_way_alone():
    moves = {
        operation: after
        for (before, operation), after in TRANSITIONS.items()
        if before is HoldState.EXPIRED and after is not HoldState.EXPIRED
    }
    assert moves == {"reacquire": HoldState.CONFIRMED}


def test_who_wants_a_live_hold_is_told_which_one_expired_and_when():
    hold = hold_that_is(HoldState.EXPIRED)

    with pytest.raises(HoldExpired) as raised:
        next_state(hold, "confirm")

    assert (raised.value.hold_id, raised.value.expires_at) == (hold.id, hold.expires_at)


def test_a_move_that_leads_nowhere_names_the_hold_its_state_and_the_move():
    hold = hold_that_is(HoldState.CANCELLED)

    with pytest.raises(IllegalTransition) as raised:
        next_state(hold, "confirm")

    error = raised.value
    assert (error.hold_id, error.state, error.operation) == (hold.id, hold.state, "confirm")


def test_every_state_is_reached_from_a_new_hold():
    reached = {HoldState.HELD}
    for _ in HoldState:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}

    assert reached == set(HoldState)


def write() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")
    DRAWING.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    write()
