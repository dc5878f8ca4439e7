"""MicroLens-100K: pairs, titles, topics and covers to a catalogue of short videos and a log.

``MicroLens-100k_pairs.csv`` has a header, ``user,item,timestamp`` (milliseconds);
``MicroLens-100k_title_en.csv`` and ``tags_to_summary.csv`` have none: a video and its title or
topic, where a title may hold commas without quotes. Covers are ``ID.jpg``, in
``MicroLens-100k_covers.zip`` or in a folder of that name.
"""

import csv
from pathlib import Path, PurePosixPath

import polars as pl

from mmkd.errors import DataError
from mmkd.published.archives import unpack
from mmkd.published.tables import Prepared, lines, located, numbers

_PAIRS, _TITLES = "MicroLens-100k_pairs.csv", "MicroLens-100k_title_en.csv"
_TOPICS, _COVERS = "tags_to_summary.csv", "MicroLens-100k_covers"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MOST_COVERS = 100_000
_MOST_BYTES = 60 * 10**9


def microlens(raw: Path, pictures: Path | None) -> Prepared:
    """MicroLens-100K.

    Args:
        raw: Holds the files, and the archive or the folder of covers where there is one.
        pictures: Where covers go; None wants none.

    Raises:
        DataError: A file is missing, or not of this form; or the archive is unsafe.
    """
    rows = csv.reader(line.decode("utf-8-sig") for line in lines(raw, _PAIRS))
    header = next(rows, [])
    if header != ["user", "item", "timestamp"]:
        raise DataError(f"{_PAIRS}: its header is {header}, wanted user, item, timestamp")
    pairs = [row for row in rows if row]
    if wrong := next((place for place, row in enumerate(pairs, 2) if len(row) != 3), None):
        raise DataError(f"{_PAIRS}: line {wrong} has other than 3 cells; get it again")
    events = pl.DataFrame(pairs, schema=["user_id", "item_id", "timestamp"], orient="row")
    events = numbers(events, _PAIRS, timestamp=pl.Int64)
    titles = _named(raw, _TITLES)
    topics = _named(raw, _TOPICS) if located(raw, _TOPICS) else {}
    ids = [*dict.fromkeys([*titles, *events["item_id"]])]
    covers = _covers(raw, pictures, {*ids}) if pictures is not None else {}
    items = pl.DataFrame(
        {
            "item_id": ids,
            "title": [titles.get(one) for one in ids],
            "topic": [topics.get(one) for one in ids],
            "picture": [covers.get(one) for one in ids],
        },
        schema=dict.fromkeys(("item_id", "title", "topic", "picture"), pl.String),
    )
    columns = {
        "id": "item_id",
        "title": "title",
        "text": "{title}. {topic}" if topics else "{title}",
        "image": "picture" if covers else None,
        "attributes": "topic" if topics else None,
        "user": "user_id",
        "item": "item_id",
        "timestamp": "timestamp",
    }
    notes = []
    if pictures is not None and len(covers) < len(ids):
        notes.append(f"{len(ids) - len(covers):,} of {len(ids):,} videos have no cover")
    if untitled := sum(one not in titles for one in ids):
        notes.append(f"{untitled:,} of {len(ids):,} videos have no title")
    return Prepared(items, events, columns, notes)


def _named(raw: Path, name: str) -> dict[str, str]:
    """A file without a header: a video's id, and a text that may hold commas."""
    found = {}
    for place, row in enumerate(csv.reader(line.decode("utf-8-sig") for line in lines(raw, name))):
        if not row or (place == 0 and not row[0].strip().isdecimal()):
            continue
        if len(row) < 2:
            raise DataError(f"{name}: line {place + 1} has no comma, wanted a video and a text")
        found[row[0].strip()] = ",".join(row[1:]).strip()
    return found


def _covers(raw: Path, pictures: Path, ids: set[str]) -> dict[str, str]:
    """Covers brought into ``pictures``: id to file name."""

    def wanted(path: PurePosixPath) -> str | None:
        known = path.stem in ids and path.suffix.lower() in _SUFFIXES
        return path.name if known and not path.name.startswith(".") else None

    if (archive := located(raw, f"{_COVERS}.zip")) is not None:
        unpack(archive, pictures, wanted, most_bytes=_MOST_BYTES, most_files=_MOST_COVERS)
    elif (folder := raw / _COVERS).is_dir():
        pictures.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            name = wanted(PurePosixPath(path.name))
            if name and path.is_file() and not path.is_symlink():
                (pictures / name).unlink(missing_ok=True)
                (pictures / name).write_bytes(path.read_bytes())
    if not pictures.is_dir():
        return {}
    return {path.stem: path.name for path in pictures.iterdir() if wanted(PurePosixPath(path.name))}
