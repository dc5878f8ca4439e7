"""Inspection: all problems of two tables at once, and the facts against counts by hand."""

import doctest
from pathlib import Path
from typing import Any

import pytest

from mmkd.data import inspection
from mmkd.data.inspection import Inspection, inspect_data

ITEMS = "item_id,title,picture\na,Cup,a.png\nb,Cup,lost.png\nc,,\nd,Jug,d.png\ne,Pot,\n"
LOG = "user_id,item_id,timestamp\n" + "".join(
    f"{user},{item},{second}\n"
    for user, item, second in [
        ("u", "a", 1709251200),
        ("u", "b", 1709251200),
        ("u", "c", 1709251260),
        ("u", "zz", 1709251300),
        ("v", "a", 1709251201),
        ("v", "d", 1709251202),
    ]
)


def inspect(
    folder: Path, items: str = ITEMS, log: str = LOG, split: Any = "leave_one_out", **settings: Any
) -> Inspection:
    (folder / "items.csv").write_text(items)
    (folder / "log.csv").write_text(log)
    of_items = {"path": "items.csv", "title": "title", "text": "{title}"}
    of_log = {"path": "log.csv", "unknown_items": "drop"}
    for name, value in settings.items():
        section, _, option = name.partition("__")
        (of_items if section == "items" else of_log)[option] = value
    return inspect_data(folder, items=of_items, interactions=of_log, split=split)


def problems(*arguments: Any, **settings: Any) -> list[tuple[str, str]]:
    return list(inspect(*arguments, **settings).problems)


def test_the_facts_are_those_that_a_person_counts(tmp_path: Path) -> None:
    for name in ("a.png", "d.png"):
        (tmp_path / name).touch()
    found = inspect(tmp_path, items__image="picture")
    assert not found.problems
    assert found.data is not None and found.data.split.train_end.tolist() == [1, 2]
    assert found.facts == {
        "users": 2,
        "items": 5,
        "events": 5,
        "items_without_events": 1,
        "dropped": {
            "unknown_items": 1,
            "low_ratings": 0,
            "duplicates": 0,
            "k_core": 0,
            "users": 0,
        },
        "tied_events": 2,
        "train_events": 3,
        "valid_cases": 1,
        "test_cases": 1,
        "valid_cases_cold": 1,
        "test_cases_cold": 1,
        "texts": 4,
        "texts_shared": 2,
        "pictures": 3,
        "pictures_missing": 1,
        "first_event": {
            "user": "u",
            "item": "a",
            "title": "Cup",
            "timestamp": "2024-03-01 00:00:00",
        },
        "from": "2024-03-01 00:00:00",
        "until": "2024-03-01 00:01:00",
    }
    told = "\n".join(found.notes)
    for line in (
        "1 of 6 events dropped: they are of 1 item that the catalogue lacks ('zz')",
        "2 of 5 events (40%) tie in time",
        "1 of 5 items have no event",
        "1 of 5 items have no text",
        "2 of 5 items share another's text",
        "2 of 5 items name no picture",
        "1 of 3 pictures are not there",
    ):
        assert line in told


def test_the_mistakes_of_both_tables_are_told_together(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        items__id="itm_id",
        items__text="{title}. {plot}",
        interactions__user="customer",
        interactions__timestamp="when",
    )
    assert [section for section, _ in found] == ["items", "items", "interactions", "interactions"]
    told = "\n".join(line for _, line in found)
    assert "no column 'itm_id' (id)" in told and "did you mean 'item_id'" in told
    assert "no column 'plot' (text)" in told
    assert "user: user_id looks right" in told and "timestamp: timestamp looks right" in told


def test_the_mistakes_of_the_cells_are_told_together(tmp_path: Path) -> None:
    log = "user_id,item_id,timestamp,rating\n,a,1,5\nu,b,soon,x\n"
    found = problems(tmp_path, log=log, interactions__rating="rating")
    told = "\n".join(line for _, line in found)
    assert [section for section, _ in found] == ["interactions"] * 3
    assert "(user) is empty in row 1" in told and "no usable number in row 2: 'x'" in told
    assert "no usable timestamp in row 2: 'soon'" in told


def test_missing_files_are_both_told(tmp_path: Path) -> None:
    found = problems(tmp_path, items__path="item.csv", interactions__path="logs.csv")
    assert [section for section, _ in found] == ["items", "interactions"]
    assert all("no such file; did you mean" in line for _, line in found)


@pytest.mark.parametrize(
    ("settings", "section", "message"),
    [
        ({"interactions__unknown_items": "error"}, "interactions", "1 of 6 events are of 1 items"),
        ({"interactions__min_user_events": 9}, "interactions", "none of 5 events is left"),
        ({"split": {"kind": "leave_one_out", "min_train_events": 5}}, "split", "no user has the 7"),
        ({"split": {"kind": "temporal", "valid_from": "2020-01-01"}}, "split", "no event lies bef"),
        ({"items__image": "picture", "items__image_root": "x"}, "items", "none of the 3 pictures"),
        ({"items__id": "title"}, "items", "is empty in row 3"),
    ],
)
def test_each_problem_is_of_its_section(
    tmp_path: Path, settings: dict[str, Any], section: str, message: str
) -> None:
    [(found, told)] = problems(tmp_path, **settings)
    assert found == section and message in told


def test_units_and_constant_times_are_noticed(tmp_path: Path) -> None:
    in_ms = LOG.replace(",17092512", ",17092512000").replace(",17092513", ",17092513000")
    milliseconds = LOG.replace("\n", "000\n").replace("timestamp000", "timestamp")
    assert "look like ms; with timestamp_unit: ms" in "\n".join(inspect(tmp_path, log=in_ms).notes)
    found = inspect(tmp_path, log=milliseconds, interactions__timestamp_unit="ms")
    assert found.facts["from"] == "2024-03-01 00:00:00"
    assert not any("look like" in line for line in found.notes)
    still = "user_id,item_id,timestamp\nu,a,1\nu,b,1\nu,c,1\n"
    assert "all timestamps are 1: they order nothing" in inspect(tmp_path, log=still).notes
    by_row = inspect(tmp_path, log=still, interactions__timestamp=None)
    assert "timestamp is null: the order of the rows" in by_row.notes[-1]


def test_the_example_runs() -> None:
    options = doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(inspection, optionflags=options).failed == 0
