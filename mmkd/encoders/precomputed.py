"""Vectors that a user already has: from files, by item id or by row of the catalogue.

From: ids, or row numbers as strings. To: ``[n, dim]`` float32, a row of NaN where the file has no
vector. Files: ``.npy`` (such as MMRec's ``image_feat.npy``), ``.parquet``, ``.safetensors``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mmkd.encoders.base import EncoderError, checked_texts, encode_in_batches, unit_rows
from mmkd.encoders.model_source import local_path
from mmkd.encoders.vector_files import read_ids, read_vectors


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
