"""What a user is told: every error of mmkd, and the outside world's errors in the same form.

A message says what was got, what was wanted, and the remedy. ``outside`` is the one place that
turns errors of the operating system and of the libraries that read files into such a message;
``at_least``, ``one_of`` and the others are how a part words that an option is out of range.
"""

import difflib
import errno
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class MmkdError(ValueError):
    """Something a user can mend; the message is all that is shown."""


class DataError(MmkdError):
    """The data a user gave cannot be used."""


class EncoderError(MmkdError):
    """A card or a model that cannot give vectors."""


class CacheError(MmkdError):
    """The embedding cache cannot give what was asked."""


class EvaluationError(MmkdError):
    """Scores, ranks or cases that cannot be evaluated."""


class TrainingError(MmkdError):
    """A run cannot train as it was asked to."""


class CheckpointError(MmkdError):
    """A checkpoint cannot be written or does not fit the run."""


class RunError(MmkdError):
    """A run folder is not what was asked for."""


class RecipeError(MmkdError):
    """A recipe cannot be used; all its problems are reported together.

    Args:
        problems: One line each, with the file and the dotted key; or the only one.

    Attributes:
        problems: The same lines; `str()` joins them.
    """

    def __init__(self, problems: Iterable[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Interrupted(MmkdError):  # noqa: N818 - an order obeyed, not a fault
    """Work stopped on request; what was done is kept."""


class EmbeddingInterrupted(Interrupted):
    """An embedding run stopped on request, after committing what it had encoded."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(
            f"stopped: {done} of {total} inputs are encoded and kept; the same command goes on"
        )


class TrainingInterrupted(Interrupted):
    """A run stopped on request, after writing a checkpoint where it has a folder to keep one."""

    def __init__(self, epoch: int | None, folder: Path | None) -> None:
        self.epoch = epoch  # None before the first and after the last
        kept = f"continue with --resume (run: {folder})" if folder else "give a folder to continue"
        super().__init__(f"stopped{'' if epoch is None else f' in epoch {epoch + 1}'}; {kept}")


# ---- the outside world


@contextmanager
def outside(
    kind: type[MmkdError],
    path: Path | str,
    what: str,
    *,
    remedy: str,
    also: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Turn what the outside world raises inside into ``kind``: path, what, cause, remedy.

    Args:
        kind: The error to raise.
        path: What was read or written.
        what: What could not be done, such as ``cannot be read``.
        remedy: What to do; a disk that is full or a folder that is not one's own has a better one.
        also: Further exceptions that mean the same here, such as KeyError in a damaged file.

    Raises:
        MmkdError: Of ``kind``; one that is raised inside passes as it is.
    """
    try:
        yield
    except MmkdError:
        raise
    except BaseException as error:  # a damaged Parquet file makes polars panic
        if out_of_memory(error):
            raise kind(
                f"{path}: not enough memory; close other programs, or use a machine with more"
            ) from error
        told = cause(error)
        if told is None and not isinstance(error, also):
            raise
        told = told or " ".join(str(error).split()) or type(error).__name__
        number = _errno(error)
        if isinstance(error, OSError) and error.filename and str(error.filename) != str(path):
            told += f": {error.filename}"
        raise kind(f"{path}: {what} ({told}); {_REMEDIES.get(number, remedy)}") from error


def cause(error: BaseException) -> str | None:
    """An error of the outside world in one line; None where it is a fault of the program."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if (number := _errno(error)) is not None:  # a library's word for the system's
        return os.strerror(number)
    if isinstance(error, OSError):
        return " ".join(str(error).split()) or type(error).__name__
    if any(str(error).startswith(start) for start in _OF_PATHS):
        return str(error)
    library = type(error).__module__.partition(".")[0]
    if library in ("omegaconf", "yaml"):  # line and column stand in their later lines
        return " ".join(str(error).split())
    if library in _LIBRARIES or isinstance(error, (UnicodeError, EOFError)):
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of this machine or of a device."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))  # torch's
    )


def world_told(error: BaseException) -> str | None:
    """What to tell of the outside world's error where no part knew it; None for a fault of mmkd.

    Args:
        error: As it came up.
    """
    if out_of_memory(error):
        return "not enough memory; close other programs, or use a machine with more"
    if (told := cause(error)) is None:
        return None
    number, name = _errno(error), getattr(error, "filename", None)
    remedy = _REMEDIES.get(number, "correct the path, or look after the disk")
    if number is None and not told.startswith(_OF_PATHS):
        remedy = "correct the file that was read last"
    return f"{name}: {told}; {remedy}" if name else f"{told}; {remedy}"


def _errno(error: BaseException) -> int | None:
    """The operating system's number of an error, also where a library has it in its message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    library = type(error).__module__.partition(".")[0]
    if library not in _LIBRARIES and not isinstance(error, OSError):  # polars has bare OSErrors too
        return None
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    return int(found[1]) if found else None


# ValueError and RuntimeError of paths that none can be
_OF_PATHS = ("embedded null", "Could not determine home directory")
# whose exceptions speak of a file's content; polars' panics come as pyo3_runtime's
_LIBRARIES = frozenset(
    "json omegaconf PIL polars pyarrow pyo3_runtime safetensors safetensors_rust yaml zlib".split()
)

_REMEDIES: dict[int | None, str] = {
    errno.EACCES: "give a place you may use",
    errno.EDQUOT: "free some space or give another place",
    errno.EEXIST: "give another name",
    errno.EFBIG: "allow larger files (ulimit -f), or give another place",
    errno.EISDIR: "give the name of a file",
    errno.EIO: "look after the disk; then try again",
    errno.ELOOP: "give a path whose links end",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENFILE: "allow more open files",
    errno.ENOSPC: "free some space or give another place",
    errno.ENOTDIR: "give a place below a folder",
    errno.EPERM: "give a place you may use",
    errno.EROFS: "give a place you may write to",
}


# ---- how messages quote


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


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one name that may have been meant, or None."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


# ---- ranges: a part's ``check`` joins these, its constructor and a recipe's check both call it


class Checks(Protocol):
    """A part that knows what is wrong with its constructor's options."""

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range; those not given pass."""


Part = TypeVar("Part", bound=Checks)
Given = ParamSpec("Given")


def checked(
    init: Callable[Concatenate[Part, Given], None],
) -> Callable[Concatenate[Part, Given], None]:
    """Make a constructor refuse, before it starts, what its class's ``check`` tells of its options.

    Args:
        init: An ``__init__`` with flat options; it raises ValueError with a line a problem.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(part: Part, /, *args: Given.args, **kwargs: Given.kwargs) -> None:
        given = signature.bind(part, *args, **kwargs)
        given.apply_defaults()
        del given.arguments["self"]
        refuse(part.check(**given.arguments))
        init(part, *args, **kwargs)

    return checking


def refuse(problems: Sequence[str], kind: type[ValueError] = ValueError) -> None:
    """Raise ``kind`` with a line a problem, if there is one."""
    if problems:
        raise kind("\n".join(problems))


def at_least(minimum: float, hint: str = "raise it", /, **values: object) -> list[str]:
    """A line for each value that is no number from ``minimum`` up; None passes."""
    return [
        f"{name}: got {_said(value)}, wanted at least {minimum}; {hint}"
        for name, value in values.items()
        if value is not None and not (_number(value) and value >= minimum)  # type: ignore[operator]
    ]


def whole(minimum: int, hint: str = "raise it", /, **values: object) -> list[str]:
    """As ``at_least``, for counts: what is no integer is told too."""
    problems = at_least(minimum, hint, **values)
    return problems + [
        f"{name}: got {value}, wanted a whole number; round it"
        for name, value in values.items()
        if isinstance(value, float) and value >= minimum
    ]


def positive(hint: str = "such as 1e-3", /, **values: object) -> list[str]:
    """A line for each value that is no finite number above 0; None passes."""
    return [
        f"{name}: got {_said(value)}, wanted a number above 0; {hint}"
        for name, value in values.items()
        if value is not None and not (_number(value) and 0 < value < math.inf)  # type: ignore[operator]
    ]


def within(low: float, high: float, hint: str = "correct it", /, **values: object) -> list[str]:
    """A line for each value that is no number from ``low`` to ``high``; None passes."""
    return [
        f"{name}: got {_said(value)}, wanted {low} to {high}; {hint}"
        for name, value in values.items()
        if value is not None and not (_number(value) and low <= value <= high)  # type: ignore[operator]
    ]


def one_of(choices: Iterable[str], /, **values: object) -> list[str]:
    """A line for each value that is none of the choices; None passes."""
    known = list(choices)
    return [
        f"{name}: got {value!r}, wanted one of {', '.join(known)}{did_you_mean(str(value), known)}"
        for name, value in values.items()
        if value is not None and value not in known
    ]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _said(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)
