"""Which exceptions are a user's mistake or order, and not a fault of the program."""

import errno

_FILE_ERRORS = {
    errno.EACCES: "give a place you may write to",
    errno.EDQUOT: "free some space or give another place",
    errno.EEXIST: "give another name",
    errno.EISDIR: "give the name of a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space or give another place",
    errno.ENOTDIR: "give a place below a folder",
    errno.EPERM: "give a place you may write to",
    errno.EROFS: "give a place you may write to",
}


def user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is all a user needs."""
    from mmkd.errors import (
        CacheError,
        CheckpointError,
        DataError,
        EmbeddingInterrupted,
        EncoderError,
        EvaluationError,
        RecipeError,
        RunError,
        TrainingError,
        TrainingInterrupted,
    )

    return (
        DataError,
        CacheError,
        EmbeddingInterrupted,
        EncoderError,
        EvaluationError,
        RecipeError,
        RunError,
        CheckpointError,
        TrainingError,
        TrainingInterrupted,
    )


def file_error(error: OSError) -> str | None:
    """What to tell when a file can't be written or read; None where the fault isn't the place."""
    remedy = _FILE_ERRORS.get(error.errno) if error.errno is not None else None
    if remedy is None:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}; {remedy}"
