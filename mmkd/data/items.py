"""The catalogue: external item ids to rows 1..I, with each item's title, text, picture, attributes.

From a reader (`mmkd.data.readers`) to the encoders, which read `text` and `image_path`, and to
everything that turns a row back into the id a user knows. Row 0 is padding. A catalogue is held as
columns; a Python value is made only when it is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Final, Generic, Self, SupportsIndex, TypeVar, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.column_files import read_parquet, write_parquet
from mmkd.data.ids import IdIndex, repeated
from mmkd.errors import DataError, did_you_mean, outside, shown

T = TypeVar("T", covariant=True)
_COLUMNS: Final[dict[str, pl.DataType]] = {
    "id": pl.String(),
    "title": pl.String(),
    "text": pl.String(),
    "image_path": pl.String(),
    "attributes": pl.List(pl.String()),
}


class ItemTable:
    """A catalogue of I items; every column has length I+1 and row 0 is padding.

    The columns are given as sequences and read as sequences. A million items take the memory of
    their text, not that of millions of Python objects.

        >>> from mmkd import ItemTable
        >>> items = ItemTable(
        ...     ids=["", "A1", "B7"],
        ...     titles=["", "Teapot", "Cup"],
        ...     text=[None, "A red teapot", None],
        ...     image_path=[None, None, None],
        ...     attributes=[[], ["red", "tea"], []],
        ... )
        >>> len(items), items.row("B7"), items.titles[2]
        (2, 2, 'Cup')
        >>> items.rows(["B7", "A1"])
        array([2, 1])

    Args:
        ids: External ids; ``ids[0]`` is the empty string.
        titles: What to show a person; the id where the source has no title.
        text: What a text encoder reads; None where the item has none.
        image_path: Where the picture should be; None where the item has none. The file may be
            absent: the embedding cache records that.
        attributes: Labels such as genres, possibly none.

    Attributes:
        ids: And the others: the columns as sequences of Python values.
        frame: The columns ``id``, ``title``, ``text``, ``image_path`` and ``attributes``, [I+1].
            Labels are held as numbers (Enum); where UTF-8 cannot hold a text or a path, its column
            is one of bytes.

    Raises:
        DataError: If the columns differ in length, the padding row is missing or an id is repeated.
    """

    ids: "Column[str]"
    titles: "Column[str]"
    text: "Column[str | None]"
    image_path: "Column[Path | None]"
    attributes: "Column[tuple[str, ...]]"
    frame: pl.DataFrame

    def __init__(
        self,
        ids: Sequence[str],
        titles: Sequence[str],
        text: Sequence[str | None],
        image_path: Sequence[Path | None],
        attributes: Sequence[Sequence[str]],
    ) -> None:
        given = (ids, titles, text, image_path, attributes)
        lengths = {name: len(values) for name, values in zip(_READ, given, strict=True)}
        if len(set(lengths.values())) != 1:
            raise DataError(f"fields of an item table differ in length: {lengths}")
        self._hold(pl.DataFrame(list(map(_series, given, _COLUMNS))))

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        """The catalogue of columns such as those of ``frame``, taken as they are."""
        table = cls.__new__(cls)
        table._hold(frame)
        return table

    def _hold(self, frame: pl.DataFrame) -> None:
        ids = frame["id"]
        if not len(ids) or ids[0] != "":
            raise DataError("row 0 of an item table is padding: its id must be the empty string")
        if again := repeated(ids):
            raise DataError(
                f"item ids must be unique; repeated: {shown(again)}; remove the repeated rows"
            )
        self.frame = frame.with_columns(_coded(frame["attributes"])).rechunk()
        self._index = IdIndex(self.frame["id"])
        for (name, read), column in zip(_READ.items(), self.frame, strict=True):
            setattr(self, name, Column(column, read))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ItemTable) and all(
            getattr(self, name) == getattr(other, name) for name in _READ
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ItemTable of {len(self)} items: {self.ids[1:]!r}"

    def __len__(self) -> int:
        """Number of items, padding not counted."""
        return len(self.ids) - 1

    def row(self, item_id: str) -> int:
        """The row of one external id, in 1..I.

        Args:
            item_id: The id as the source spells it.

        Raises:
            DataError: If the catalogue has no such item; close matches are named.
        """
        return int(self.rows([item_id])[0])

    def named(self, name: str) -> str:
        """The id of an item that a person named: an id, or ``title:`` and its title.

        A title is found whatever its case; one that only one item's title contains is enough.

        Raises:
            DataError: No item, or more than one, has such a title.
        """
        if not name.startswith("title:") or bool(self.find([name])[0]):
            return name
        wanted = name.removeprefix("title:").strip()
        titles = self.frame["title"].str.to_lowercase()
        for found in (titles == wanted.lower(), titles.str.contains(wanted.lower(), literal=True)):
            rows = found.arg_true().to_list()
            if len(rows) == 1:
                return str(self.ids[rows[0]])
            if rows:
                raise DataError(
                    f"title {wanted!r} is that of {len(rows)} items: "
                    f"{shown([self.ids[row] for row in rows])}; name one by its id"
                )
        raise DataError(
            f"no item has the title {wanted!r}{did_you_mean(wanted, self.titles[1:2001])}"
        )

    def rows(self, ids: Sequence[str] | pl.Series) -> NDArray[np.int64]:
        """The rows of external ids, [n] in 1..I.

        Args:
            ids: [n] ids as the source spells them.

        Raises:
            DataError: If the catalogue lacks an item; the first ones are named, and close matches.
        """
        rows = self.find(ids)
        if not rows.all():
            unknown = list(dict.fromkeys(ids[int(place)] for place in np.flatnonzero(rows == 0)))
            are = "is" if len(unknown) == 1 else "are"
            raise DataError(
                f"item{'s' * (len(unknown) > 1)} {shown(unknown)} {are} not among the {len(self)} "
                f"items of the catalogue{self.suggestion(unknown[0])}"
            )
        return rows

    def find(self, ids: Sequence[str] | pl.Series) -> NDArray[np.int64]:
        """As `rows`, but 0 where the catalogue lacks the item."""
        return np.maximum(self._index.find(ids), 0)  # the padding's id finds row 0 too

    def suggestion(self, item_id: str) -> str:
        """Close matches of an unknown id, as a clause to end an error message with."""
        return did_you_mean(item_id, filter(None, self._index.near(item_id)))

    def save(self, path: Path) -> None:
        """Writes the table as Parquet, whole or not at all.

        Args:
            path: File to write; its folder is made where it does not exist.

        Raises:
            DataError: If the file cannot be written, or a text or a path is not UTF-8.
        """
        for name, dtype in self.frame.schema.items():
            if dtype == pl.Binary:
                raise DataError(
                    f"{path}: {name} of an item is no UTF-8 text, which Parquet cannot hold; give "
                    "it without half surrogate pairs"
                )
        with outside(DataError, path, "cannot be written", remedy="give another place"):
            write_parquet(path, self.frame.cast({"attributes": _COLUMNS["attributes"]}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a table that `save` wrote.

        Args:
            path: The Parquet file.

        Returns:
            The same table.

        Raises:
            DataError: If the file is missing, damaged, or not an item table.
        """
        remedy = "write it with ItemTable.save"
        if not path.exists():
            raise DataError(f"{path}: no such file; {remedy}")
        with outside(
            DataError, path, "not a readable item table", remedy=remedy, also=(ValueError,)
        ):
            frame, _ = read_parquet(path)
        if dict(frame.schema) != _COLUMNS:
            raise DataError(
                f"{path}: columns {dict(frame.schema)} are not an item table's {_COLUMNS}; "
                "load source files with load_items"
            )
        return cls.of(frame)


