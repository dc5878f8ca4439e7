"""Which column is what: a table's header and first cells to the options of the readers.

From a Table to options that a user would otherwise name, each with the reason it was taken for. A
column is known by its usual names, those of MovieLens, Amazon, RecBole, H&M and Shopify exports
among them; where two are as likely nothing is guessed, and the error lists both.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from mmkd.data.ids import ids_as_text
from mmkd.data.readers.columns import read_text
from mmkd.data.readers.tables import Table
from mmkd.errors import DataError, shown

GUESS: Final = "auto"
_SAMPLE = 200

# ranks of names, without case and underscores; of the first rank that has one, there must be one
_NAMES: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "id": (
        ("itemid", "iid"),
        (
            *("asin", "parentasin", "productid", "movieid", "articleid", "sku", "bookid", "isbn"),
            *("trackid", "songid", "gameid", "videoid", "newsid", "recipeid", "variantid"),
        ),
        ("id", "item", "product", "code"),
    ),
    "user": (
        ("userid", "uid"),
        (
            *("customerid", "reviewerid", "memberid", "visitorid", "clientid", "accountid"),
            *("buyerid", "shopperid", "playerid", "listenerid", "readerid"),
        ),
        ("user", "customer", "reviewer", "member", "visitor", "client", "buyer", "username"),
        ("sessionid", "session"),
    ),
    "timestamp": (
        ("timestamp", "unixreviewtime", "unixtime", "timestampms", "unixtimestamp"),
        ("datetime", "eventtime", "createdat", "occurredat", "purchasedat", "orderedat", "tdat"),
        ("time", "date", "ts", "reviewtime", "orderdate", "eventdate", "purchasedate", "day"),
    ),
    "rating": (("rating", "stars", "score", "overall"),),
    "title": (
        ("title", "itemtitle", "movietitle", "producttitle"),
        ("name", "itemname", "productname", "prodname", "displayname", "productdisplayname"),
    ),
    "text": tuple(
        (name,)
        for name in (
            *("description", "itemdescription", "productdescription", "detaildesc", "text"),
            *("plot", "overview", "summary", "abstract", "about", "content", "body", "details"),
        )
    ),
    "image": tuple(
        (name,)
        for name in (
            *("image", "picture", "poster", "imagepath", "picturepath", "posterpath", "imagefile"),
            *("photo", "cover", "img", "thumbnail", "images", "imageurl", "imurl", "pictureurl"),
        )
    ),
    "attributes": tuple(
        (name,)
        for name in (
            *("attributes", "categories", "genres", "category", "genre", "tags", "labels"),
            *("topics", "class", "brand"),
        )
    ),
}
# an event's own number is often called id too
_NAMES_OF_LOG_ITEM = (*_NAMES["id"][:2], ("item", "product", "movie", "article", "book", "track"))
_FOLDERS = ("", "images", "image", "pictures", "posters", "img", "photos", "covers")
_SEPARATORS = ("|", ";", ",")


@dataclass(frozen=True)
class Guess:
    """An option that nobody named.

    Attributes:
        source: The table.
        setting: The option.
        value: What it is taken to be; None for nothing.
        why: The reason.
    """

    source: str
    setting: str
    value: str | None
    why: str

    def __str__(self) -> str:
        """One line."""
        told = "none" if self.value is None else repr(self.value)
        return f"{self.source}: {self.setting} = {told} ({self.why})"


def is_usual(setting: str, name: str) -> bool:
    """Whether a column's name is a usual one; ``setting`` is user, item, timestamp, ...

    >>> from mmkd.data.readers.guessing import is_usual
    >>> is_usual("user", "reviewerID"), is_usual("item", "reviewerID")
    (True, False)
    """
    ranks = _NAMES_OF_LOG_ITEM if setting == "item" else _NAMES[setting]
    return any(_plain(name) in rank for rank in ranks)


def usual_column(setting: str, columns: Sequence[str]) -> str | None:
    """The column that a setting is likeliest to mean, or None."""
    ranks = _NAMES_OF_LOG_ITEM if setting == "item" else _NAMES.get(setting, ())
    return next(iter(_candidates(columns, ranks)), None)


def guess_items(
    table: Table, given: Mapping[str, str | None], *, root: Path
) -> tuple[dict[str, Any], list[Guess]]:
    r"""Options of ``load_items`` for a catalogue.

        >>> import polars as pl
        >>> from pathlib import Path
        >>> from mmkd.data.readers import table_of
        >>> from mmkd.data.readers.guessing import guess_items
        >>> frame = pl.DataFrame({"sku": ["A1", "B7"], "name": ["Teapot", "Cup"]})
        >>> table = table_of(frame, root=Path(), name="items")
        >>> options, guesses = guess_items(table, {}, root=Path())
        >>> options["id"], options["text"]
        ('sku', '{name}')

    Args:
        table: The catalogue.
        given: ``id``, ``title``, ``text``, ``image``, ``image_root``, ``attributes`` and
            ``attribute_separator``; ``auto``, or left out, is guessed, and None is none.
        root: The data folder, where pictures are looked for.

    Returns:
        All options but path and format, and what was guessed of them.

    Raises:
        DataError: No column, or more than one, is likely to hold the ids.
    """
    found = _Guesses(table, given)
    columns = table.frame.columns
    if found.wanted("id"):
        candidates = _candidates(columns, _NAMES["id"])
        unique = [name for name in candidates if _is_key(table.frame[name])]
        found.one("id", unique or candidates, "the items' ids")
    if found.wanted("title"):
        candidates = _candidates(columns, _NAMES["title"])
        found.first("title", candidates, "no column looks like a title, so the id is shown")
    if found.wanted("text"):
        title = found.options["title"] or next(iter(_candidates(columns, _NAMES["title"])), None)
        longer = [name for name in _all(columns, _NAMES["text"]) if name != title][:1]
        parts = [title] if title is not None else []
        parts += [name for name in longer if _has_text(table, name)]
        parts = [name for name in parts if not set(name) & set("{}[]!:.")]
        template = ". ".join(f"{{{name}}}" for name in parts) or None
        why = (
            "the title and a usual name of texts"
            if len(parts) > 1
            else "the only column with a usual name of texts"
        )
        found.take("text", template, why if parts else "no column looks like text")
    if found.wanted("image"):
        _guess_image(found, root)
    elif found.wanted("image_root"):
        folder = _folder(table, found.options["image"], root)
        found.take("image_root", folder or ".", "where the first pictures are")
    found.options.setdefault("image_root", ".")
    if found.wanted("attributes"):
        candidates = _all(columns, _NAMES["attributes"])
        found.first("attributes", candidates, "no column looks like labels")
    if found.wanted("attribute_separator"):
        _guess_separator(found)
    return found.options, found.guesses


def guess_events(
    table: Table, given: Mapping[str, str | None], *, id: str
) -> tuple[dict[str, Any], list[Guess]]:
    """Options of ``load_interactions`` for a log.

    Args:
        table: The log.
        given: ``user``, ``item`` and ``timestamp``; as for ``guess_items``.
        id: The catalogue's column of ids, which a log often calls by the same name.

    Returns:
        The three options, and what was guessed of them.

    Raises:
        DataError: No column, or more than one, is likely to hold users, items or timestamps.
    """
    found = _Guesses(table, given)
    columns = table.frame.columns
    if found.wanted("user"):
        found.one("user", _candidates(columns, _NAMES["user"]), "users' ids")
    if found.wanted("item"):
        same = [name for name in columns if _plain(name) == _plain(id) and _plain(id) != "id"]
        if same:
            found.take("item", same[0], "the catalogue's ids have this name too")
        else:
            found.one("item", _candidates(columns, _NAMES_OF_LOG_ITEM), "items' ids")
    if found.wanted("timestamp"):
        candidates = _candidates(columns, _NAMES["timestamp"])
        if candidates:
            found.one("timestamp", candidates, "times")
        else:
            found.take("timestamp", None, "no column looks like times: the file's order is taken")
    return found.options, found.guesses


class _Guesses:
    """Options of one table, given or guessed, and the reasons of those that were guessed."""

    def __init__(self, table: Table, given: Mapping[str, str | None]) -> None:
        self.table = table
        self.options: dict[str, Any] = {k: v for k, v in given.items() if v != GUESS}
        self.guesses: list[Guess] = []

    def wanted(self, setting: str) -> bool:
        return setting not in self.options

    def take(self, setting: str, value: str | None, why: str) -> None:
        self.options[setting] = value
        self.guesses.append(Guess(self.table.source, setting, value, why))

    def one(self, setting: str, candidates: Sequence[str], what: str) -> None:
        """The only candidate, or an error that lists them."""
        if len(candidates) == 1:
            self.take(setting, candidates[0], f"a usual name of {what}")
            return
        listed = ", ".join(map(repr, candidates or self.table.frame.columns))
        told = (
            f"columns {listed} may all be {what}"
            if candidates
            else f"no column has a usual name of {what}; it has {listed}"
        )
        example = candidates[0] if candidates else self.table.frame.columns[0]
        raise DataError(
            f"{self.table.source}: {told}; name the one that is meant, such as "
            f"{setting}={example!r}{self.table.hint}"
        )

    def first(self, setting: str, candidates: Sequence[str], none: str) -> None:
        """The likeliest candidate; the others are told."""
        others = f"; also there: {shown(candidates[1:])}" if len(candidates) > 1 else ""
        value = candidates[0] if candidates else None
        self.take(setting, value, f"a usual name{others}" if candidates else none)


def _guess_image(found: _Guesses, root: Path) -> None:
    reasons = []
    for name in _all(found.table.frame.columns, _NAMES["image"]):
        if found.table.frame[name].dtype != pl.String:
            reasons.append(f"{name!r} holds no paths")
        elif found.table.frame[name].drop_nulls().str.contains("^https?://").any():
            reasons.append(f"{name!r} holds web addresses; fetch the pictures to use them")
        elif (folder := _folder(found.table, name, root)) is None:
            reasons.append(f"of {name!r} no picture is found; set image_root to use it")
        else:
            found.take("image", name, "a usual name, and its files are there")
            if found.wanted("image_root"):
                found.take("image_root", folder, "where the first pictures are")
            return
    found.take("image", None, "; ".join(reasons) or "no column looks like pictures")


def _folder(table: Table, name: str | None, root: Path) -> str | None:
    """The folder below root where the first pictures are, or None."""
    if name is None or name not in table.frame.columns or table.frame[name].dtype != pl.String:
        return None
    files = table.frame[name].drop_nulls().str.strip_chars().head(_SAMPLE).to_list()
    beside = os.path.relpath(Path(table.source).parent, root) if table.is_file else ""
    folders = [*_FOLDERS, name, f"{name}s"]
    folders += [os.path.normpath(os.path.join(beside, folder)) for folder in folders]
    counts = {
        folder: sum(os.path.isfile(root / folder / file) for file in files if "\0" not in file)
        for folder in dict.fromkeys(folders)
        if not folder.startswith("..")
    }
    best = max(counts, key=lambda folder: counts[folder])
    return (best or ".") if counts[best] else None


def _guess_separator(found: _Guesses) -> None:
    name = found.options["attributes"]
    found.options["attribute_separator"] = "|"
    if name is None or name not in found.table.frame.columns:
        return
    column = found.table.frame[name]
    if isinstance(column.dtype, pl.List) or name in found.table.space_separated:
        return
    cells = [str(cell) for cell in column.drop_nulls().head(_SAMPLE) if str(cell).strip()]
    counts = {one: sum(one in cell for cell in cells) for one in _SEPARATORS}
    best = max(counts, key=lambda one: counts[one])
    if counts[best] * 10 >= len(cells) and cells:
        why = f"it parts {counts[best]} of the first {len(cells)} cells"
        found.take("attribute_separator", best, why)
    elif any(" " in cell for cell in cells) and all(
        re.search(r"\d", word) for cell in cells for word in cell.split()
    ):  # words would be the parts of one name, codes are labels
        found.take("attribute_separator", " ", "the cells are codes with spaces between")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _candidates(columns: Sequence[str], ranks: Sequence[Sequence[str]]) -> list[str]:
    """The columns of the first rank that has any, in the order of the rank."""
    for rank in ranks:
        found = [name for usual in rank for name in columns if _plain(name) == usual]
        if found:
            return found
    return []


def _all(columns: Sequence[str], ranks: Sequence[Sequence[str]]) -> list[str]:
    return [name for rank in ranks for name in _candidates(columns, [rank])]


def _is_key(column: pl.Series) -> bool:
    ids = ids_as_text(column)
    return ids is not None and not ids.has_nulls() and ids.n_unique() == len(ids)


def _has_text(table: Table, name: str) -> bool:
    try:
        return not read_text(table, name, setting="text").is_null().all()
    except DataError:
        return False
