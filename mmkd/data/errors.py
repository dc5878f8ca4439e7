"""The data layer's one user-facing error, and how offending values are quoted in it."""

import difflib
from collections.abc import Iterable, Sequence


class DataError(ValueError):
    """The data a user gave cannot be used: what was found, what was wanted, what to do."""


def shown(values: Sequence[object], *, limit: int = 5) -> str:
    """Quotes the first few offending values.

    Args:
        values: Offending values, in the order they were met.
        limit: How many to show in full.

    Returns:
        For example ``'a', 'b' and 12 more``.
    """
    listed = ", ".join(repr(value) for value in values[:limit])
    rest = len(values) - limit
    return f"{listed} and {rest} more" if rest > 0 else listed


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggests up to three close matches, as a clause to end an error message with.

    Args:
        name: What the user wrote.
        known: What exists.

    Returns:
        ``; did you mean 'item_id'?`` or, where nothing is close, the empty string.
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