class Column(Sequence[T], Generic[T]):
    """A column of a catalogue as a sequence; polars, pyarrow and pandas take it as it is.

    Args:
        series: [n] the values as polars holds them.
        read: One of them to the Python value.
    """

    def __init__(self, series: pl.Series, read: Callable[[Any], T]) -> None:
        self.series = series
        self._read = read

    def __len__(self) -> int:
        return len(self.series)

    @overload
    def __getitem__(self, place: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Column[T]": ...
    def __getitem__(self, place: SupportsIndex | slice) -> "T | Column[T]":
        if isinstance(place, slice):
            return Column(self.series[place], self._read)
        return self._read(self.series[index(place)])

    def __iter__(self) -> Iterator[T]:
        for part in self.series.to_frame().iter_slices(10_000):
            yield from map(self._read, part.to_series().to_list())

    def take(self, places: pl.Series) -> "Column[T]":
        """The values at places ``[m]``, as a column."""
        return Column(self.series.gather(places), self._read)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Column) and self.series.dtype == other.series.dtype:
            return self.series.equals(other.series)
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} values: {shown(self[:3])}{', ...' * (len(self) > 3)}>"

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.series.__arrow_c_stream__(requested_schema)


def _text(value: str | bytes | None) -> Any:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _path(value: str | bytes | None) -> Path | None:
    return None if value is None else Path(_text(value))


# how each field, in the order of the columns, becomes Python values
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "ids": _text,
    "titles": _text,
    "text": _text,
    "image_path": _path,
    "attributes": tuple,
}


def _series(values: Sequence[Any], name: str) -> pl.Series:
    """A field as polars holds it; of text that UTF-8 cannot hold, its bytes."""
    if isinstance(values, Column):
        return values.series.alias(name)
    if name == "image_path":
        values = [None if path is None else str(path) for path in values]
    try:
        return pl.Series(name, values, dtype=_COLUMNS[name])
    except UnicodeEncodeError:
        if name not in ("text", "image_path"):
            raise DataError(f"{name} of an item is not UTF-8 text; rename the item") from None
        bytes_of = [None if one is None else one.encode("utf-8", "surrogatepass") for one in values]
        return pl.Series(name, bytes_of, dtype=pl.Binary)


def _coded(labels: pl.Series) -> pl.Series:
    """Lists of labels with each label's text held once for the whole catalogue."""
    known = labels.explode().cast(pl.String).drop_nulls().unique().sort()
    return labels.cast(pl.List(pl.Enum(known)))


@dataclass(frozen=True)
class AttributeVocabulary:
    """Every label of a catalogue, and which of them each item has.

    Attributes:
        names: The C labels, sorted; label number c is ``names[c - 1]``.
        labels: [I+2, A] int64, an item's label numbers 1..C, then 0; the padding's and the mask
            token's rows are 0.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, items: ItemTable) -> "AttributeVocabulary":
        """Number the labels of a catalogue.

        Raises:
            DataError: No item has one.
        """
        pairs = (
            items.frame.select("attributes")
            .with_row_index("row")
            .explode("attributes")
            .cast({"attributes": pl.String})
            .drop_nulls()
            .unique()
            .sort("row", "attributes")
        )
        names = pairs["attributes"].unique().sort()
        if not len(names):
            raise DataError(
                "no item of the catalogue has an attribute to predict; name their column in "
                "data.items.attributes (and what parts them in attribute_separator), or set "
                "objective.attributes: null"
            )
        row = pairs["row"].to_numpy().astype(np.int64)
        counts = np.bincount(row, minlength=len(items) + 1)  # [I+1]
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        labels = np.zeros((len(items) + 2, counts.max()), dtype=np.int64)
        labels[row, place] = IdIndex(names).find(pairs["attributes"]) + 1
        return cls(names=tuple(names), labels=labels)
