"""JSON lines: bytes, one object a line, to a frame."""

import io
import json

import polars as pl

from mmkd.data.errors import DataError


def parse_jsonl(data: bytes, source: str) -> pl.DataFrame:
    """Reads one JSON object a line; a key that an object lacks is a missing cell.

    Args:
        data: The file's content, UTF-8.
        source: The file, for messages.

    Returns:
        The columns, with types found from all lines; a column of numbers and text becomes text.

    Raises:
        DataError: If a line is not a JSON object, or lines disagree about a column's type.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source}: {_fault(data, error)}") from error


def _fault(data: bytes, error: Exception) -> str:
    """Reads a refused file once more, slowly, to name the first line at fault."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as wrong:
            return f"line {number} is not JSON ({wrong}); write one object a line"
        if not isinstance(value, dict):
            return f"line {number} is a JSON {type(value).__name__}; write one object a line"
    return f"the lines do not form a table ({error}); give each key values of one type"
