"""Guessed columns: by usual names, with the reason said, and never where two are as likely."""

import doctest
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mmkd.data.readers import guess_events, guess_items, guessing, table_of
from mmkd.errors import DataError

KAGGLE_SHOP = {
    "sku": ["A1", "B7", "C3"],
    "name": ["Teapot", "Cup", "Tray"],
    "description": ["red", None, "oak"],
    "picture": ["a.png", None, "c.png"],
    "categories": ["tea|red", "tea", "wood|tea"],
    "brand": ["x", "y", "x"],
}


def items(columns: dict[str, Any], root: Path = Path("/nowhere"), **given: Any) -> dict[str, Any]:
    return guess_items(table_of(pl.DataFrame(columns), root=root, name="items"), given, root=root)[
        0
    ]


def events(*names: str, id: str = "item_id", **given: Any) -> dict[str, Any]:
    frame = pl.DataFrame({name: ["1"] for name in names})
    return guess_events(table_of(frame, root=Path(), name="events"), given, id=id)[0]


def reasons(columns: dict[str, Any], root: Path = Path("/nowhere")) -> dict[str, str]:
    table = table_of(pl.DataFrame(columns), root=root, name="items")
    return {guess.setting: guess.why for guess in guess_items(table, {}, root=root)[1]}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("userId", "movieId", "rating", "timestamp"), ("userId", "movieId", "timestamp")),
        (
            ("reviewerID", "asin", "overall", "unixReviewTime", "reviewTime"),
            ("reviewerID", "asin", "unixReviewTime"),
        ),
        (("t_dat", "customer_id", "article_id", "price"), ("customer_id", "article_id", "t_dat")),
        (("id", "user", "product", "date"), ("user", "product", "date")),
        (("session_id", "item_id"), ("session_id", "item_id", None)),
    ],
)
def test_the_logs_that_people_have(names: tuple[str, ...], wanted: tuple[Any, ...]) -> None:
    found = events(*names)
    assert (found["user"], found["item"], found["timestamp"]) == wanted


def test_the_log_calls_items_as_the_catalogue_does() -> None:
    assert events("user_id", "item_id", "sku", "time", id="sku")["item"] == "sku"
    assert events("user_id", "id", "item_id", "time", id="id")["item"] == "item_id"


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "c.png").write_bytes(b"")
    assert items(KAGGLE_SHOP, tmp_path) == {
        "id": "sku",
        "title": "name",
        "text": "{name}. {description}",
        "image": "picture",
        "image_root": "pictures",
        "attributes": "categories",
        "attribute_separator": "|",
    }
    why = reasons(KAGGLE_SHOP, tmp_path)
    assert "brand" in why["attributes"] and "its files are there" in why["image"]


def test_what_is_named_is_not_guessed_and_none_is_none() -> None:
    found = items(KAGGLE_SHOP, id="name", text=None, attributes="brand", title="sku")
    assert (found["id"], found["text"], found["title"]) == ("name", None, "sku")
    assert found["attributes"] == "brand"


def test_two_likely_columns_are_an_error_that_lists_them() -> None:
    with pytest.raises(DataError, match=r"'customer_id', 'visitor_id' may all be users.*user='cus"):
        events("visitor_id", "customer_id", "item_id")
    with pytest.raises(DataError, match=r"items \(frame\): columns 'asin', 'sku' may all be"):
        items({"asin": ["a", "b"], "sku": ["c", "d"]})
    # of two, the one that tells the items apart
    assert items({"asin": ["a", "a"], "sku": ["c", "d"]})["id"] == "sku"


def test_no_likely_column_is_an_error_that_lists_what_is_there() -> None:
    with pytest.raises(DataError, match=r"no column has a usual name.*it has 'foo', 'bar'.*id='fo"):
        items({"foo": ["a"], "bar": ["b"]})
    with pytest.raises(DataError, match=r"no column has a usual name of users"):
        events("who", "item_id")


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["a|b", "c", "a"], "|"),
        (["Home; Garden", "Toys"], ";"),
        (["tea, red", "tea"], ","),
        (["a173 a1", "a9"], " "),
        (["Home Garden", "Toys"], "|"),
        ([["a,b"], ["c"]], "|"),
    ],
)
def test_what_parts_the_labels(cells: list[Any], separator: str) -> None:
    found = items({"item_id": list("ab" + "c" * (len(cells) - 2)), "tags": cells}, id="item_id")
    assert found["attribute_separator"] == separator


def test_pictures_that_are_not_there_are_not_used(tmp_path: Path) -> None:
    lost = {"item_id": ["a"], "image": ["x.png"], "imUrl": ["https://example.org/x.png"]}
    found, why = items(lost, tmp_path), reasons(lost, tmp_path)
    assert found["image"] is None and found["image_root"] == "."
    assert "no picture is found" in why["image"] and "web addresses" in why["image"]


def test_a_description_without_a_word_and_a_name_in_braces_are_no_text() -> None:
    assert items({"id": ["1"], "title": ["Cup"], "plot": [None]})["text"] == "{title}"
    assert items({"id": ["1"], "price": [3]})["text"] is None


def test_the_examples_run() -> None:
    assert doctest.testmod(guessing).failed == 0
