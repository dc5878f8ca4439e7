"""MovieLens 1M and 100K: what GroupLens publishes to a catalogue of films and a log of ratings.

1M: ``movies.dat`` and ``ratings.dat``, cells parted by ``::``, Latin-1. 100K: ``u.item``, parted by
``|``, Latin-1, a column of 0 or 1 a genre, and ``u.data``, parted by tabs. Neither has pictures.
"""

from pathlib import Path

import polars as pl

from mmkd.errors import DataError
from mmkd.published.tables import Prepared, content, numbers, parsed

_COLUMNS = {
    "id": "item_id",
    "title": "title",
    "text": "{title}. {genres}",
    "image": None,
    "attributes": "genres",
    "attribute_separator": "|",
    "user": "user_id",
    "item": "item_id",
    "timestamp": "timestamp",
}
_RATINGS = ["user_id", "item_id", "rating", "timestamp"]
_GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()


def million(raw: Path) -> Prepared:
    """MovieLens 1M.

    Args:
        raw: Holds ``ml-1m.zip``, or ``movies.dat`` and ``ratings.dat``.

    Raises:
        DataError: A file is missing, or not of this form.
    """
    films = []
    text = content(raw, "ml-1m.zip", "ml-1m/movies.dat").decode("latin-1")
    for place, line in enumerate(text.split("\n"), start=1):  # a title may hold odd line ends
        id_, _, rest = line.rstrip("\r").partition("::")
        if not line:
            continue
        title, parting, genres = rest.rpartition("::")
        if not (id_.isdecimal() and parting):
            raise _other("movies.dat", place, "MovieID::Title::Genres")
        films.append((id_, title, genres))
    items = pl.DataFrame(films, schema=["item_id", "title", "genres"], orient="row")
    text_ = content(raw, "ml-1m.zip", "ml-1m/ratings.dat")
    return _prepared(items, text_, "ratings.dat", b"::")


def hundred_thousand(raw: Path) -> Prepared:
    """MovieLens 100K.

    Args:
        raw: Holds ``ml-100k.zip``, or ``u.item`` and ``u.data``.

    Raises:
        DataError: A file is missing, or not of this form.
    """
    films = []
    text = content(raw, "ml-100k.zip", "ml-100k/u.item").decode("latin-1")
    for place, line in enumerate(text.split("\n"), start=1):
        cells = line.rstrip("\r").split("|")
        if cells == [""]:
            continue
        flags = cells[5:]
        if len(flags) != len(_GENRES_100K) or not {*flags} <= {"0", "1"}:
            raise _other("u.item", place, f"5 cells and {len(_GENRES_100K)} genres of 0 or 1")
        genres = [name for name, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
        films.append((cells[0], cells[1], "|".join(genres)))
    items = pl.DataFrame(films, schema=["item_id", "title", "genres"], orient="row")
    return _prepared(items, content(raw, "ml-100k.zip", "ml-100k/u.data"), "u.data", b"\t")


def _prepared(items: pl.DataFrame, ratings: bytes, what: str, separator: bytes) -> Prepared:
    events = parsed(ratings, what, names=_RATINGS, separator=separator)
    events = numbers(events, what, rating=pl.Float64, timestamp=pl.Int64)
    return Prepared(items, events, dict(_COLUMNS))


def _other(what: str, place: int, wanted: str) -> DataError:
    return DataError(
        f"{what}: line {place} is not {wanted}; it is another file than the published one, get it "
        "again"
    )
