"""What several backends check in the same way."""

from __future__ import annotations

__all__ = ["number_of_lists"]


def number_of_lists(maxsize: object) -> int:
    """Return the number.

    Raises:
        ValueError: It is none, or below 1.
    """
    if isinstance(maxsize, bool) or not isinstance(maxsize, int) or maxsize < 1:
        raise ValueError(f"maxsize must be a number of lists, 1 or more, not {maxsize!r}")
    return maxsize
