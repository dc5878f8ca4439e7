"""Reading a run's files: one that is missing or damaged is told with its name and a remedy."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError


class RunError(ValueError):
    """A run folder isn't what was asked for."""


def require(path: Path) -> None:
    """Raise RunError where a run lacks a file."""
    if not path.is_file():
        raise RunError(
            f"{path.parent}: holds no {path.name}; name the folder of a run that was trained to "
            "its end (mmkd train RECIPE writes runs/NAME)"
        )


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Give the path back; what goes wrong inside says that the file is damaged.

    Raises:
        RunError: The file is missing, or can't be read as what it should be.
    """
    require(path)
    try:
        yield path
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        SafetensorError,
        pl.exceptions.PolarsError,
    ) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise RunError(
            f"{path}: damaged ({lines[0]}); put a copy of it back, or train the run again into "
            "another folder (--out)"
        ) from error


def read_mapping(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: It is none, or lacks one of the keys.
    """
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    if missing := sorted(set(keys) - content.keys()):
        raise ValueError(f"lacks {', '.join(missing)}")
    return content
