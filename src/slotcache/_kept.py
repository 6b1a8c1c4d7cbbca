"""How many lists a process keeps."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["keep_latest", "number_of_lists"]

KeptT = TypeVar("KeptT")


def number_of_lists(maxsize: object) -> int:
    """Return the number.

    Raises:
        ValueError: It is none, or below 1.
    """
    if isinstance(maxsize, bool) or not isinstance(maxsize, int) or maxsize < 1:
        raise ValueError(f"maxsize must be a number of lists, 1 or more, not {maxsize!r}")
    return maxsize


def keep_latest(kept: dict[str, KeptT], key: str, value: KeptT, maxsize: int) -> None:
    """Put a value in the last place, and drop the first ones beyond `maxsize`.

    Threads may meet here, without a mutex: whoever finds something gone goes on.
    """
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > maxsize:
        for oldest in list(kept)[:-maxsize]:
            kept.pop(oldest, None)
