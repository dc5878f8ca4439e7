"""What identifies an item's vector: the content of its own text or picture.

From an item table to a frame with a row per item: ``row`` (1..I), ``item_id``, ``key`` (a hash of
the content, null where there is none), and for an item without content ``absent`` (``missing`` or
``failed``) and ``absent_reason``. Ids and positions are no part of a key: a reordered or renamed
catalogue needs no encoding, and items with the same content share a vector.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from numpy.typing import NDArray
from PIL import Image

from mmkd.data import ItemTable
from mmkd.embeddings.shards import FAILED, MISSING
from mmkd.encoders.card import EncoderCard
from mmkd.files import remove_temporaries, replacing

Content = str | Image.Image | NDArray[Any]


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
    content: Content | None
    reason: str | None = None


INPUTS = {
    "row": pl.Int64,
    "item_id": pl.String,
    "key": pl.String,
    "absent": pl.String,
    "absent_reason": pl.String,
}
_FILES = {"path": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "key": pl.String}
# a file changed again within the clock's tick keeps its mtime: only older ones are trusted
_SETTLED_NS = 2_000_000_000
_SAVE_EVERY = 20_000
_READERS = 8


def content_key(content: bytes) -> str:
    """Identity of a content: the first 128 bits of its SHA-256, as 32 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def text_key(text: str) -> str:
    """Identity of a text; text that UTF-8 cannot hold (half a surrogate pair) has one too."""
    return content_key(text.encode("utf-8", "surrogatepass"))


def storable(text: str) -> str:
    """A text as Parquet can hold it: half a surrogate pair, as in odd file names, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def inputs_of(card: EncoderCard, items: ItemTable, files: "FileKeys") -> pl.DataFrame:
    """Keys of what an encoder reads of each item.

    Args:
        card: The encoder's card.
        items: The catalogue.
        files: Remembers the keys of unchanged files.

    Returns:
        A frame as in the module's docstring.
    """
    if card.reads != "content":
        return name_inputs(items, reads=card.reads)
    return text_inputs(items) if card.modality == "text" else image_inputs(items, files)


def text_inputs(items: ItemTable) -> pl.DataFrame:
    """Keys of the items' texts; None and blank are missing.

    Args:
        items: The catalogue.

    Returns:
        A frame as in the module's docstring.
    """
    keys: list[str | None] = []
    for text in items.text[1:]:
        keys.append(text_key(text) if text is not None and text.strip() else None)
    absent = [None if key else (MISSING, "no text") for key in keys]
    return _frame(items, keys, absent)


def image_inputs(items: ItemTable, files: "FileKeys") -> pl.DataFrame:
    """Keys of the items' pictures, by the bytes of their files.

    Args:
        items: The catalogue.
        files: Remembers the keys of unchanged files.

    Returns:
        A frame as in the module's docstring.
    """
    paths = [path for path in items.image_path[1:] if path is not None]
    found = files.keys(paths)
    keys: list[str | None] = []
    absent: list[tuple[str, str] | None] = []
    for path in items.image_path[1:]:
        entry = (MISSING, "no image path") if path is None else found[path]
        keys.append(entry if isinstance(entry, str) else None)
        absent.append(None if isinstance(entry, str) else entry)
    return _frame(items, keys, absent)


def name_inputs(items: ItemTable, *, reads: Literal["id", "row"]) -> pl.DataFrame:
    """Keys of items that an encoder knows by name: vectors that were computed elsewhere.

    Where the name is a row, the key holds the whole catalogue's order: in another catalogue the
    same row is another item. Such vectors are then looked up anew, which costs little.

    Args:
        items: The catalogue.
        reads: Whether the name is the item's id or its row, 1..I.

    Returns:
        A frame as in the module's docstring.
    """
    order = " of " + text_key("\n".join(items.ids)) if reads == "row" else ""
    keys: list[str | None] = [text_key(name + order) for name in item_names(items, reads=reads)[1:]]
    return _frame(items, keys, [None] * len(keys))


def item_names(items: ItemTable, *, reads: Literal["id", "row"]) -> Sequence[str]:
    """What such an encoder is given for each row 0..I."""
    return items.ids if reads == "id" else [str(row) for row in range(len(items) + 1)]


class FileKeys:
    """Content keys of files, re-read only when a file's size or time of change differs.

    Args:
        store: Parquet file that keeps them between runs.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: dict[str, tuple[int, int, str]] = {}
        self._read: list[str] = []  # since the last save
        try:
            frame = pl.read_parquet(store.read_bytes())
            for path, size, mtime_ns, key in frame.select(list(_FILES)).iter_rows():
                self._known[path] = (size, mtime_ns, key)
        except (OSError, pl.exceptions.PolarsError):
            pass  # absent or damaged: every file is read once more

    def keys(self, paths: Iterable[Path]) -> dict[Path, str | tuple[str, str]]:
        """Content keys of files.

        Args:
            paths: The files.

        Returns:
            For each path its key, or (status, reason) where there is no readable file.
        """
        unique = list(dict.fromkeys(paths))
        found: dict[Path, str | tuple[str, str]] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(unique), _SAVE_EVERY):
                part = unique[start : start + _SAVE_EVERY]
                found.update(zip(part, pool.map(self._key, part), strict=True))
                if self._read:
                    self._save()
        return found

    def _key(self, path: Path) -> str | tuple[str, str]:
        try:
            name, stat = storable(os.path.abspath(path)), path.stat()
            known = self._known.get(name)
            if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
                return known[2]
            key = content_key(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return MISSING, f"no such file: {path}"
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            return FAILED, f"cannot be read: {path} ({error})"
        self._known[name] = (stat.st_size, stat.st_mtime_ns, key)
        self._read.append(name)
        return key

    def _save(self) -> None:
        self._read.clear()
        settled = time.time_ns() - _SETTLED_NS
        rows = [(path, *entry) for path, entry in self._known.items() if entry[1] < settled]
        frame = pl.DataFrame(rows, schema=_FILES, orient="row")
        try:
            remove_temporaries(self._store.parent)
            with replacing(self._store) as temporary:
                frame.write_parquet(temporary)
        except OSError:
            pass  # a read-only cache still serves; files are then hashed in each run


def _frame(
    items: ItemTable, keys: list[str | None], absent: list[tuple[str, str] | None]
) -> pl.DataFrame:
    columns = {
        "row": range(1, len(items) + 1),
        "item_id": items.ids[1:],
        "key": keys,
        "absent": [entry and entry[0] for entry in absent],
        "absent_reason": [entry and storable(entry[1]) for entry in absent],
    }
    return pl.DataFrame(columns, schema=INPUTS)
