"""Files of vectors and of ids: from ``.npy``, ``.parquet``, ``.safetensors`` and tables to arrays.

From: paths a user's card names. To: ``[I, dim]`` numbers and I ids. Nothing pickled is loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.encoders.base import checked_texts, encode_in_batches, unit_rows
from mmkd.encoders.loading import local_path
from mmkd.encoders.registry import did_you_mean
from mmkd.errors import EncoderError

VECTOR_SUFFIXES = (".npy", ".parquet", ".safetensors")
ID_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")


def read_vectors(
    path: Path, *, id_column: str | None, vector_column: str | None, tensor: str | None
) -> tuple[NDArray[Any], list[str] | None]:
    """Reads the vectors of a file.

    Args:
        path: A file with one of `VECTOR_SUFFIXES`.
        id_column: Parquet: the column of the ids.
        vector_column: Parquet: the column of lists; None takes the numeric columns, or the only
            column of lists.
        tensor: Safetensors: the tensor's name; None takes the only one.

    Returns:
        ``[I, dim]`` floating point or integer numbers, memory-mapped for ``.npy``, NaN in a row
        without a vector; and the I ids, or None without ``id_column``.

    Raises:
        EncoderError: The file is missing, cannot be read, or does not hold that.
    """
    suffix = _checked_suffix(path, VECTOR_SUFFIXES)
    _refuse_idle(suffix, id_column=id_column, vector_column=vector_column, tensor=tensor)
    ids = None
    if suffix == ".npy":
        vectors = _read_npy(path)
    elif suffix == ".safetensors":
        vectors = _read_safetensors(path, tensor)
    else:
        vectors, ids = _read_parquet(path, id_column, vector_column)
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise EncoderError(
            f"{path} holds an array of shape {list(vectors.shape)}, wanted [items, dim]; save one "
            "row an item"
        )
    if vectors.dtype.kind not in "fiu":
        raise EncoderError(f"{path} holds {vectors.dtype}, wanted numbers; save it as float32")
    return vectors, ids


def read_ids(path: Path, *, column: str | None) -> list[str]:
    """Reads ids, one a row.

    Args:
        path: A ``.txt`` file (one id a line), or a ``.csv``, ``.tsv`` or ``.parquet`` table.
        column: The table's column; None takes the only one.

    Raises:
        EncoderError: The file is missing or cannot be read, has no such column, or an id is empty.
    """
    suffix = _checked_suffix(path, ID_SUFFIXES)
    if suffix == ".txt":
        if column is not None:
            raise EncoderError(f"{path} has lines and no columns; remove options.id_column")
        ids = [line.strip() for line in _text(path).splitlines()]
    else:
        ids = _id_column(path, _read_table(path), column)
    if (empty := next((row for row, one in enumerate(ids, 1) if not one), None)) is not None:
        raise EncoderError(f"{path}: row {empty} has no id; give every row one")
    return ids


def _checked_suffix(path: Path, known: tuple[str, ...]) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        raise EncoderError(f"{path} is not one of {', '.join(known)}; convert it to one of them")
    if not path.is_file():
        raise EncoderError(f"{path} does not exist; correct the card's path")
    return suffix


def _refuse_idle(suffix: str, **options: str | None) -> None:
    takes = {".parquet": ("id_column", "vector_column"), ".safetensors": ("tensor",)}
    for name, value in options.items():
        if value is not None and name not in takes.get(suffix, ()):
            raise EncoderError(f"options.{name} has no effect on a {suffix} file; remove it")


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        # a pickle, whether numpy's array of objects or a bare one, is refused with ValueError
        raise EncoderError(
            f"{path} cannot be read as an array of numbers ({error}); it is damaged or pickled, "
            "and pickles are never loaded: save it with numpy.save(path, array.astype('float32'))"
        ) from error
    return array


def _read_safetensors(path: Path, tensor: str | None) -> NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if tensor is None and len(names) != 1:
                raise EncoderError(
                    f"{path} holds {len(names)} tensors ({', '.join(sorted(names)[:8])}); name one "
                    "in options.tensor"
                )
            name = names[0] if tensor is None else tensor
            if name not in names:
                raise EncoderError(
                    f"{path} has no tensor {name!r}{did_you_mean(name, names)}; it has "
                    f"{', '.join(sorted(names)[:8])}"
                )
            found = file.get_tensor(name)
    except SafetensorError as error:
        raise EncoderError(f"{path} cannot be read as safetensors: {error}") from error
    # numpy has no bfloat16
    array: NDArray[Any] = (found.float() if found.is_floating_point() else found).numpy()
    return array


def _read_parquet(
    path: Path, id_column: str | None, vector_column: str | None
) -> tuple[NDArray[Any], list[str] | None]:
    table = _read_table(path)
    ids = None if id_column is None else _id_column(path, table, id_column)
    rest = table if id_column is None else table.drop(id_column)
    lists = [name for name, kind in rest.schema.items() if isinstance(kind, pl.List | pl.Array)]
    if vector_column is None and len(lists) == 1:
        vector_column = lists[0]
    if vector_column is not None:
        _check_column(path, rest, vector_column, option="vector_column")
        if vector_column not in lists:
            raise EncoderError(
                f"{path}: column {vector_column!r} holds {rest.schema[vector_column]}, wanted "
                "lists of numbers; leave options.vector_column out to take all numeric columns"
            )
        return _rows_of_lists(path, rest[vector_column]), ids
    other = [name for name, kind in rest.schema.items() if not kind.is_numeric()]
    if other:
        raise EncoderError(
            f"{path}: column {other[0]!r} holds no numbers; name the ids' column in "
            "options.id_column, or the vectors' in options.vector_column"
        )
    array: NDArray[Any] = rest.cast(pl.Float32).to_numpy()  # null becomes NaN
    return array, ids


def _rows_of_lists(path: Path, column: pl.Series) -> NDArray[np.float32]:
    try:
        rows = column.cast(pl.List(pl.Float32))
    except pl.exceptions.PolarsError as error:
        raise EncoderError(f"{path}: column {column.name!r} holds no numbers: {error}") from error
    lengths = rows.list.len()  # null for a row without a list
    widths = lengths.drop_nulls().unique().to_list()
    widths = [width for width in widths if width > 0]  # an empty list is no vector either
    if len(widths) != 1:
        raise EncoderError(
            f"{path}: column {column.name!r} holds vectors of {len(widths)} widths "
            f"({', '.join(map(str, sorted(widths)[:4])) or 'all are empty'}), wanted one"
        )
    vectors = np.full((len(rows), widths[0]), np.nan, np.float32)
    present = (lengths.fill_null(0) > 0).to_numpy()
    numbers = rows.filter(pl.Series(present)).explode().to_numpy()
    vectors[present] = numbers.reshape(-1, widths[0])
    return vectors


def _read_table(path: Path) -> pl.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pl.read_parquet(path, glob=False)
        # MMRec's i_id_mapping.csv is parted by tabs, whatever its name says
        header = _text(path).split("\n", 1)[0]
        separator = "\t" if "\t" in header else ","
        # ids are text: 007 is not 7
        return pl.read_csv(path, separator=separator, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise EncoderError(f"{path} cannot be read as a table: {error}") from error


def _id_column(path: Path, table: pl.DataFrame, column: str | None) -> list[str]:
    if column is None and len(table.columns) != 1:
        raise EncoderError(
            f"{path} has the columns {', '.join(table.columns[:8])}; name the ids' in "
            "options.id_column"
        )
    column = table.columns[0] if column is None else column
    _check_column(path, table, column, option="id_column")
    return ["" if one is None else str(one) for one in table[column].to_list()]


def _check_column(path: Path, table: pl.DataFrame, column: str, *, option: str) -> None:
    if column not in table.columns:
        raise EncoderError(
            f"options.{option}: {path} has no column {column!r}"
            f"{did_you_mean(column, table.columns)}; it has {', '.join(table.columns[:8])}"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise EncoderError(f"{path} cannot be read as UTF-8 text: {error}") from error


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
        vector_column: Parquet: the column that holds lists; None takes all numeric columns, in
            their order, or the only column of lists.
        tensor: Safetensors: the tensor's name; None takes the only one.

    Raises:
        EncoderError: A file is missing or of another sort, is pickled, has the wrong shape, lacks
            the column or tensor, or ids are repeated or not as many as rows.
    """

    version: ClassVar[int] = 1
    # options that are paths: the files' contents, not where they lie, make the card's fingerprint
    local_options: ClassVar[tuple[str, ...]] = ("ids",)

    @staticmethod
    def reads(options: Mapping[str, Any]) -> Literal["id", "row"]:
        """Whether a card with these options looks vectors up by item id or by row number."""
        named = options.get("ids") is not None or options.get("id_column") is not None
        return "id" if named else "row"

    def __init__(
        self,
        *,
        modality: str,
        model: str | None = None,
        normalize: bool = False,
        ids: str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
        tensor: str | None = None,
    ) -> None:
        path = None if model is None else local_path(model)
        if model is None or path is None:
            raise EncoderError(
                f"kind precomputed: model {model!r} is not a path; give the file of the vectors, "
                "starting with / or ./"
            )
        self._vectors, own_ids = read_vectors(
            path,
            id_column=None if ids is not None else id_column,
            vector_column=vector_column,
            tensor=tensor,
        )
        self._file = path
        self.modality = modality
        self.dim = int(self._vectors.shape[1])
        self._normalize = normalize
        self._rows: dict[str, int] | None = None
        if ids is not None:
            ids_path = local_path(ids)
            if ids_path is None:
                raise EncoderError(f"options.ids {ids!r} is not a path; start it with / or ./")
            own_ids = read_ids(ids_path, column=id_column)
        if own_ids is not None:
            self._rows = _row_of_id(own_ids, rows=len(self._vectors), where=ids or model)

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


def _row_of_id(ids: Sequence[str], *, rows: int, where: str) -> dict[str, int]:
    if len(ids) != rows:
        raise EncoderError(
            f"{where} has {len(ids)} ids for {rows} vectors; give one id a row, in the rows' order"
        )
    found = {one: row for row, one in enumerate(ids)}
    if len(found) != rows:
        repeated = next(one for row, one in enumerate(ids) if found[one] != row)
        raise EncoderError(f"{where}: id {repeated!r} is there twice; keep one row an item")
    return found
