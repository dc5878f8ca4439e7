"""Tables that a run was given as frames and keeps itself: where they lie, how recipes name them.

A run's ``recipe.yaml`` names them from the run's own folder (``run:data_items.parquet``), so that a
folder that was moved, or several that belong together, still find them. A run on another run's
tables names those and has a copy, for where it is alone. To and from the absolute paths that every
other part works with.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TABLES = ("items", "interactions")
_PREFIX = "run:"


def frame_file(folder: Path, name: str) -> Path:
    """Where a run keeps the table ``items`` or ``interactions``.

    >>> from pathlib import Path
    >>> from mmkd.runs.frames import frame_file
    >>> frame_file(Path("runs/shop"), "items").as_posix()
    'runs/shop/data_items.parquet'
    """
    return folder / f"data_{name}.parquet"


def is_of_another(path: Path | str, name: str, folder: Path) -> bool:
    """Whether a table is what another run than that of ``folder`` keeps."""
    lies_in = Path(path).parent
    own = Path(path).is_absolute() and Path(path) == frame_file(lies_in, name)
    return own and not _same(lies_in, folder) and (lies_in / "run.json").is_file()


def from_folder(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's content with tables that a run keeps named from ``folder``, where it will lie."""

    def named(path: str, name: str) -> str:
        of_this = Path(path).is_absolute() and _same(Path(path), frame_file(folder, name))
        if not of_this and not is_of_another(path, name, folder):
            return path
        return _PREFIX + Path(os.path.relpath(path, folder)).as_posix()

    return _with_paths(recipe, named)


def to_absolute(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `from_folder` changed, changed back; for a recipe's file that lies in ``folder``.

    The content is as YAML holds it: a literal ``${`` is escaped, or it would be an interpolation.

    Another run's table that is gone is the run's own copy. Earlier versions wrote absolute paths:
    where the run keeps such a table it is the run's own, wherever the run was when it was trained.
    """

    def named(path: str, name: str) -> str:
        own = frame_file(folder, name)
        if path.startswith(_PREFIX):
            lies = folder / path.removeprefix(_PREFIX).replace("\\${", "${")
            found = own if own.is_file() and not lies.is_file() else lies
            return os.path.abspath(found).replace("${", "\\${")
        if Path(path).is_absolute() and Path(path).name == own.name and own.is_file():
            return os.path.abspath(own).replace("${", "\\${")
        return path

    return _with_paths(recipe, named)


def _same(first: Path, second: Path) -> bool:
    return os.path.abspath(first) == os.path.abspath(second)


def _with_paths(recipe: Mapping[str, Any], named: Callable[[str, str], str]) -> dict[str, Any]:
    data = recipe.get("data")
    if not isinstance(data, Mapping):
        return dict(recipe)
    changed = dict(data)
    for name in TABLES:
        table = data.get(name)
        if isinstance(table, Mapping) and isinstance(path := table.get("path"), str):
            changed[name] = {**table, "path": named(path, name)}
    return {**recipe, "data": changed}
