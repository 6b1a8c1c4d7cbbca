"""The two ways to keep the column `remaining`, as one fact each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slotcache.lifecycle import HoldState

__all__ = ["CLAIMS", "Claim"]


@dataclass(frozen=True, slots=True)
class Claim:
    """Which holds have their places taken off the column; all others that live are counted.

    Attributes:
        taken_off: The states of these holds.
    """

    taken_off: frozenset[HoldState]

    @property
    def counts_holds(self) -> bool:
        """Whether live holds have to be counted, since the column does not show them."""
        return HoldState.HELD not in self.taken_off

    def places_back(self, before: HoldState | None, after: HoldState) -> int:
        """What the column gets back for each place when a hold moves; from None: it is new."""
        return (before in self.taken_off) - (after in self.taken_off)


CLAIMS: Mapping[str, Claim] = {
    "counted": Claim(frozenset({HoldState.CONFIRMED})),
    "on_hold": Claim(frozenset({HoldState.HELD, HoldState.CONFIRMED})),
}
