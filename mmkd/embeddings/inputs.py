"""What identifies an item's vector: the content of its own text or picture.

From an item table to a frame with a row per item: ``row`` (1..I), ``item_id``, ``key`` (a hash of
the content, null where there is none), and for an item without content ``absent`` (``missing`` or
``failed``) and ``absent_reason``; and from what of it has yet to be encoded to `Work`. Ids and
positions are no part of a key: a reordered or renamed catalogue needs no encoding, and items with
the same content share a vector.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, SupportsIndex, overload

import polars as pl
from numpy.typing import NDArray
from PIL import Image

from mmkd.column_files import write_parquet
from mmkd.data import ItemTable
from mmkd.data.items import Column
from mmkd.embeddings.shards import FAILED, MISSING, SETTLED_NS, read_parquet
from mmkd.encoders import EncoderCard
from mmkd.errors import CacheError
from mmkd.files import open_plain, remove_temporaries

Key = str | tuple[str, str]  # of a content; or the status and the reason of there being none
INPUTS = {
    "row": pl.Int64,
    "item_id": pl.String,
    "key": pl.String,
    "absent": pl.String,
    "absent_reason": pl.String,
}
_Stamp = tuple[int, int, int, int]  # size, time of change, inode, its time of change
_FILES = {
    "path": pl.String,
    "size": pl.Int64,
    "mtime_ns": pl.Int64,
    "inode": pl.UInt64,
    "ctime_ns": pl.Int64,
    "key": pl.String,
}
_KEYS_AT_ONCE = 100_000
_SAVE_EVERY = 20_000
_READERS = 8


@dataclass(frozen=True)
class Work:
    """One input to encode.

    Attributes:
        key: Its content key.
        item_id: An item that has it.
        source: The text, or the picture's file.
    """

    key: str
    item_id: str
    source: str | Path


class WorkList(Sequence[Work]):
    """Inputs to encode as columns, of which each is made when it is asked for.

    Args:
        keys: ``[n]`` content keys.
        item_ids: ``[n]`` an item that has each.
        sources: ``[n]`` texts, or the pictures' files.
    """

    def __init__(self, keys: Column[str], item_ids: Column[str], sources: Column[Any]) -> None:
        self.keys = keys
        self._columns = keys, item_ids, sources

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: SupportsIndex) -> Work: ...
    @overload
    def __getitem__(self, place: slice) -> "WorkList": ...
    def __getitem__(self, place: SupportsIndex | slice) -> "Work | WorkList":
        if isinstance(place, slice):
            return WorkList(*(column[place] for column in self._columns))
        return Work(*(column[place] for column in self._columns))

    def __iter__(self) -> Iterator[Work]:
        return map(Work, *self._columns)

    def ordered(self) -> "WorkList":
        """Texts by falling length, and those of equal lengths, and pictures, by key."""
        sources = self._columns[2]
        if sources.series.dtype == pl.String and isinstance(next(iter(sources), ""), str):
            lengths = sources.series.str.len_chars()
        else:  # files, or texts that UTF-8 cannot hold
            lengths = pl.Series([len(one) if isinstance(one, str) else 0 for one in sources])
        place = pl.DataFrame({"length": lengths, "key": self.keys.series}).select(
            pl.arg_sort_by("length", "key", descending=[True, False])
        )
        return WorkList(*(column.take(place.to_series()) for column in self._columns))


@dataclass(frozen=True)
class Loaded:
    """An input ready for the encoder.

    Attributes:
        key: Of the bytes that were read, should the file have changed since it was hashed.
        item_id: An item that has it.
        content: A text, an RGB image or what the encoder's ``prepare`` made; None if it failed.
        reason: Why it failed.
    """

    key: str
    item_id: str
    content: str | Image.Image | NDArray[Any] | None
    reason: str | None = None


def inputs_of(card: EncoderCard, items: ItemTable, files: "FileKeys") -> pl.DataFrame:
    """Keys of what an encoder reads of each item.

    Where that is a row's number, the key holds the whole catalogue's order: in another catalogue
    the same row is another item. Such vectors are then looked up anew, which costs little.

    Args:
        card: The encoder's card.
        items: The catalogue.
        files: Remembers the keys of unchanged files.

    Returns:
        A frame as in the module's docstring.
    """
    sources = sources_of(card, items)[1:]
    keys: Iterable[Key]
    if card.reads != "content":
        order = " of " + text_key("\n".join(items.ids)) if card.reads == "row" else ""
        keys = (text_key(f"{name}{order}") for name in sources)
    elif card.modality == "text":
        blank = MISSING, "no text"
        keys = (text_key(str(text)) if text and str(text).strip() else blank for text in sources)
    else:
        found = files.keys(Path(path) for path in sources if path is not None)
        no_path = MISSING, "no image path"
        keys = (no_path if path is None else found[Path(path)] for path in sources)
    # some at a time: an object for each key of a large catalogue takes more than its columns
    parts, left = [_keyed([])], iter(keys)
    while part := list(islice(left, _KEYS_AT_ONCE)):
        parts.append(_keyed(part))
    numbers = pl.int_range(1, len(items) + 1, dtype=pl.Int64, eager=True)
    named = items.frame[1:].select(pl.lit(numbers).alias("row"), pl.col("id").alias("item_id"))
    return named.hstack(pl.concat(parts))


def _keyed(keys: Sequence[Key]) -> pl.DataFrame:
    lost = [(None, None) if isinstance(key, str) else key for key in keys]
    columns = {
        "key": [key if isinstance(key, str) else None for key in keys],
        "absent": [status for status, _ in lost],
        "absent_reason": [reason and storable(reason) for _, reason in lost],
    }
    return pl.DataFrame(columns, schema={name: INPUTS[name] for name in columns})


def work_left(card: EncoderCard, items: ItemTable, statuses: pl.DataFrame) -> WorkList:
    """The inputs to encode: of items with the same content the first.

    Args:
        card: The encoder's card.
        items: The catalogue.
        statuses: A row per item, whose ``status`` is null where its input has yet to be encoded.
    """
    left = statuses.filter(pl.col("status").is_null())
    left = left.unique("key", keep="first", maintain_order=True).select("key", "item_id", "row")
    keys, item_ids = Column(left["key"], str), Column(left["item_id"], str)
    return WorkList(keys, item_ids, sources_of(card, items).take(left["row"]))


def sources_of(card: EncoderCard, items: ItemTable) -> "Column[Any]":
    """What the encoder is given for each row ``[I+1]``: a text, a picture's file, or a name."""
    if card.reads == "content":
        return items.text if card.modality == "text" else items.image_path
    if card.reads == "id":
        return items.ids
    return Column(pl.int_range(len(items) + 1, eager=True).cast(pl.String), str)


