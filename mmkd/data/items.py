"""The catalogue: external item ids to rows 1..I, with each item's title, text, picture, attributes.

From a reader (`mmkd.data.readers`) to the encoders, which read `text` and `image_path`, and to
everything that turns a row back into the id a user knows. Row 0 is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.errors import DataError, did_you_mean, shown
from mmkd.files import replacing

_COLUMNS: Final[dict[str, pl.DataType]] = {
    "id": pl.String(),
    "title": pl.String(),
    "text": pl.String(),
    "image_path": pl.String(),
    "attributes": pl.List(pl.String()),
}


@dataclass(frozen=True)
class ItemTable:
    """A catalogue of I items; every field has length I+1 and row 0 is padding.

    Attributes:
        ids: External ids; ``ids[0]`` is the empty string.
        titles: What to show a person; the id where the source has no title.
        text: What a text encoder reads; None where the item has none.
        image_path: Where the picture should be; None where the item has none. The file may be
            absent: the embedding cache records that.
        attributes: Labels such as genres, possibly none.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    text: tuple[str | None, ...]
    image_path: tuple[Path | None, ...]
    attributes: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Refuses fields of unequal length, a missing padding row and repeated ids."""
        lengths = {name: len(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(set(lengths.values())) != 1:
            raise DataError(f"fields of an item table differ in length: {lengths}")
        if not self.ids or self.ids[0] != "":
            raise DataError("row 0 of an item table is padding: its id must be the empty string")
        if len(self._row_of) != len(self.ids):
            raise DataError(
                f"item ids must be unique; repeated: {shown(repeated(self.ids))}; remove the "
                "repeated rows"
            )

    def __len__(self) -> int:
        """Number of items, padding not counted."""
        return len(self.ids) - 1

    def row(self, item_id: str) -> int:
        """Looks up an external id.

        Args:
            item_id: The id as the source spells it.

        Returns:
            The item's row, in 1..I.

        Raises:
            DataError: If the catalogue has no such item; close matches are named.
        """
        row = self._row_of.get(item_id, 0)
        if row == 0:
            raise DataError(
                f"item {item_id!r} is not among the {len(self)} items of the catalogue"
                f"{did_you_mean(item_id, self.ids[1:])}"
            )
        return row

    def save(self, path: Path) -> None:
        """Writes the table as Parquet, whole or not at all.

        Args:
            path: File to write; its folder is made where it does not exist.
        """
        images = [None if image is None else str(image) for image in self.image_path]
        columns = (self.ids, self.titles, self.text, images, self.attributes)
        frame = pl.DataFrame(
            {name: list(values) for name, values in zip(_COLUMNS, columns, strict=True)},
            schema=_COLUMNS,
        )
        with replacing(path) as temporary:
            frame.write_parquet(temporary)

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
        try:
            frame = pl.read_parquet(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; write it with ItemTable.save") from None
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: not a readable item table ({error})") from error
        if dict(frame.schema) != _COLUMNS:
            raise DataError(
                f"{path}: columns {dict(frame.schema)} are not an item table's {_COLUMNS}; "
                "load source files with load_items"
            )
        images = frame["image_path"].to_list()
        return cls(
            ids=tuple(frame["id"]),
            titles=tuple(frame["title"]),
            text=tuple(frame["text"]),
            image_path=tuple(None if image is None else Path(image) for image in images),
            attributes=tuple(map(tuple, frame["attributes"].to_list())),
        )

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.ids)}


def repeated(ids: Sequence[str]) -> list[str]:
    """Lists the ids that occur more than once, each once, in the order of their first repeat."""
    seen: set[str] = set()
    again: dict[str, None] = {}
    for item_id in ids:
        if item_id in seen:
            again[item_id] = None
        seen.add(item_id)
    return list(again)


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
        names = tuple(sorted({label for labels in items.attributes for label in labels}))
        if not names:
            raise DataError(
                "no item of the catalogue has an attribute to predict; name their column in "
                "data.items.attributes (and what parts them in attribute_separator), or set "
                "objective.attributes: null"
            )
        number = {name: c for c, name in enumerate(names, start=1)}
        rows = [sorted({number[label] for label in labels}) for labels in items.attributes]
        table = np.zeros((len(rows) + 1, max(map(len, rows))), dtype=np.int64)
        for row, labels in enumerate(rows):
            table[row, : len(labels)] = labels
        return cls(names=names, labels=table)
