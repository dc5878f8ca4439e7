"""Catalogues: reading, saving, and every way a catalogue can be malformed."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmkd import ItemTable, MmkdError, load_items
from mmkd.data import AttributeVocabulary
from mmkd.data.readers import check_load_items
from mmkd.errors import DataError

FILMS = """\
item_id,title,plot,genres,image
007,Goldfinger,"Gold, guns",Action|Spy,posters/007.jpg
a b,,,,
naïve 映画,Amélie,  ,Comedy| |Comedy,posters/absent.jpg
"""


def write(folder: Path, text: str = FILMS, name: str = "items.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def films(folder: Path) -> ItemTable:
    return load_items(
        path="items.csv",
        root=write(folder),
        title="title",
        text="{title}. {plot}",
        image="image",
        attributes="genres",
    )


def test_a_catalogue_is_read_row_by_row_after_the_padding_row(tmp_path: Path) -> None:
    items = films(tmp_path)
    assert len(items) == 3
    assert items.ids == ("", "007", "a b", "naïve 映画")
    assert items.titles == ("", "Goldfinger", "a b", "Amélie")  # falls back to the id
    assert items.text == (None, "Goldfinger. Gold, guns", None, "Amélie")
    assert items.attributes == ((), ("Action", "Spy"), (), ("Comedy",))
    posters = tmp_path / "posters"
    # The files need not exist: that is for the embedding cache to find out.
    assert items.image_path == (None, posters / "007.jpg", None, posters / "absent.jpg")


def test_ids_find_their_rows_and_unknown_ones_their_neighbours(tmp_path: Path) -> None:
    items = films(tmp_path)
    assert [items.row(item_id) for item_id in items.ids[1:]] == [1, 2, 3]
    with pytest.raises(DataError, match=r"'naive 映画' is not among the 3.*'naïve 映画'"):
        items.row("naive 映画")
    with pytest.raises(DataError, match="'' is not among"):
        items.row("")


def test_many_ids_become_rows_at_once_and_unknown_ones_are_named(tmp_path: Path) -> None:
    items = films(tmp_path)
    assert items.rows(["a b", "007", "a b"]).tolist() == [2, 1, 2]
    assert items.rows(pl.Series(["007"])).tolist() == [1]
    assert items.rows([]).tolist() == []
    assert items.find(["a b", "", "8", "007"]).tolist() == [2, 0, 0, 1]
    message = r"items '8', '07' are not among the 3 items of the catalogue"
    with pytest.raises(DataError, match=message):
        items.rows(["8", "007", "07", "8"])


@pytest.mark.parametrize("many", [1, 5_000])
def test_ids_are_found_in_a_large_catalogue_one_by_one_and_together(many: int) -> None:
    ids = [f"i{number * 7919 % 10_007}" for number in range(10_000)]
    none = [None] * 10_001
    items = ItemTable(["", *ids], ["", *ids], none, none, [()] * 10_001)
    asked = ids[5_000 : 5_000 + many]
    assert items.rows(asked).tolist() == list(range(5_001, 5_001 + many))
    assert items.find(["zzz", "", "i", ids[-1]]).tolist() == [0, 0, 0, 10_000]
    with pytest.raises(DataError, match=r"'i7919x' is not among the 10000 .*did you mean 'i7919'"):
        items.row("i7919x")


def test_columns_are_sequences_of_python_values(tmp_path: Path) -> None:
    items = films(tmp_path)
    assert items.ids[-1] == "naïve 映画" and items.ids[np.int64(1)] == "007"
    assert items.titles[1:3] == ["Goldfinger", "a b"]
    assert items.titles != ("", "Goldfinger", "a b") and items.text != items.titles
    assert list(reversed(items.attributes)) == [("Comedy",), (), ("Action", "Spy"), ()]
    assert "a b" in items.ids and items.ids.index("a b") == 2
    with pytest.raises(IndexError):
        items.ids[4]
    assert pl.DataFrame({"id": items.ids[1:]})["id"].to_list() == ["007", "a b", "naïve 映画"]
    assert repr(items) == "ItemTable of 3 items: <3 values: '007', 'a b', 'naïve 映画'>"
    other = ItemTable(items.ids, items.titles, items.text, items.image_path, [["Spy"]] * 4)
    assert other != items and other.text == items.text


def test_text_that_utf_8_cannot_hold_is_kept_but_not_saved(tmp_path: Path) -> None:
    paths = [None, Path("caf\udce9.gif")]
    items = ItemTable(["", "a"], ["", "a"], [None, "half \ud83d"], paths, [(), ()])
    assert items.text == (None, "half \ud83d")
    assert items.image_path == paths
    with pytest.raises(DataError, match=r"items\.parquet: text of an item is no UTF-8 text"):
        items.save(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="id of an item is not UTF-8 text"):
        ItemTable(["", "\ud83d"], ["", "a"], [None, None], [None, None], [(), ()])


def test_labels_are_numbered_in_their_order(tmp_path: Path) -> None:
    vocabulary = AttributeVocabulary.of(films(tmp_path))
    assert vocabulary.names == ("Action", "Comedy", "Spy")
    assert vocabulary.labels.tolist() == [[0, 0], [1, 3], [0, 0], [2, 0], [0, 0]]


def test_options_are_judged_without_a_file() -> None:
    assert check_load_items(id="x", title=None, text="{title}", path="items.csv.gz") == []
    assert check_load_items(text="title", path="items.dat", format="auto", separator=None) == [
        "path: cannot tell the format from the name; set format to one of csv, tsv, parquet, "
        "jsonl, recbole",
        "text: text template 'title' has no placeholder, so all items would share one text; to use "
        "a column write {title}",
    ]
    assert check_load_items(format="parquet", separator=";") == [
        "separator: a parquet file has no separator; leave it unset"
    ]


def test_without_optional_columns_only_ids_are_read(tmp_path: Path) -> None:
    items = load_items(path="items.csv", root=write(tmp_path))
    assert items.titles == items.ids
    assert set(items.text) == {None}
    assert set(items.image_path) == {None}
    assert set(items.attributes) == {()}


def test_saving_and_loading_gives_the_table_back(tmp_path: Path) -> None:
    items = films(tmp_path)
    items.save(tmp_path / "run" / "items.parquet")
    assert ItemTable.load(tmp_path / "run" / "items.parquet") == items
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["items.parquet"]


def test_a_failed_save_leaves_the_old_table_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = films(tmp_path)
    items.save(tmp_path / "run" / "items.parquet")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MmkdError, match="no space"):
        items.save(tmp_path / "run" / "items.parquet")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["items.parquet"]
    assert ItemTable.load(tmp_path / "run" / "items.parquet") == items


def test_loading_what_is_no_item_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; write it with ItemTable\.save"):
        ItemTable.load(tmp_path / "items.parquet")
    write(tmp_path)
    with pytest.raises(DataError, match="not a readable item table"):
        ItemTable.load(tmp_path / "items.csv")
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="are not an item table's"):
        ItemTable.load(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("ids", "titles", "message"),
    [
        (("", "a"), ("",), "differ in length"),
        (("a",), ("a",), "row 0 .* is padding"),
        (("", "a", "b", "a"), ("", "a", "b", "a"), "repeated: 'a'; remove"),
    ],
)
def test_a_table_refuses_fields_that_do_not_fit(
    ids: tuple[str, ...], titles: tuple[str, ...], message: str
) -> None:
    none = (None,) * len(ids)
    with pytest.raises(DataError, match=message):
        ItemTable(ids=ids, titles=titles, text=none, image_path=none, attributes=((),) * len(ids))


def test_repeated_ids_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "item_id\na\nb\na\nc\nb\n")
    with pytest.raises(DataError, match=r"items\.csv: 2 ids .*more than once: 'a', 'b'; keep one"):
        load_items(path="items.csv", root=tmp_path)


def test_missing_ids_are_refused_with_their_rows(tmp_path: Path) -> None:
    write(tmp_path, "item_id,title\na,x\n,y\nc,z\n  ,w\n")
    with pytest.raises(DataError, match=r"'item_id' \(id\) is empty in rows 2, 4; give each"):
        load_items(path="items.csv", root=tmp_path)
    pl.DataFrame({"item_id": [1.0, float("nan"), None]}).write_parquet(tmp_path / "i.parquet")
    with pytest.raises(DataError, match="is empty in rows 2, 3"):
        load_items(path="i.parquet", root=tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"id": "itemid"},
        {"title": "titel"},
        {"text": "{plots}"},
        {"image": "img"},
        {"attributes": "genre"},
    ],
)
def test_a_missing_column_is_refused_with_a_suggestion(
    settings: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"items\.csv: no column .*'item_id', 'title'") as caught:
        load_items(path="items.csv", root=write(tmp_path), **settings)  # type: ignore[arg-type]
    assert "did you mean" in str(caught.value)


def picture_items(folder: Path, cell: str, image_root: str = "pictures") -> ItemTable:
    write(folder, f"item_id,image\na,{cell}\n")
    return load_items(path="items.csv", root=folder, image="image", image_root=image_root)


@pytest.mark.parametrize("cell", ["../secret.png", "x/../../secret.png", "/etc/hostname", ".."])
def test_an_image_path_that_leaves_its_folder_is_refused(cell: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"items\.csv: 1 image paths leave the folder.*relative"):
        picture_items(tmp_path, cell)


@pytest.mark.parametrize("cell", ["link.png", "folder/secret.png", "chain.png"])
def test_an_image_link_that_leaves_its_folder_is_refused(cell: str, tmp_path: Path) -> None:
    pictures, outside = tmp_path / "pictures", tmp_path / "outside"
    pictures.mkdir()
    outside.mkdir()
    (outside / "secret.png").touch()
    (pictures / "link.png").symlink_to(outside / "secret.png")
    (pictures / "chain.png").symlink_to(pictures / "link.png")
    (pictures / "folder").symlink_to(outside)
    with pytest.raises(DataError, match="image paths leave the folder"):
        picture_items(tmp_path, cell)


def test_an_image_link_is_found_beside_odd_names_and_in_a_folder_that_is_not_to_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, outside = tmp_path / "pictures", tmp_path / "outside.png"
    pictures.mkdir()
    outside.touch()
    (pictures / "a.png").touch()
    (pictures / "link.png").symlink_to(outside)
    os.symlink(outside, os.fsencode(pictures) + b"/\xff.png")

    def refused(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    for listed in (True, False):
        if not listed:
            monkeypatch.setattr(os, "scandir", refused)
        assert picture_items(tmp_path, "a.png").image_path[1] == pictures / "a.png"
        with pytest.raises(DataError, match="image paths leave the folder"):
            picture_items(tmp_path, "link.png")


def test_links_within_the_image_folder_and_a_linked_image_folder_work(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (real / "sub" / "a.png").touch()
    (real / "b.png").symlink_to(real / "sub" / "a.png")
    (tmp_path / "pictures").symlink_to(real)
    assert picture_items(tmp_path, "b.png").image_path[1] == tmp_path / "pictures" / "b.png"
    sub = picture_items(tmp_path, "pictures/sub/a.png", image_root=".")
    assert sub.image_path[1] == tmp_path / "pictures" / "sub" / "a.png"


def test_a_sibling_folder_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures-private").mkdir()
    (tmp_path / "pictures-private" / "a.png").touch()
    (tmp_path / "pictures" / "a.png").symlink_to(tmp_path / "pictures-private" / "a.png")
    with pytest.raises(DataError, match="leave the folder"):
        picture_items(tmp_path, "a.png")


def test_web_addresses_are_no_image_paths(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 image paths are web addresses: 'https://x\.org/a\.png'"
    ):
        picture_items(tmp_path, "https://x.org/a.png")


def test_image_paths_do_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "item_id,image\na,a.png\n")
    monkeypatch.chdir(tmp_path)
    items = load_items(path="items.csv", root=Path("."), image="image")
    assert items.image_path == (None, tmp_path / "a.png")


@pytest.mark.parametrize("count", [1, 63, 64, 200])
def test_few_ids_are_found_as_many_are(count: int) -> None:
    ids = ["", *(f"i{n % 7}-{n}" for n in range(300))]
    blank = [None] * len(ids)
    items = ItemTable(ids, ids, blank, blank, [[]] * len(ids))
    generator = np.random.default_rng(count)
    asked = pl.Series([None, *generator.choice([*ids, "i", "j", "i0-1000"], count - 1)])
    known = {name: row for row, name in enumerate(ids)}
    assert items.find(asked).tolist() == [known.get(name, 0) for name in asked]
