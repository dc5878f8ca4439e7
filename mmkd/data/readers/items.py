"""A catalogue file to an ItemTable."""

import os
from pathlib import Path

from mmkd.data.errors import DataError, shown
from mmkd.data.items import ItemTable, repeated
from mmkd.data.readers.columns import read_ids, read_lists, read_text
from mmkd.data.readers.tables import Format, Table, read_table
from mmkd.data.text_template import TextTemplate


def load_items(
    *,
    path: str,
    root: Path,
    id: str = "item_id",
    title: str | None = None,
    text: str | None = None,
    image: str | None = None,
    attributes: str | None = None,
    attribute_separator: str = "|",
    image_root: str = ".",
    format: Format = "auto",
    separator: str | None = None,
) -> ItemTable:
    """Reads a catalogue: one row of the file is one item, in the file's order.

    Args:
        path: The file, relative to `root`.
        root: The data folder.
        id: Column of the external ids.
        title: Column of the titles to show; without one, and where it is empty, the id is shown.
        text: Template of the encoders' text, such as ``{title}. {plot}``; a segment (a placeholder
            and the literal text before it) is dropped where its column is empty.
        image: Column of the picture files, relative to `image_root`; an empty cell is no picture.
        attributes: Column of labels such as genres.
        attribute_separator: What parts the labels; list columns and RecBole's ``_seq`` columns
            need none.
        image_root: Folder of the pictures, relative to `root`; no picture may lie outside it.
        format: The file's format; ``auto`` goes by the suffix.
        separator: Column separator of a text format, where it is not the usual one.

    Returns:
        The table. A picture file that does not exist is kept: the embedding cache records it.

    Raises:
        DataError: If the file or a column is missing or malformed, an id is missing or repeated,
            or a picture's path is a web address or leaves `image_root`.
    """
    table = read_table(path, root=root, format=format, separator=separator)
    ids = read_ids(table, id, setting="id").to_list()
    twice = repeated(ids)
    if twice:
        raise DataError(
            f"{table.source}: {len(twice)} ids of column {id!r} occur more than once: "
            f"{shown(twice)}; keep one row for each item"
        )
    none: list[str | None] = [None] * len(ids)
    titles = none if title is None else read_text(table, title, setting="title")
    texts = none if text is None else _render(table, text)
    paths = none if image is None else read_text(table, image, setting="image")
    labels = (
        [()] * len(ids)
        if attributes is None
        else read_lists(table, attributes, setting="attributes", separator=attribute_separator)
    )
    return ItemTable(
        ids=("", *ids),
        titles=("", *(name or item_id for name, item_id in zip(titles, ids, strict=True))),
        text=(None, *texts),
        image_path=(None, *_image_paths(paths, root / image_root, table.source)),
        attributes=((), *labels),
    )


def _render(table: Table, text: str) -> list[str | None]:
    template = TextTemplate.parse(text)
    columns = [read_text(table, name, setting="text") for name in template.columns]
    return [
        template.render(dict(zip(template.columns, row, strict=True)))
        for row in zip(*columns, strict=True)
    ]


def _image_paths(cells: list[str | None], folder: Path, source: str) -> list[Path | None]:
    """Picture paths under a folder, each checked to stay there, links followed."""
    addresses = [cell for cell in cells if cell and cell.startswith(("http://", "https://"))]
    if addresses:
        raise DataError(
            f"{source}: {len(addresses)} image paths are web addresses: {shown(addresses)}; fetch "
            "the pictures and give their files"
        )
    folder = folder.absolute()  # a saved table must not depend on the working folder
    top = os.path.realpath(folder)
    real_folders: dict[str, str] = {}  # one realpath for each folder, not for each picture
    outside: list[str] = []
    paths: list[Path | None] = []
    for cell in cells:
        if cell is None:
            paths.append(None)
            continue
        joined = os.path.join(folder, cell)
        parent, name = os.path.split(joined)
        if "\0" in cell or os.path.isabs(cell) or ".." in Path(cell).parts:
            outside.append(cell)
            continue
        if parent not in real_folders:
            real_folders[parent] = os.path.realpath(parent)
        real = os.path.join(real_folders[parent], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if os.path.commonpath([top, real]) != top:
            outside.append(cell)
        paths.append(Path(joined))
    if outside:
        raise DataError(
            f"{source}: {len(outside)} image paths leave the folder {folder}: {shown(outside)}; "
            "use paths relative to it, without '..' or links that point outside, or set image_root"
        )
    return paths
