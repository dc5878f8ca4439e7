"""External ids: a column of any type to text, and text to positions among the ids that are known.

From the columns of a user's files to the rows of the catalogue, of the users and of vectors that
were computed elsewhere. An id stays text from first to last: 007 is not 7.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.errors import shown

# Numbers that no one type holds, as written: whole ones that a float rounds, beside others.
NUMBERS = pl.Struct({"number": pl.String})
# One id among a million is searched for in 10 us, all are joined in 0.2 s, and few in 1.5 ms.
_JOIN_FROM = 0.001
_JOIN_AT_LEAST = 64
_BLOCK = 1 << 22  # rows that are looked through at once
# difflib takes 10 us a candidate.
_CANDIDATES = 2_000


def ids_as_text(column: pl.Series) -> pl.Series | None:
    """Ids as they are written; whole numbers become their decimal digits.

    Args:
        column: [n] text, categories or whole numbers, also whole numbers that a gap in their column
            turned into floats.

    Returns:
        [n] text, null where an id is missing; None where the column cannot be ids, which
        `why_no_ids` words.
    """
    if why_no_ids(column) is not None:
        return None
    if column.dtype.is_float():
        return column.fill_nan(None).cast(pl.Int64).cast(pl.String)
    return column.cast(pl.String)


def why_no_ids(column: pl.Series) -> str | None:
    """What of a column's type cannot be ids, and the remedy; None where it can."""
    dtype = column.dtype
    if dtype.is_float():
        values = column.fill_nan(None).drop_nulls()
        infinite, odd = values.is_infinite(), values != values.floor()
        if (infinite | odd).any():
            fault = shown(values.filter(infinite | odd).to_list(), limit=3)
            return f"holds {dtype} such as {fault}, which cannot be ids; use text or whole numbers"
        if (values.abs() >= rounds_from(column)).any():
            return (
                f"holds {dtype} with ids from {rounds_from(column):,} on, which it rounds, so that "
                "different ids may be one; write the column as whole numbers or as text"
            )
        return None
    if dtype == NUMBERS:
        return (
            "holds numbers with a point or an exponent beside whole ones beyond 2^53, so that what "
            "wrote them may have rounded some; write the column as whole numbers or as text"
        )
    whole_decimal = dtype.is_decimal() and dtype.scale == 0  # type: ignore[attr-defined]
    texts = (pl.String, pl.Categorical, pl.Enum, pl.Null)
    if dtype in texts or dtype.is_integer() or whole_decimal:
        return None
    return f"holds {dtype}, which cannot be ids; use text or whole numbers"


def rounds_from(column: pl.Series) -> int:
    """Where a column of floats begins to miss whole numbers: 2^53, of Float32 2^24."""
    return int(2 ** (np.finfo(column.head(0).to_numpy().dtype).nmant + 1))


def repeated(ids: pl.Series) -> list[str]:
    """The ids that occur more than once, each once, in the order of their first repeat."""
    if ids.n_unique() == len(ids):
        return []
    return ids.filter(~ids.is_first_distinct()).unique(maintain_order=True).to_list()


@dataclass(frozen=True)
class CodedIds:
    """A column of ids with each different one's text held once: 4 bytes a row instead of a text.

    Attributes:
        codes: [n] int32 in 0..K-1; -1 where an id is missing.
        known: [K] text, in order of first appearance.
    """

    codes: NDArray[np.int32]
    known: pl.Series

    @classmethod
    def of(cls, ids: pl.Series) -> "CodedIds":
        """The coded form of a column of text, or of whole numbers, as `ids_as_text` takes it."""
        values = ids.fill_nan(None) if ids.dtype.is_float() else ids
        known = values.drop_nulls().unique(maintain_order=True)
        places = pl.DataFrame({"id": known}).with_row_index("code")
        codes = values.to_frame("id").join(places, on="id", how="left", maintain_order="left")
        text = ids_as_text(known)
        assert text is not None  # `why_no_ids` was asked
        return cls(codes["code"].cast(pl.Int32).fill_null(-1).to_numpy(), text)

    @classmethod
    def of_numbers(cls, codes: NDArray[np.int32], known: pl.Series) -> "CodedIds":
        """A column whose texts are numbered in another order, or of which no row has some.

        Args:
            codes: [n] numbers, -1 where an id is missing.
            known: [K'] text, each id once.
        """
        first = np.full(len(known), len(codes), np.int64)  # [K'] place of first appearance
        for end in range(len(codes), 0, -_BLOCK):  # the last block first
            start = max(end - _BLOCK, 0)
            held = start + np.flatnonzero(codes[start:end] >= 0)
            first[codes[held[::-1]]] = held[::-1]  # of those that write to one place the last stays
        order = np.argsort(first, kind="stable")
        order = order[: int((first < len(codes)).sum())]  # a file may name ids that no row has
        number = np.full(len(known) + 1, -1, np.int32)
        number[order] = np.arange(len(order), dtype=np.int32)
        return cls(number[codes], known.gather(order))

    def text(self) -> pl.Series:
        """[n] the ids as they were, null where missing."""
        return self.known.gather(pl.Series(self.codes).replace(-1, None))


def digest_of(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order, hexadecimal."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))  # or "a","bc" would equal "ab","c"
        digest.update(content)
    return digest.hexdigest()


class IdIndex:
    """Positions of ids among those that are known.

    Args:
        known: [N] text, each id once.
    """

    def __init__(self, known: pl.Series) -> None:
        self._known = known

    def find(self, ids: pl.Series | Sequence[str]) -> NDArray[np.int64]:
        """Position of each id in 0..N-1, [n] int64; -1 where it is not known."""
        if len(ids) < max(_JOIN_FROM * len(self._known), _JOIN_AT_LEAST):
            return np.array([self._search(one) for one in ids], dtype=np.int64)
        right = pl.DataFrame({"id": self._known}).with_row_index("position")
        left = pl.DataFrame({"id": ids}, schema={"id": pl.String})
        joined = left.join(right, on="id", how="left", maintain_order="left", validate="m:1")
        return joined["position"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)

    def near(self, name: str) -> list[str]:
        """What may have been meant: all ids of a few, of many those that begin most like it."""
        if len(self._known) <= _CANDIDATES:
            return self._known.to_list()
        start = max(self._place(name) - _CANDIDATES // 2, 0)
        return self._known.gather(self._order[start : start + _CANDIDATES]).to_list()

    @cached_property
    def _order(self) -> NDArray[np.uint32]:
        """The ids' positions in the order of their text, [N]."""
        return self._known.arg_sort().to_numpy()

    def _place(self, name: str) -> int:
        return bisect_left(self._order, name, key=lambda position: self._known[int(position)])

    def _search(self, name: str | None) -> int:
        if name is None:
            return -1
        place = self._place(name)
        if place == len(self._order):
            return -1
        position = int(self._order[place])
        return position if self._known[position] == name else -1
