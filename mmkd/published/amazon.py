"""Amazon Reviews 2023: a category's reviews and products to a log, a catalogue and its pictures.

``CATEGORY.jsonl.gz`` has a review a line, of which ``user_id``, ``parent_asin``, ``timestamp``
(milliseconds) and ``rating`` are read; ``meta_CATEGORY.jsonl.gz`` a product a line. Files of
hundreds of millions of reviews go line by line: what is kept of them is four columns. Pictures are
addresses, and only those of products that stay are fetched.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmkd.data.interactions import InteractionLog, k_core
from mmkd.errors import DataError
from mmkd.published.pictures import fetch_pictures
from mmkd.published.tables import Prepared, lines

HOSTS = ("m.media-amazon.com", "images-na.ssl-images-amazon.com", "images-amazon.com")
_CHUNK = 500_000  # reviews that are Python objects at once
_MOST_CHARACTERS = 2000  # of a description
_EVENTS = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "rating": pl.Float64,
}
_ITEMS = ("item_id", "title", "store", "categories", "description", "address")


def amazon(
    raw: Path,
    category: str,
    pictures: Path | None,
    *,
    core: int = 5,
    most_pictures: int | None = None,
    hosts: Sequence[str] = HOSTS,
    progress: Callable[[str, int, int], None] | None = None,
) -> Prepared:
    """A category of Amazon Reviews 2023.

    Args:
        raw: Holds both files, gzip or not.
        category: As its files are named, such as ``All_Beauty``.
        pictures: Where pictures go; None wants none.
        core: Fewest events of each user and each item that stays; 1 keeps all.
        most_pictures: No more are fetched; None fetches all.
        hosts: Whose pictures are fetched.
        progress: Told how many lines are read and pictures there.

    Raises:
        DataError: A file is missing, not of this form, or nothing is left.
    """
    meta, reviews = f"meta_{category}.jsonl.gz", f"{category}.jsonl.gz"
    events = pl.concat([*_events(raw, reviews, progress)])
    if not len(events):
        raise DataError(f"{reviews}: holds no review; get it again")
    before = len(events)
    kept = _core(events, core)
    events = events[kept]
    wanted = set(events["item_id"])
    found = [one for one in _products(raw, meta, progress) if one[0] in wanted]
    items = pl.DataFrame(found, schema=dict.fromkeys(_ITEMS, pl.String), orient="row")
    items = items.unique("item_id", keep="first", maintain_order=True)
    known = events["item_id"].is_in(items["item_id"].implode())
    events = events.filter(known)
    if not len(events):
        raise DataError(f"{meta}: has none of the products that {reviews} is about; get it again")
    notes = [f"{before:,} reviews; {len(kept):,} are left of users and products with {core} each"]
    if lost := int((~known).sum()):
        notes.append(f"{lost:,} of them dropped: their products are not in {meta}")
    names, told = _pictures(items, pictures, most_pictures, hosts, progress)
    items = items.drop("address").with_columns(
        pl.Series("picture", [names.get(one) for one in items["item_id"]], dtype=pl.String)
    )
    columns = {
        "id": "item_id",
        "title": "title",
        "text": "{title}. {store}. {categories}. {description}",
        "image": "picture" if names else None,
        "attributes": "categories",
        "attribute_separator": "|",
        "user": "user_id",
        "item": "item_id",
        "timestamp": "timestamp",
    }
    return Prepared(items, events, columns, [*notes, *told])


def _pictures(
    items: pl.DataFrame,
    folder: Path | None,
    most: int | None,
    hosts: Sequence[str],
    progress: Callable[[str, int, int], None] | None,
) -> tuple[dict[str, str], list[str]]:
    """Names of the pictures that are there now, by item; and what is missing."""
    if folder is None:
        return {}, []
    pairs = items.select("item_id", "address").drop_nulls().rows()
    names, problems = fetch_pictures(dict(pairs[:most]), folder, hosts=hosts, progress=progress)
    problems["no address"] = len(items) - len(pairs)
    problems["left out (--most-pictures)"] = len(pairs) - len(pairs[:most])
    why = ", ".join(f"{count:,} {reason}" for reason, count in problems.items() if count)
    told = f"{len(names):,} of {len(items):,} products have a picture"
    return names, [f"{told}; of the others: {why}" if why else told]


def _events(
    raw: Path, name: str, progress: Callable[[str, int, int], None] | None
) -> Iterator[pl.DataFrame]:
    rows: list[tuple[Any, ...]] = []
    for place, line in enumerate(lines(raw, name), start=1):
        one = _object(line, name, place)
        try:
            rating = one.get("rating")
            row = (
                str(one["user_id"]),
                str(one["parent_asin"]),
                int(one["timestamp"]),
                None if rating is None else float(rating),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{name}: line {place}: {error}: wanted user_id, parent_asin, timestamp and "
                "rating; it is another file than the published one, get it again"
            ) from error
        rows.append(row)
        if len(rows) == _CHUNK:
            yield pl.DataFrame(rows, schema=_EVENTS, orient="row")
            rows = []
            if progress:
                progress(name, place, 0)
    yield pl.DataFrame(rows, schema=_EVENTS, orient="row")


def _core(events: pl.DataFrame, core: int) -> list[int]:
    """Rows of events of users and items with so many each."""
    user, item = (
        events[name].rank("dense").to_numpy().astype(np.int64) for name in ("user_id", "item_id")
    )
    # an event's place stands in the time's place, to be told which are left
    places = np.arange(len(events), dtype=np.float64)
    users = tuple(map(str, range(int(user.max()))))
    log = InteractionLog(user - 1, item, places, users)
    left = k_core(log, min_user_events=core, min_item_events=core)
    return [int(place) for place in left.timestamp]


def _products(
    raw: Path, name: str, progress: Callable[[str, int, int], None] | None
) -> Iterator[tuple[str | None, ...]]:
    """A product a row: id, title, store, categories, description, the main picture's address."""
    for place, line in enumerate(lines(raw, name), start=1):
        one = _object(line, name, place)
        id_ = one.get("parent_asin")
        if not isinstance(id_, str) or not id_:
            raise DataError(f"{name}: line {place} has no parent_asin; get it again")
        yield (
            id_,
            _text(one.get("title")),
            _text(one.get("store")),
            "|".join(map(str, one.get("categories") or ())) or None,
            (_text(one.get("description")) or _text(one.get("features")) or "")[:_MOST_CHARACTERS]
            or None,
            picture_address(one.get("images")),
        )
        if progress and place % _CHUNK == 0:
            progress(name, place, 0)


