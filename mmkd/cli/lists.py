"""Lists to a file: Parquet, CSV or JSON lines, written as they come, whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmkd.cli.progress import Bar
from mmkd.errors import RunError, outside
from mmkd.files import replacing

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".parquet", ".csv", ".jsonl")


def write_lists(path: Path, frames: Iterator["pl.DataFrame"], *, total: int) -> dict[str, int]:
    """Write lists to a file.

    Args:
        path: Its suffix names the format.
        frames: Of ``Run.lists``.
        total: Lists in all, for the bar.

    Returns:
        How many ``lists`` and ``rows`` were written.

    Raises:
        RunError: The format is unknown, or the file cannot be written; nothing is left of it then.
    """
    if path.suffix not in FORMATS:
        raise RunError(f"--out: got {path.name}, wanted a name ending in {', '.join(FORMATS)}")
    lists = rows = 0
    remedy = "give another file with --out"
    with (
        Bar("recommend") as bar,
        outside(RunError, path, "cannot be written", remedy=remedy),
        replacing(path) as temporary,
        ExitStack() as stack,
    ):
        write = _writer(path.suffix, temporary, stack)
        for frame in frames:
            write(frame)
            lists += frame["query"].n_unique()
            rows += len(frame)
            bar.advance(lists, total)
    return {"lists": lists, "rows": rows}


def _writer(suffix: str, temporary: Path, stack: ExitStack) -> Any:
    """A function that appends a frame to the file."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        writers: list[Any] = []

        def to_parquet(frame: "pl.DataFrame") -> None:
            table = frame.to_arrow()
            if not writers:
                writers.append(stack.enter_context(pq.ParquetWriter(temporary, table.schema)))
            writers[0].write_table(table)

        return to_parquet
    file = stack.enter_context(temporary.open("wb"))

    def to_text(frame: "pl.DataFrame") -> None:
        if suffix == ".csv":
            frame.write_csv(file, include_header=file.tell() == 0)
        else:
            frame.write_ndjson(file)

    return to_text
