"""Pictures: rows of a catalogue to small WebP files, of what lies in the pictures' folder only.

The catalogue's paths were checked when it was read; a run may come from elsewhere and links may
have changed since, so every path is followed to its end again, and what is opened is that end.
"""

import os
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from statistics import median

from PIL import Image

from mmkd.data.items import ItemTable
from mmkd.report.cards import thumbnail

_SIDE_PX = 320  # shown at up to half of that, for screens with two dots a pixel
_KEPT = 2048  # some kB each
_KNOWN = 65_536  # paths that were followed
_TALL = 0.85  # width by height, from where a square would cut too much off


class Pictures:
    """A catalogue's pictures.

    Args:
        items: The catalogue.
        root: The pictures' folder, as the catalogue was read with; nothing outside it is opened.
        moved_to: Where that folder is now; None where it is where it was.

    Attributes:
        rows: I, of which 1 to I may be asked for.
    """

    def __init__(self, items: ItemTable, root: Path, *, moved_to: Path | None = None) -> None:
        self._items = items
        self.rows = len(items)
        self._given = root
        self._moved_to = moved_to
        self._root = os.path.realpath(moved_to or root)
        self._broken: set[int] = set()
        self._known = lru_cache(_KNOWN)(self._file)
        self.webp = lru_cache(_KEPT)(self._webp)

    def has(self, row: int) -> bool:
        """Whether a row's picture is there, and was not found to be none."""
        return row not in self._broken and self._known(row) is not None

    def shape(self, rows: Iterable[int]) -> str:
        """``tall``, ``wide`` or ``square``: what most of some rows' pictures are."""
        sides = [_sides(picture) for row in rows if (picture := self.webp(row)) is not None]
        ratio = median([width / height for width, height in sides]) if sides else 1.0
        return "tall" if ratio < _TALL else "wide" if ratio > 1 / _TALL else "square"

    def _webp(self, row: int) -> bytes | None:
        """A row's picture, at most 320 pixels a side; None where there is none to be read."""
        path = self._file(row)  # followed anew: what has() knows may be older than a link
        picture = None if path is None else thumbnail(path, _SIDE_PX)
        if picture is None:
            self._broken.add(row)
        return picture

    def _file(self, row: int) -> Path | None:
        """The file of a row's picture, links followed; None where it has none inside the folder."""
        path = self._items.image_path[row] if 0 < row <= len(self._items) else None
        if path is None:
            return None
        try:
            if self._moved_to is not None and path.is_relative_to(self._given):
                path = self._moved_to / path.relative_to(self._given)
            end = os.path.realpath(path)
            inside = os.path.commonpath([self._root, end]) == self._root
            return Path(end) if inside and os.path.isfile(end) else None
        except (OSError, ValueError):  # ValueError: a null character
            return None


def _sides(picture: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(picture)) as image:
        return image.size
