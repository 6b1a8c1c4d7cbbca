"""What callers hand to a manager of holds, checked: a wrong type or range says what to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from slotcache.lifecycle import Hold, HoldState
from slotcache.policy import HoldPolicy, seconds
from slotcache.protocols import SlotId

__all__ = [
    "check_capacity",
    "check_count",
    "check_flag",
    "check_hold_id",
    "check_limit",
    "check_slot_id",
    "check_state",
    "check_storable",
    "checked_ids",
    "checked_places",
    "checked_text",
    "lasting",
]

_MAX_TEXT = 255
_MAX_BATCH = 10_000
_MAX_CAPACITY = 2**31 - 1
_INT64 = 2**63


def checked_places(places: Mapping[Any, int], id_type: type[SlotId]) -> Mapping[SlotId, int]:
    """Return a copy, which nobody changes while it is tried again."""
    if not isinstance(places, Mapping):
        raise TypeError(
            f"places must be a mapping, not {places!r}: write {{slot_id: quantity, ...}}"
        )
    if not places:
        raise ValueError("places is empty: name a slot at least")
    for slot_id, quantity in places.items():
        check_slot_id(slot_id, id_type)
        check_count("quantity", quantity)
    return dict(places)


def check_slot_id(slot_id: object, id_type: type[SlotId]) -> None:
    """Refuse what cannot be the id of a slot of the table."""
    if isinstance(slot_id, bool) or not isinstance(slot_id, id_type):
        raise TypeError(f"slot_id must be {id_type.__name__}, as in the table, not {slot_id!r}")
    if isinstance(slot_id, int) and not -_INT64 <= slot_id < _INT64:
        raise ValueError(f"slot_id must be an int of 64 bits, not {slot_id}")
    if isinstance(slot_id, str):
        check_storable("slot_id", slot_id)


def lasting(ttl: object, policy: HoldPolicy) -> float:
    """Return a hold's life in seconds, checked against the longest allowed."""
    if ttl is None:
        return policy.ttl
    number = seconds("ttl", ttl, above_zero=True)
    longest = policy.max_lifetime
    if number > longest:
        raise ValueError(
            f"ttl={number:g} is longer than the policy's max_lifetime={longest:g}: "
            "shorten it, or make HoldPolicy(max_lifetime=...) longer"
        )
    return number


def check_hold_id(name: str, hold_id: object) -> None:
    """Refuse what cannot be the id of a hold."""
    if isinstance(hold_id, Hold):
        raise TypeError(f"{name} must be a UUID, not a Hold: write hold.id")
    if not isinstance(hold_id, UUID):
        raise TypeError(f"{name} must be a UUID, not {hold_id!r}: write UUID(text) for a text")


def checked_ids(name: str, hold_ids: Any) -> tuple[UUID, ...]:
    """Return the ids of one hold, of several, or (None) of none, each once."""
    if hold_ids is None:
        return ()
    several = isinstance(hold_ids, Iterable) and not isinstance(hold_ids, str)
    ids: tuple[UUID, ...] = tuple(hold_ids) if several else (hold_ids,)
    for hold_id in ids:
        check_hold_id(name, hold_id)
    return tuple(dict.fromkeys(ids))


def check_state(state: object) -> None:
    """Refuse what is neither a state nor None."""
    if state is not None and not isinstance(state, HoldState):
        raise TypeError(
            f"state must be a HoldState or None, not {state!r}: write HoldState.HELD, or "
            "HoldState(text) for a text"
        )


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Refuse what is no number of places or rows."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, {least} or more, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def check_capacity(capacity: int) -> None:
    """Refuse what no column of integers has room for."""
    check_count("capacity", capacity, least=0)
    if capacity > _MAX_CAPACITY:
        raise ValueError(f"capacity must be at most {_MAX_CAPACITY}, not {capacity}")


def check_limit(limit: int) -> None:
    """Refuse more rows than should be in one answer, or one transaction."""
    check_count("limit", limit)
    if limit > _MAX_BATCH:
        raise ValueError(f"limit must be at most {_MAX_BATCH}, not {limit}: call it repeatedly")


def checked_text(name: str, value: str | None) -> str | None:
    """Return a text that every database can keep, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str or None, not {value!r}: write str({name})")
    if not 1 <= len(value) <= _MAX_TEXT:
        raise ValueError(
            f"{name} must have 1 to {_MAX_TEXT} characters, not {len(value)}: write None for none"
        )
    check_storable(name, value)
    return value


def check_storable(name: str, text: str) -> None:
    """Refuse what PostgreSQL, or any encoding, has no room for: the same on every database."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} {text!r} has a NUL or half of a surrogate pair: leave it out")
