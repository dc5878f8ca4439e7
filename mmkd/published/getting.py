"""Get: a published data set's name to ``items.csv``, ``events.parquet``, pictures and a recipe.

Nothing is downloaded before its terms were accepted, and nothing prepared twice. What was
downloaded lies in ``raw``, and may go afterwards.
"""

import os
from collections.abc import Callable
from pathlib import Path

from mmkd import __version__
from mmkd.column_files import write_parquet
from mmkd.config.start import recipe_text
from mmkd.data.dataset import Dataset
from mmkd.errors import DataError, outside
from mmkd.files import file_digest, replacing, write_json, write_text
from mmkd.published.amazon import HOSTS, amazon
from mmkd.published.download import Progress, Unreachable, download, size_of
from mmkd.published.known import Published, RemoteFile, find
from mmkd.published.microlens import microlens
from mmkd.published.movielens import hundred_thousand, million
from mmkd.published.tables import Prepared, located

ITEMS, EVENTS, PICTURES, SOURCE = "items.csv", "events.parquet", "pictures", "source.json"
Accept = Callable[[Published, "dict[str, int | None]"], bool]
"""Asked, of a data set and its files' sizes in bytes, whether its terms are accepted."""


def get(
    name: str,
    out: Path | None = None,
    *,
    source: Path | None = None,
    accept: Accept,
    pictures: bool = True,
    most_pictures: int | None = None,
    core: int = 5,
    preset: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Dataset, Path, list[str]]:
    """Download a data set, or take its files from a folder, and prepare it to be trained on.

    Args:
        name: Of ``names()``.
        out: Where it goes; None is ``data/NAME``.
        source: A folder with the files as they are published; nothing is downloaded then.
        accept: Asked once, before anything is downloaded or prepared.
        pictures: Whether pictures are wanted, where there are some.
        most_pictures: No more are fetched from the web; None fetches all.
        core: Of Amazon, the fewest events of each user and product that stays.
        preset: As for ``mmkd.config.start.start``.
        force: Prepare again what is prepared already.
        progress: Told how far a download, or the reading of a large file, is.

    Returns:
        The data, the recipe's file, and a line each on what is left out or missing.

    Raises:
        DataError: There is no such data set, its terms were not accepted, a file can't be had or is
            not of its form, or the folder holds it already.
    """
    chosen = find(name)
    folder = out or Path("data") / name
    recipe = folder / f"{name}.yaml"
    if (folder / ITEMS).exists() and not force:
        raise DataError(
            f"{folder}: holds {name} already; train it (mmkd train {recipe}), give --force to "
            "prepare it again, or another place with --out"
        )
    wanted = [file for file in chosen.files if pictures or not file.name.endswith("_covers.zip")]
    raw = source or folder / "raw"
    missing = [file for file in wanted if not _there(raw, file)]
    if source is not None and (needed := [file for file in missing if file.needed]):
        raise DataError(f"{source}: {_by_hand(chosen, needed)}")
    to_come = [] if source is not None else missing
    sizes = {file.name: _size(chosen, file, to_come) for file in to_come}
    if not accept(chosen, sizes):
        raise DataError(
            f"{name}: its terms were not accepted ({chosen.terms}; {chosen.page}); read them and "
            "give --accept-licence"
        )
    for file in to_come:
        try:
            download(file, raw, progress=progress)
        except Unreachable as error:
            raise DataError(f"{error}\n{_by_hand(chosen, to_come)}") from error
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / PICTURES if pictures and chosen.pictures else None
    prepared = _prepared(
        chosen, raw, kept, core=core, most_pictures=most_pictures, progress=progress
    )
    data = _written(chosen, prepared, folder, recipe, preset=preset)
    digests = {file.name: file_digest(raw / file.name) for file in to_come}
    about = {"page": chosen.page, "terms": chosen.terms, "cite": chosen.cite}
    with outside(DataError, folder, "can't be written", remedy="give another place with --out"):
        write_json(
            folder / SOURCE,
            {"mmkd": __version__, "name": name, **about, "sha256": digests},
        )
    return data, recipe, prepared.notes


def _prepared(
    chosen: Published,
    raw: Path,
    pictures: Path | None,
    *,
    core: int,
    most_pictures: int | None,
    progress: Progress | None,
) -> Prepared:
    if chosen.kind == "ml-1m":
        return million(raw)
    if chosen.kind == "ml-100k":
        return hundred_thousand(raw)
    if chosen.kind == "microlens":
        return microlens(raw, pictures)
    return amazon(
        raw,
        chosen.files[0].name.removesuffix(".jsonl.gz"),
        pictures,
        core=core,
        most_pictures=most_pictures,
        hosts=HOSTS,
        progress=progress,
    )


def _written(
    chosen: Published, prepared: Prepared, folder: Path, recipe: Path, *, preset: str | None
) -> Dataset:
    """The tables, and a recipe that trains on them; no catalogue stays that lacks its recipe."""
    items = folder / ITEMS
    columns = {"image_root": PICTURES if prepared.columns.get("image") else "."}
    with outside(DataError, folder, "can't be written", remedy="give another place with --out"):
        items.unlink(missing_ok=True)
        write_parquet(folder / EVENTS, prepared.events)
        with replacing(items) as temporary:
            prepared.items.write_csv(temporary)
        try:
            data = Dataset.load(
                folder,
                items=ITEMS,
                events=EVENTS,
                unknown_items="drop",
                **(columns | prepared.columns),
            )
            root = str(folder) if folder.is_absolute() else os.path.relpath(folder)
            text = recipe_text(data, name=chosen.name, root=root, preset=preset)
            about = [f"{chosen.title}, by mmkd data get: {chosen.page}", f"Terms: {chosen.terms}."]
            head = "".join(f"# {line}\n" for line in [*about, f"Cite: {chosen.cite}."])
            write_text(recipe, head + text.partition("\n")[2])
        except BaseException:
            items.unlink(missing_ok=True)
            raise
    return data


def _there(raw: Path, file: RemoteFile) -> bool:
    """Whether a folder has a file, or what is in it."""
    inside = {"ml-1m.zip": ("movies.dat", "ratings.dat"), "ml-100k.zip": ("u.item", "u.data")}
    names = inside.get(file.name, (file.name.removesuffix(".gz"),))
    unpacked = (raw / file.name.removesuffix(".zip")).is_dir()
    if located(raw, file.name) or all(located(raw, name) for name in names):
        return True
    return file.name.endswith("_covers.zip") and unpacked


def _size(chosen: Published, file: RemoteFile, all_files: "list[RemoteFile]") -> int | None:
    try:
        return size_of(file)
    except Unreachable as error:
        raise DataError(f"{error}\n{_by_hand(chosen, all_files)}") from error


def _by_hand(chosen: Published, files: "list[RemoteFile]") -> str:
    """What to do without a network."""
    told = "\n".join(f"  {file.name} from {file.urls[0]}" for file in files)
    return (
        f"{chosen.name}: get by hand, where there is a network,\n{told}\nput it into one folder, "
        f"and give that: mmkd data get {chosen.name} --from FOLDER"
    )
