"""RecBole atomic files: tab-separated text whose header cells read ``name:type``.

From `.inter` and `.item` files to a frame of text columns under the plain names. The format is
described in RecBole's manual, "Atomic Files" (https://recbole.io/docs/user_guide/data/atomic_files.html).
"""

import polars as pl

from mmkd.data.errors import DataError, shown
from mmkd.data.items import repeated
from mmkd.data.readers.delimited import parse_delimited

_TYPES = ("token", "token_seq", "float", "float_seq")


def parse_recbole(
    data: bytes, source: str, *, separator: str = "\t"
) -> tuple[pl.DataFrame, frozenset[str]]:
    """Reads an atomic file.

    Args:
        data: The file's content, UTF-8.
        source: The file, for messages.
        separator: One character between columns; the format has no quotes.

    Returns:
        The columns, all text, and the names of the ``_seq`` columns, whose cells are lists
        separated by spaces.

    Raises:
        DataError: If a header cell is not ``name:type`` with one of the four types, or two columns
            have one name.
    """
    frame = parse_delimited(data, source, separator=separator, quote=None)
    split = {header: header.rpartition(":") for header in frame.columns}
    wrong = [header for header, (name, _, kind) in split.items() if not name or kind not in _TYPES]
    if wrong:
        raise DataError(
            f"{source}: header {shown(wrong)} is not name:type with a type of {', '.join(_TYPES)}; "
            "correct the header, or set format to csv or tsv"
        )
    names = [name for name, _, _ in split.values()]
    if repeated(names):
        raise DataError(
            f"{source}: column {shown(repeated(names))} occurs more than once in the header; "
            "rename or remove one"
        )
    lists = frozenset(name for name, _, kind in split.values() if kind.endswith("_seq"))
    return frame.rename({header: name for header, (name, _, _) in split.items()}), lists