def picture_address(images: object) -> str | None:
    """The main picture's address: of a list of records, or of a record of lists.

    >>> from mmkd.published.amazon import picture_address
    >>> picture_address([{"variant": "PT01", "large": "b"}, {"variant": "MAIN", "large": "a"}])
    'a'
    >>> picture_address({"variant": ["MAIN"], "large": [None], "hi_res": ["c"]})
    'c'
    """
    if isinstance(images, Mapping):
        keys = [key for key, values in images.items() if isinstance(values, list)]
        count = min((len(images[key]) for key in keys), default=0)
        images = [{key: images[key][place] for key in keys} for place in range(count)]
    if not isinstance(images, list):
        return None
    records = [one for one in images if isinstance(one, Mapping)]
    records.sort(key=lambda one: one.get("variant") != "MAIN")
    sizes = ("large", "hi_res", "thumb")  # large is some 500 pixels: more than encoders read
    found = (one[size] for one in records for size in sizes if isinstance(one.get(size), str))
    return next((address for address in found if address), None)


def _text(value: object) -> str | None:
    """A text, or a list of them, in one line."""
    parts = value if isinstance(value, list) else [value]
    told = " ".join(" ".join(part.split()) for part in parts if isinstance(part, str))
    return told or None


def _object(line: bytes, name: str, place: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{name}: line {place} is not JSON ({error}); get it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{name}: line {place} is no JSON object; get it again")
    return found