def text_key(text: str) -> str:
    """Identity of a text; text that UTF-8 cannot hold (half a surrogate pair) has one too."""
    return content_key(text.encode("utf-8", "surrogatepass"))


def content_key(content: bytes) -> str:
    """Identity of a content: the first 128 bits of its SHA-256, as 32 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def storable(text: str) -> str:
    """A text as Parquet can hold it: half a surrogate pair, as in odd file names, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class FileKeys:
    """Content keys of files, re-read only when anything a file is known by differs.

    That is its size and time of change, which an archive unpacked over it keeps, and its inode and
    the time that changed, which it does not.

    Args:
        store: Parquet file that keeps them between runs.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._unsaved = False

    def keys(self, paths: Iterable[Path]) -> dict[Path, Key]:
        """Content keys of files.

        Args:
            paths: The files.

        Returns:
            For each path its key, or (status, reason) where there is no readable file.
        """
        unique = list(dict.fromkeys(paths))
        found: dict[Path, Key] = {}
        _ = self._known  # read by this thread, before others ask it
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(unique), _SAVE_EVERY):
                part = unique[start : start + _SAVE_EVERY]
                found.update(zip(part, pool.map(self._key, part), strict=True))
                if self._unsaved:
                    self._save()
        return found

    @cached_property
    def _known(self) -> dict[str, tuple[_Stamp, str]]:
        with suppress(CacheError):  # absent or damaged: every file is read once more
            if (read := read_parquet(self._store, list(_FILES))) is not None:
                rows = read[0].select(_FILES.keys()).iter_rows()
                return {path: (tuple(stamp), key) for path, *stamp, key in rows}
        return {}

    def _key(self, path: Path) -> Key:
        try:
            name, stat = storable(os.path.abspath(path)), path.stat()
            before = self._known.get(name)
            stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)
            if before is not None and before[0] == stamp:
                return before[1]
            with open_plain(path) as file:
                key = content_key(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return MISSING, f"no such file: {path}"
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            return FAILED, f"cannot be read: {path} ({error})"
        self._known[name] = (stamp, key)
        self._unsaved = True
        return key

    def _save(self) -> None:
        self._unsaved = False
        settled = time.time_ns() - SETTLED_NS
        rows = [
            (path, *stamp, key)
            for path, (stamp, key) in self._known.items()
            if max(stamp[1], stamp[3]) < settled
        ]
        with suppress(OSError):  # a read-only cache still serves; files are then hashed in each run
            remove_temporaries(self._store.parent)
            write_parquet(self._store, pl.DataFrame(rows, schema=_FILES, orient="row"))
