"""Vectors that are there already: a file of them, and of their ids, to an encoder.

From: ``.npy``, ``.parquet`` or ``.safetensors`` files of ``[I, dim]`` numbers, and tables or lines
of I ids, by paths that a card names. To: ``[n, dim]`` float32 for n ids or row numbers. Tables and
ids are read as the catalogue's are, by `mmkd.data.readers`. Nothing pickled is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mmkd.encoders.base import checked_texts, encode_in_batches, unit_rows
from mmkd.encoders.loading import local_path
from mmkd.errors import EncoderError, did_you_mean, outside, refuse

if TYPE_CHECKING:
    import polars as pl

    from mmkd.data.readers import Table

# suffix of a file of vectors, to the options that say where in it they are
_VECTOR_FILES = {
    ".npy": (),
    ".parquet": ("id_column", "vector_column", "vector_columns"),
    ".safetensors": ("tensor",),
}
# what pandas makes of a frame's index
_INDEX = re.compile(r"__index_level_\d+__")
_NUMBERED = re.compile(r"(.*?)\d+", re.DOTALL)
_ID_FILES = (".txt", ".csv", ".tsv", ".parquet")


class PrecomputedEncoder:
    """Looks vectors up in a file.

    With ``ids`` or ``id_column`` the inputs are item ids. Without, row r of the file (from 1)
    belongs to row r of the catalogue, and the inputs are those numbers as strings. An id that the
    file does not have, an empty row and a row with a number that is not finite all give NaN.

    Args:
        modality: Which of the catalogue's modalities the vectors stand for.
        model: Path of the file. A ``.npy`` file holds ``[I, dim]`` numbers and is memory-mapped.
        normalize: Whether vectors are scaled to length 1.
        ids: Path of a file with the id of every row, in the rows' order: ``.txt`` (one a line),
            ``.csv``, ``.tsv`` or ``.parquet``.
        id_column: Column of the ids, in ``ids`` if it is a table, otherwise in a parquet ``model``.
        row_column: Column of ``ids`` that says which row of ``model`` an id has, from 0, as MMRec's
            ``itemID`` does; None takes the ids in the rows' order.
        vector_column: Parquet: the column that holds lists; None takes the only column of lists.
        vector_columns: Parquet: the columns of numbers, in the file's order, by names or patterns
            such as ``f*`` with commas between; None takes all columns, which must then be numbered
            under one name (``f0``, ``f1``, ...). pandas' index is none of them.
        tensor: Safetensors: the tensor's name; None takes the only one.

    Raises:
        EncoderError: A file is missing, is pickled, has the wrong shape or lacks the tensor, or ids
            are repeated or not as many as rows, or in another order than a column of theirs says.
        DataError: A table cannot be read or lacks the column, or an id is blank.
        ValueError: A path or a file's suffix is none that is known, or an option has no effect.
    """

    version: ClassVar[int] = 2
    # options that are paths: the files' contents, not where they lie, make the card's fingerprint
    local_options: ClassVar[tuple[str, ...]] = ("ids",)

    @staticmethod
    def reads(options: Mapping[str, Any]) -> Literal["id", "row"]:
        """Whether a card with these options looks vectors up by item id or by row number."""
        named = options.get("ids") is not None or options.get("id_column") is not None
        return "id" if named else "row"

    @staticmethod
    def check(**options: Any) -> list[str]:
        """What is wrong with these options, a line each; opens no file."""
        ids, problems = options.get("ids"), []
        for name, known in (("model", tuple(_VECTOR_FILES)), ("ids", _ID_FILES)):
            if (source := options.get(name)) is None:
                continue
            if (path := local_path(str(source))) is None:
                problems.append(f"{name}: {source!r} is not a path; start it with / or ./")
            elif path.suffix.lower() not in known:
                problems.append(
                    f"{name}: {source} is not one of {', '.join(known)}; convert it to one of them"
                )
        suffix = Path(str(options.get("model"))).suffix.lower()
        for name in (
            "vector_column",
            "vector_columns",
            "tensor",
            *(("id_column",) if ids is None else ()),
        ):
            if options.get(name) is not None and name not in _VECTOR_FILES.get(suffix, (name,)):
                problems.append(f"options.{name} has no effect on a {suffix} file; remove it")
        if str(ids).lower().endswith(".txt") and options.get("id_column") is not None:
            problems.append(f"ids: {ids} has lines and no columns; remove options.id_column")
        if options.get("row_column") is not None and (ids is None or str(ids).endswith(".txt")):
            problems.append("row_column: is a column of a table of ids; name that in options.ids")
        if options.get("vector_column") is not None and options.get("vector_columns") is not None:
            problems.append("vector_columns: vectors are in one column or in several; give one")
        return problems

    def __init__(
        self,
        *,
        modality: str,
        model: str,
        normalize: bool = False,
        ids: str | None = None,
        id_column: str | None = None,
        row_column: str | None = None,
        vector_column: str | None = None,
        vector_columns: str | None = None,
        tensor: str | None = None,
    ) -> None:
        refuse(self.check(model=model, ids=ids, id_column=id_column, row_column=row_column))
        columns = {"vector_column": vector_column, "vector_columns": vector_columns}
        refuse(self.check(model=model, tensor=tensor, **columns))
        self._file = _existing(model)
        own_ids: list[str] | None = None
        if self._file.suffix.lower() == ".npy":
            self._vectors = _read_npy(self._file)
        elif self._file.suffix.lower() == ".safetensors":
            self._vectors = _read_safetensors(self._file, tensor)
        else:
            table = _read_table(self._file)
            if ids is None and id_column is not None:
                own_ids = _ids(table, id_column)
                table = replace(table, frame=table.frame.drop(id_column))
            self._vectors = _numbers(table, vector_column, vector_columns)
        _check_numbers(self._file, self._vectors)
        own_rows: list[int] | None = None
        if ids is not None:
            own_ids, own_rows = _read_ids(_existing(ids), id_column, row_column)
        self._rows: dict[str, int] | None = None
        if own_ids is not None:
            self._rows = _row_of_id(own_ids, own_rows, count=len(self._vectors), where=ids or model)
        self.modality = modality
        self.dim = int(self._vectors.shape[1])
        self._normalize = normalize

    def check_catalogue(self, items: int) -> None:
        """Raises EncoderError if rows follow a catalogue of ``items`` items and are not as many."""
        if self._rows is None and len(self._vectors) != items:
            raise EncoderError(
                f"{self._file} has {len(self._vectors)} rows, the catalogue {items} items; without "
                "ids every row is one item's, in the catalogue's order: name the rows' ids in the "
                "card (options.ids)"
            )

    def encode(self, inputs: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Looks up n ids or row numbers: ``[n, dim]`` float32, NaN where there is no vector.

        Raises:
            EncoderError: Inputs are row numbers and one is none of the file's.
        """
        keys = checked_texts(inputs, batch_size=batch_size)
        return encode_in_batches(keys, self._look_up, dim=self.dim, batch_size=batch_size)

    def _look_up(self, keys: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([self._row(key) for key in keys], dtype=np.int64)  # -1 where unknown
        found = np.full((len(keys), self.dim), np.nan, np.float32)
        known = rows >= 0
        # a number that float32 cannot hold becomes infinite, and the row one without a vector
        with np.errstate(over="ignore"):
            found[known] = self._vectors[rows[known]]
        found[~np.isfinite(found).all(axis=1)] = np.nan
        return unit_rows(found) if self._normalize else found

    def _row(self, key: str) -> int:
        if self._rows is not None:
            return self._rows.get(key, -1)
        # isdecimal alone lets other scripts' digits through
        row = int(key) if key.isascii() and key.isdecimal() else 0
        if not 1 <= row <= len(self._vectors):
            raise EncoderError(
                f"row {key!r} is not one of {self._file}'s {len(self._vectors)} rows; without ids "
                "the file must have a row for every item: name the rows' ids in the card "
                "(options.ids)"
            )
        return row - 1


def _existing(source: str) -> Path:
    path = local_path(source)
    if path is None or not path.is_file():
        raise EncoderError(f"{path} does not exist; correct the card's path")
    return path


def _read_npy(path: Path) -> NDArray[Any]:
    """The array, memory-mapped."""
    with outside(
        EncoderError,
        path,
        "cannot be read as an array of numbers",
        # a pickle, whether numpy's array of objects or a bare one, is refused with ValueError
        also=(ValueError,),
        remedy="it is damaged or pickled, and pickles are never loaded: save it with "
        "numpy.save(path, array.astype('float32'))",
    ):
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _read_safetensors(path: Path, tensor: str | None) -> NDArray[Any]:
    from safetensors import safe_open

    remedy = "it is damaged: save it again"
    with (
        outside(EncoderError, path, "cannot be read as safetensors", remedy=remedy),
        safe_open(path, framework="pt") as file,
    ):
        names = sorted(file.keys())
        if tensor is None and len(names) != 1:
            raise EncoderError(
                f"{path} holds {len(names)} tensors ({', '.join(names[:8])}); name one in "
                "options.tensor"
            )
        name = names[0] if tensor is None else tensor
        if name not in names:
            raise EncoderError(
                f"{path} has no tensor {name!r}{did_you_mean(name, names)}; it has "
                f"{', '.join(names[:8])}"
            )
        found = file.get_tensor(name)
    # numpy has no bfloat16
    array: NDArray[Any] = (found.float() if found.is_floating_point() else found).numpy()
    return array


def _read_table(path: Path) -> "Table":
    from mmkd.data.readers import read_table

    separator = None
    if path.suffix.lower() == ".csv":
        remedy = "give a file that you may read"
        with outside(EncoderError, path, "cannot be read", remedy=remedy), path.open("rb") as file:
            # MMRec's i_id_mapping.csv is parted by tabs, whatever its name says
            separator = "\t" if b"\t" in file.readline() else None
    return read_table(path.name, root=path.parent, separator=separator)


def _numbers(table: "Table", vector_column: str | None, vector_columns: str | None) -> NDArray[Any]:
    """``[I, dim]``, NaN in a row without a vector."""
    import polars as pl

    schema = table.frame.schema
    lists = [name for name, kind in schema.items() if isinstance(kind, pl.List | pl.Array)]
    if vector_column is None and vector_columns is None and len(lists) == 1:
        vector_column = lists[0]
    if vector_column is not None:
        column = table.column(vector_column, setting="options.vector_column")
        if vector_column not in lists:
            raise EncoderError(
                f"{table.source}: column {vector_column!r} holds {column.dtype}, wanted lists of "
                "numbers; name columns of numbers in options.vector_columns"
            )
        return _rows_of_lists(column, table.source)
    names = _feature_columns(table, vector_columns)
    if other := [name for name in names if not schema[name].is_numeric()]:
        raise EncoderError(
            f"{table.source}: column {other[0]!r} holds no numbers; name the ids' column in "
            "options.id_column, or the vectors' in options.vector_column or vector_columns"
        )
    return table.frame.select(names).cast(pl.Float32).to_numpy()  # null becomes NaN


def _feature_columns(table: "Table", wanted: str | None) -> list[str]:
    """The columns that a vector is made of, in the file's order."""
    names = [name for name in table.frame.columns if not _INDEX.fullmatch(name)]
    if wanted is not None:
        patterns = [one.strip() for one in wanted.split(",")]
        found = {one: [name for name in names if fnmatchcase(name, one)] for one in patterns}
        for pattern, columns in found.items():
            if not columns:
                raise EncoderError(
                    f"{table.source}: no column is {pattern!r} (options.vector_columns); it has "
                    f"{', '.join(names[:8])}{did_you_mean(pattern, names)}"
                )
        return [name for name in names if any(name in columns for columns in found.values())]
    numbered = [_NUMBERED.fullmatch(name) for name in names]
    prefixes = [one.group(1) if one else None for one in numbered]
    usual = max(set(prefixes), key=prefixes.count, default=None)
    odd = [
        name
        for name, prefix in zip(names, prefixes, strict=True)
        if prefix is None or prefix != usual
    ]
    if odd and table.frame.schema[odd[0]].is_numeric():
        raise EncoderError(
            f"{table.source}: column {odd[0]!r} is not numbered as a vector's columns are (such as "
            f"{'f' if usual is None else usual}0); name those in options.vector_columns"
        )
    return names


def _rows_of_lists(column: "pl.Series", source: str) -> NDArray[np.float32]:
    import polars as pl

    what = f"column {column.name!r} holds no numbers"
    with outside(EncoderError, source, what, remedy="name the vectors' column in the card"):
        rows = column.cast(pl.List(pl.Float32))
    rows = rows.set(rows.list.len() == 0, None)  # an empty list is no vector either
    widths = rows.list.len().drop_nulls().unique().sort().to_list()
    if len(widths) != 1:
        raise EncoderError(
            f"{source}: column {column.name!r} holds vectors of {len(widths)} widths "
            f"({', '.join(map(str, widths[:4])) or 'all are empty'}), wanted one"
        )
    return rows.list.to_array(widths[0]).to_numpy()  # NaN for null


def _check_numbers(path: Path, vectors: NDArray[Any]) -> None:
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise EncoderError(
            f"{path} holds an array of shape {list(vectors.shape)}, wanted [items, dim]; save one "
            "row an item"
        )
    if vectors.dtype.kind not in "fiu":
        raise EncoderError(f"{path} holds {vectors.dtype}, wanted numbers; save it as float32")


def _read_ids(
    path: Path, column: str | None, row_column: str | None
) -> tuple[list[str], list[int] | None]:
    """The ids, the lines of a ``.txt`` file or a table's column; and their rows, where it says."""
    if path.suffix.lower() != ".txt":
        table = _read_table(path)
        column = _id_column(table, column)
        ids = _ids(table, column)
        if row_column is not None:
            return ids, _row_numbers(table, row_column)
        _check_order(table, column)
        return ids, None
    import polars as pl

    from mmkd.data.readers import Table

    remedy = "save it as UTF-8"
    with outside(EncoderError, path, "cannot be read as UTF-8 text", remedy=remedy):
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
    return _ids(Table(pl.DataFrame({"line": text.split("\n")}), str(path)), "line"), None


def _row_numbers(table: "Table", column: str) -> list[int]:
    from mmkd.data.readers.columns import read_ids

    cells = read_ids(table, column, setting="options.row_column").to_list()
    wrong = [cell for cell in cells if not (cell.isascii() and cell.isdecimal())]
    if wrong:
        raise EncoderError(
            f"{table.source}: column {column!r} (options.row_column) holds {wrong[0]!r}, wanted "
            "the number of a row, from 0"
        )
    return [int(cell) for cell in cells]


def _check_order(table: "Table", id_column: str) -> None:
    """Raise EncoderError where a column numbers the rows, and in another order than they have."""
    from mmkd.data.ids import ids_as_text

    order = [str(row) for row in range(len(table))]
    for name in table.frame.columns:
        cells = None if name == id_column else ids_as_text(table.frame[name])
        if cells is None or cells.to_list() == order:
            continue
        if len(order) > 1 and sorted(cells.fill_null("").to_list()) == sorted(order):
            raise EncoderError(
                f"{table.source}: column {name!r} numbers the rows in another order than they are "
                f"in; set options.row_column to {name!r} if it says where the vectors are, or "
                "leave that column out of the file"
            )


def _id_column(table: "Table", named: str | None) -> str:
    names = table.frame.columns
    if named is None and len(names) != 1:
        raise EncoderError(
            f"{table.source} has the columns {', '.join(names[:8])}; name the ids' in "
            "options.id_column"
        )
    return named or names[0]


def _ids(table: "Table", column: str) -> list[str]:
    from mmkd.data.readers.columns import read_ids

    return read_ids(table, column, setting="options.id_column").to_list()


def _row_of_id(
    ids: Sequence[str], rows: Sequence[int] | None, *, count: int, where: str
) -> dict[str, int]:
    if rows is None:
        if len(ids) != count:
            raise EncoderError(
                f"{where} has {len(ids)} ids for {count} vectors; give one id a row, in the rows' "
                "order"
            )
        rows = range(count)
    elif max(rows) >= count:
        raise EncoderError(
            f"{where} names row {max(rows)}, but there are {count} vectors, numbered from 0; "
            "correct options.row_column"
        )
    found = dict(zip(ids, rows, strict=True))
    if len(found) != len(ids):
        from polars import Series

        from mmkd.data.ids import repeated

        raise EncoderError(
            f"{where}: id {repeated(Series(ids))[0]!r} is there twice; keep one row an item"
        )
    return found
