"""What a user is told: every error of mmkd, and how offending values are quoted in it."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class MmkdError(ValueError):
    """Something a user can mend; the message says got, wanted, remedy, and is all that is shown."""


class DataError(MmkdError):
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


class CacheError(MmkdError):
    """The cache cannot give what was asked: what was found, what was wanted, what to do."""


class EmbeddingInterrupted(Exception):  # noqa: N818 - an order obeyed, not an error
    """An embedding run stopped on request, after committing what it had encoded."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(
            f"stopped: {done} of {total} inputs are encoded and kept; the same command goes on"
        )


class EvaluationError(MmkdError):
    """Scores, ranks or cases that cannot be evaluated; the message says got, wanted, remedy."""


class TrainingInterrupted(Exception):  # noqa: N818 - an order obeyed, not an error
    """A run stopped on request, after writing a checkpoint."""

    def __init__(self, epoch: int, folder: Path) -> None:
        super().__init__(f"stopped in epoch {epoch + 1}; continue with --resume (run: {folder})")


class EncoderError(MmkdError):
    """A card or a model that cannot give vectors; the message names the remedy."""


class RecipeError(MmkdError):
    """A recipe cannot be used; all its problems are reported together.

    Args:
        problems: One line each, with the file and the dotted key.

    Attributes:
        problems: The same lines; `str()` joins them.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class RunError(MmkdError):
    """A run folder isn't what was asked for."""


class CheckpointError(MmkdError):
    """A checkpoint can't be written or doesn't fit the run."""


class TrainingError(MmkdError):
    """A run can't train as it was asked to."""
