"""Item cards: a row of the catalogue to what a page shows of it, a thumbnail or its title.

Thumbnails are WebP, made when an item is first shown; in a page that stands alone they are data
URIs. What a catalogue holds is text on a page: control characters are written out, and markup is
the template's to escape.
"""

import base64
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.data.items import ItemTable
from mmkd.embeddings.pictures import ImageProblem, decode_image
from mmkd.files import open_plain
from mmkd.terminal import printable

_SIDE_PX = 160  # of a thumbnail; shown at up to half of that, for screens with two dots a pixel
_QUALITY = 72
_HUES = 24  # a class each in the style
_MOST_CHARACTERS = 140  # of a title
_KEPT = 4096  # thumbnails held


@dataclass(frozen=True)
class Card:
    """What is shown of an item.

    Attributes:
        row: Of the catalogue.
        id: External id.
        title: Its title, at most some hundred characters.
        picture: Its address; None where there is no picture that can be read.
        hue: In degrees, the same for the same title: of the card that stands for a picture.
        cold: Whether no event of the item trains.
    """

    row: int
    id: str
    title: str
    picture: str | None
    hue: int
    cold: bool


class Cards:
    """Cards of one catalogue.

    Args:
        items: The catalogue.
        train_counts: [I+1] training events per item; None where they are not known, and no item is
            then said to be cold.
        picture: A row to its picture's address, or None; by itself a data URI.
    """

    def __init__(
        self,
        items: ItemTable,
        train_counts: NDArray[np.int64] | None = None,
        *,
        picture: Callable[[int], str | None] | None = None,
    ) -> None:
        self._items = items
        self._counts = train_counts
        self._picture = picture or self._inlined

    def __call__(self, row: int) -> Card:
        """The card of a row in 1..I."""
        title = _shortened(printable(self._items.titles[row]))
        return Card(
            row=row,
            id=printable(self._items.ids[row]),
            title=title,
            picture=self._picture(row),
            hue=zlib.crc32(title.encode()) % _HUES * (360 // _HUES),
            cold=self._counts is not None and int(self._counts[row]) == 0,
        )

    def _inlined(self, row: int) -> str | None:
        path = self._items.image_path[row]
        return None if path is None else _data_uri(path)

    def of(self, rows: Iterable[int]) -> list[Card]:
        """Those of several rows."""
        return [self(int(row)) for row in rows]


def thumbnail(path: Path, side_px: int = _SIDE_PX) -> bytes | None:
    """A picture's file to a small WebP; None where it can't be read."""
    try:
        with open_plain(path) as file:
            image = decode_image(file.read())
    except (OSError, ValueError, ImageProblem):  # ValueError: a path with a null character
        return None
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    written = BytesIO()
    image.save(written, "WEBP", quality=_QUALITY, method=4)
    return written.getvalue()


@lru_cache(_KEPT)
def _data_uri(path: Path) -> str | None:
    picture = thumbnail(path)
    if picture is None:
        return None
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


def _shortened(title: str) -> str:
    if len(title) <= _MOST_CHARACTERS:
        return title
    return title[: _MOST_CHARACTERS - 1].rstrip() + "…"
