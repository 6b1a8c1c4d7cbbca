"""How the demo talks: scenes, claims, and the summary that decides about the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Column

console = Console(highlight=False)
console.width = min(console.width, 100)


class Claim(NamedTuple):
    """What a scene has shown, in one line, and whether what it measured bears that out."""

    text: str
    is_true: bool


def scene(title: str, lead: str) -> None:
    """Open a scene."""
    console.print()
    console.rule(f"[bold cyan]{title}", style="dim", align="left")
    console.print(lead, end="\n\n")


def numbers(header: str) -> Column:
    """A column of numbers: they stand to the right."""
    return Column(header, justify="right")


def claim(text: str, *, is_true: bool) -> Claim:
    """Close a scene with what it has shown."""
    console.print(f"\n[bold]{text}[/]")
    return Claim(text, is_true)


def summary(claims: Sequence[Claim], seconds: float) -> int:
    """Repeat the claims, each with its verdict; return the exit status."""
    console.print()
    console.rule(f"[bold cyan]In short, after {seconds:.1f} s", style="dim", align="left")
    for each in claims:
        mark = "[green]ok[/] " if each.is_true else "[bold red]NOT TRUE:[/] "
        console.print(mark + each.text)
    return 0 if all(each.is_true for each in claims) else 1
