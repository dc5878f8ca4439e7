"""Logs: reading, filtering, and every way a log can be malformed."""

import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmkd import InteractionLog, ItemTable, load_interactions, load_items
from mmkd.data.readers import check_load_interactions
from mmkd.errors import DataError

IDS = ("007", "a b", "naïve 映画", "x1", "x2")
EVENTS = """\
user_id,item_id,rating,timestamp
zoë 1,a b,5,30
01,007,1.5,20
zoë 1,naïve 映画,3,10
1,a b,4,20
01,a b,3,20
"""


def catalogue(ids: tuple[str, ...] = IDS) -> ItemTable:
    none = (None,) * (len(ids) + 1)
    return ItemTable(
        ids=("", *ids),
        titles=("", *ids),
        text=none,
        image_path=none,
        attributes=((),) * (len(ids) + 1),
    )


def load(folder: Path, text: str = EVENTS, **settings: Any) -> InteractionLog:
    (folder / "log.csv").write_text(text, encoding="utf-8")
    return load_interactions(catalogue(), path="log.csv", root=folder, **settings)


def events(log: InteractionLog) -> list[tuple[str, str, float]]:
    columns = (log.user.tolist(), log.item.tolist(), log.timestamp.tolist())
    return [(log.user_ids[u], ("", *IDS)[i], t) for u, i, t in zip(*columns, strict=True)]


def test_ids_with_spaces_unicode_and_leading_zeros_round_trip(tmp_path: Path) -> None:
    log = load(tmp_path)
    assert log.user_ids == ("zoë 1", "01", "1")  # by first appearance
    assert events(log) == [
        ("zoë 1", "a b", 30.0),
        ("01", "007", 20.0),
        ("zoë 1", "naïve 映画", 10.0),
        ("1", "a b", 20.0),
        ("01", "a b", 20.0),
    ]


def test_whole_number_ids_match_their_decimal_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [5, 5], "item_id": [12, 7], "timestamp": [2, 1]})
    frame.write_parquet(tmp_path / "log.parquet")
    log = load_interactions(catalogue(("7", "12")), path="log.parquet", root=tmp_path)
    assert log.user_ids == ("5",)
    assert log.item.tolist() == [2, 1]


def test_without_a_timestamp_column_events_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, timestamp=None).timestamp.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("1", " 2.5", "-1e3"), (1.0, 2.5, -1000.0)),
        (
            ("1970-01-02", "1970-01-01T00:00:01.5Z", "1970-01-01 02:00:00+02:00"),
            (86400.0, 1.5, 0.0),
        ),
    ],
)
def test_text_timestamps_are_numbers_or_iso_dates_in_utc(
    cells: tuple[str, ...], expected: tuple[float, ...], tmp_path: Path
) -> None:
    rows = "".join(f"a,007,{cell}\n" for cell in cells)
    log = load(tmp_path, "user_id,item_id,timestamp\n" + rows)
    assert tuple(log.timestamp.tolist()) == expected


def test_dates_without_a_zone_do_not_depend_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "user_id,item_id,timestamp\na,007,1970-01-02\n"
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert load(tmp_path, text).timestamp.tolist() == [86400.0]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("dtype", [pl.Date(), pl.Datetime("ms"), pl.Datetime("ns", "UTC")])
def test_date_columns_become_seconds(dtype: pl.DataType, tmp_path: Path) -> None:
    days = pl.Series([0, 366], dtype=pl.Int32).cast(pl.Date)
    stamps = days if dtype == pl.Date else days.cast(pl.Datetime("us")).cast(dtype, strict=False)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        stamps = days.cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
    frame = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["x1", "x2"], "timestamp": stamps})
    frame.write_parquet(tmp_path / "log.parquet")
    log = load_interactions(catalogue(), path="log.parquet", root=tmp_path)
    assert log.timestamp.tolist() == [0.0, 366 * 86400.0]


def test_filters_drop_low_ratings_then_duplicates_then_users_of_few_events(tmp_path: Path) -> None:
    text = (
        "user_id,item_id,rating,timestamp\n"
        "a,x1,1,9\n"  # too low: were it filtered after, it would be the pair's last
        "a,x1,5,1\na,x1,5,2\na,x2,5,3\n"
        "b,x1,5,1\nb,x1,5,2\n"  # one event once its duplicate is gone
    )
    log = load(tmp_path, text, rating="rating", min_rating=5, duplicates="last", min_user_events=2)
    assert events(log) == [("a", "x1", 2.0), ("a", "x2", 3.0)]


def test_min_rating_keeps_ratings_at_the_bound(tmp_path: Path) -> None:
    kept = events(load(tmp_path, rating="rating", min_rating=3))
    assert [event[2] for event in kept] == [30.0, 10.0, 20.0, 20.0]


def test_unknown_items_are_an_error_with_a_suggestion_or_dropped(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\na,x1,1\nb,x11,2\na,x2,3\na,??,4\nb,x11,5\n"
    with pytest.raises(
        DataError,
        match=r"log\.csv: 3 of 5 events are of 2 items.*'x11', '\?\?'; did you mean 'x1'.*drop",
    ):
        load(tmp_path, text)
    with pytest.raises(DataError, match=r"3 of 5 .*has such as .*raise max_unknown \(0\.5\)"):
        load(tmp_path, text, unknown_items="drop")
    log = load(tmp_path, text, unknown_items="drop", max_unknown=0.6)
    assert events(log) == [("a", "x1", 1.0), ("a", "x2", 3.0)]
    assert log.user_ids == ("a",)


HEADER = "user_id,item_id,rating,timestamp\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,x1,1,1\n,x1,1,2\n", r"'user_id' \(user\) is empty in row 2; give each row an id"),
        ("a,,1,1\na,x1,1,2\n", r"'item_id' \(item\) is empty in row 1"),
        ("a,x1,1,\na,x1,1,2\n", r"'timestamp' .*no usable timestamp in row 1: None; use numbers"),
        ("a,x1,1,1\na,x1,1,nan\na,x1,1,inf\n", r"in rows 2, 3: 'nan', 'inf'; use numbers or ISO"),
        ("a,x1,1,1\na,x1,1,soon\n", r"no usable timestamp in row 2: 'soon'"),
        ("a,x1,1,1\na,x1,1,3\na,x1,1,2024-01-01\n", r"in row 3: '2024-01-01'; .*one kind"),
        ("a,x1,1,2024-01-01\na,x1,1,2024-13-01\n", r"in row 2: '2024-13-01'"),
        ("a,x1,1,31/12/2024\n", r"in row 1: '31/12/2024'; use numbers or ISO dates"),
        ("a,x1,,1\na,x1,NaN,1\na,x1,good,1\n", r"no usable number in rows 1, 2, 3: None, 'NaN', "),
    ],
)
def test_missing_and_unparsable_cells_are_refused_with_their_rows(
    rows: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, HEADER + rows, rating="rating")
    assert str(tmp_path / "log.csv") in str(caught.value)


@pytest.mark.parametrize("column", ["user_id", "timestamp", "rating"])
def test_nan_in_a_number_column_is_missing(column: str, tmp_path: Path) -> None:
    cells: dict[str, list[Any]] = {
        "user_id": [1.0, 2.0],
        "item_id": ["x1", "x2"],
        "timestamp": [1.0, 2.0],
        "rating": [1.0, 2.0],
    }
    cells[column] = [1.0, float("nan")]
    pl.DataFrame(cells).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"'{column}' .* in row 2"):
        load_interactions(catalogue(), path="log.parquet", root=tmp_path, rating="rating")


@pytest.mark.parametrize("setting", ["user", "item", "timestamp", "rating"])
def test_a_missing_column_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"log\.csv: no column 'timestap' \({setting}\).*you mean"):
        load(tmp_path, **{setting: "timestap"})


@pytest.mark.parametrize(
    "cell", [[1], {"a": 1}, datetime.timedelta(1), datetime.time(1), b"1", True]
)
@pytest.mark.parametrize("column", ["timestamp", "rating"])
def test_columns_of_other_types_hold_no_numbers(column: str, cell: object, tmp_path: Path) -> None:
    cells: dict[str, list[Any]] = {
        "user_id": ["a"],
        "item_id": ["x1"],
        "timestamp": [1],
        "rating": [1],
    }
    cells[column] = [cell]
    pl.DataFrame(cells).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"'{column}' .*no usable .* in row 1"):
        load_interactions(catalogue(), path="log.parquet", root=tmp_path, rating="rating")


def test_an_empty_k_core_names_the_file_and_the_bounds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.csv: none of 5 events is left.*min_item_events=4"):
        load(tmp_path, min_item_events=4)


def test_a_log_without_any_usable_event_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 5 events is .*rating >= 9"):
        load(tmp_path, rating="rating", min_rating=9)
    with pytest.raises(DataError, match=r"none of 1 events is .*write ids alike"):
        load(tmp_path, "user_id,item_id,timestamp\na,?,1\n", unknown_items="drop")


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="min_rating: needs ratings; name their column"):
        load(tmp_path, min_rating=3)
    with pytest.raises(DataError, match="unknown_items: got 'skip', wanted 'error' or 'drop'"):
        load(tmp_path, unknown_items="skip")


def test_options_are_judged_without_a_file() -> None:
    assert check_load_interactions(path="log.csv", min_rating=3, rating="stars") == []
    assert check_load_interactions(min_rating=3) == []  # whether there are ratings is not known
    assert check_load_interactions(
        path="log.csv", rating=None, min_rating=3, min_user_events=0, duplicates="newest"
    ) == [
        "min_rating: needs ratings; name their column with rating",
        "duplicates: got 'newest', wanted 'keep', 'first' or 'last'",
        "min_user_events: got 0, wanted at least 1; use 1 to keep all",
    ]


def test_a_million_events_load_in_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 1_000_000
    items = [f"item-{number}" for number in range(5000)]
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 20_000, count),
            "item_id": pl.Series(items).gather(rng.integers(0, 5000, count)),
            "timestamp": rng.integers(0, 10**9, count),
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    started = time.process_time()
    log = load_interactions(
        catalogue(tuple(items)), path="log.csv", root=tmp_path, min_user_events=5
    )
    # About 1 s of one core; the bound only catches a loop over events in Python.
    assert time.process_time() - started < 6
    assert len(log) == count
    assert log.user_ids[log.user[-1]] == str(frame["user_id"][-1])
    assert items[log.item[-1] - 1] == frame["item_id"][-1]


def numbered(folder: Path, *, users: int, films: range, **options: Any) -> InteractionLog:
    """A log of ids that are all small numbers, each user with three films in turn."""
    pairs = [
        (user, films[(user * 7 + step) % len(films)]) for user in range(users) for step in range(3)
    ]
    lines = "".join(f"{user + 1},{film},{place}\n" for place, (user, film) in enumerate(pairs))
    (folder / "numbers.csv").write_text("user_id,item_id,timestamp\n" + lines)
    (folder / "films.csv").write_text("item_id\n" + "".join(f"{film}\n" for film in range(1, 41)))
    return load_interactions(
        load_items(path="films.csv", root=folder), path="numbers.csv", root=folder, **options
    )


def test_swapped_columns_are_refused_although_both_are_small_numbers(tmp_path: Path) -> None:
    assert len(numbered(tmp_path, users=60, films=range(1, 41))) == 180
    for unknown in ("error", "drop"):
        with pytest.raises(
            DataError, match=r"user and item are swapped: .*100%.*67%; set user to 'user_id' and"
        ):
            numbered(
                tmp_path,
                users=60,
                films=range(1, 41),
                user="item_id",
                item="user_id",
                unknown_items=unknown,
            )


def test_swapped_columns_are_told_by_name_where_all_numbers_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"user and item are swapped: .*100%.*100%; set user to"):
        numbered(tmp_path, users=20, films=range(1, 41), user="item_id", item="user_id")


def test_a_catalogue_of_users_is_no_swap(tmp_path: Path) -> None:
    log = numbered(tmp_path, users=40, films=range(1, 21), user="item_id", item="user_id")
    assert len(log) == 120 and len(log.user_ids) == 20


def test_users_among_the_catalogues_numbers_by_chance_are_no_swap(tmp_path: Path) -> None:
    log = numbered(tmp_path, users=40, films=range(1, 61), unknown_items="drop")
    assert set(log.item) == set(range(1, 41))


def test_a_swap_under_right_names_is_told_where_hardly_an_item_fits(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n" + "x1,ann,1\nx2,bob,2\n" * 3
    with pytest.raises(DataError, match=r"'user_id' \(user\) holds the catalogue's items in 100%"):
        load(tmp_path, text)


def test_dates_in_a_format_and_numbers_in_a_unit(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\na,x1,31/12/2023 10:30\na,x2,01/02/2024 00:00\n"
    with pytest.raises(DataError, match=r"say how dates are written with timestamp_format"):
        load(tmp_path, text)
    log = load(tmp_path, text, timestamp_format="%d/%m/%Y %H:%M")
    wanted = [datetime.datetime(2023, 12, 31, 10, 30), datetime.datetime(2024, 2, 1)]
    assert log.timestamp.tolist() == [
        one.replace(tzinfo=datetime.UTC).timestamp() for one in wanted
    ]
    with pytest.raises(DataError, match=r"in row 2: '01/02/2024 00:00'; correct timestamp_format"):
        load(tmp_path, text.replace("31/12/2023 10:30", "12.31.2023"), timestamp_format="%m.%d.%Y")
    numbers = "user_id,item_id,timestamp\na,x1,1709251200000\na,x2,1709251201500\n"
    assert load(tmp_path, numbers, timestamp_unit="ms").timestamp.tolist() == [
        1709251200.0,
        1709251201.5,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestamp_unit": "minutes"}, r"timestamp_unit: got 'minutes', wanted one of s, ms, us"),
        ({"timestamp_format": "%d/%Q"}, r"timestamp_format: got '%d/%Q', wanted strptime's codes"),
        ({"timestamp_format": "%H:%M"}, r"timestamp_format: got '%H:%M'"),
        ({"timestamp_format": "%Y", "timestamp_unit": "s"}, r"give one"),
        ({"max_unknown": 1.5}, r"max_unknown: got 1.5, wanted 0 to 1"),
    ],
)
def test_options_of_time_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, **options)


WIDE = 2**53
FINE = 1_700_000_000_123_456_789  # nanoseconds


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series([1.15e18, 2.0]), "Float64 with ids from 9,007,199,254,740,992 on"),
        (pl.Series([2.0**24, 2.0], dtype=pl.Float32), "Float32 with ids from 16,777,216 on"),
        (pl.Series([float("inf"), 2.0]), "Float64 such as inf, which cannot be ids"),
        (pl.Series([1.2e19, 2.0]), "Float64 with ids from"),
        (pl.Series([0.5, 2.0]), "Float64 such as 0.5, which cannot be ids"),
    ],
)
def test_ids_that_floats_cannot_hold_are_refused(
    column: pl.Series, message: str, tmp_path: Path
) -> None:
    frame = pl.DataFrame({"user_id": column, "item_id": ["x1", "x2"], "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"'user_id' \(user\) holds {message}"):
        load_interactions(catalogue(), path="log.parquet", root=tmp_path)


@pytest.mark.parametrize("column", [[WIDE, WIDE + 1], [str(WIDE), str(WIDE + 1)]])
def test_wide_whole_ids_stay_apart(column: list[object], tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": column, "item_id": ["x1", "x2"], "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "log.parquet")
    log = load_interactions(catalogue(), path="log.parquet", root=tmp_path)
    assert log.user_ids == ("9007199254740992", "9007199254740993")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series([1.7e9, 1.8e9], dtype=pl.Float32), "Float32 with times from 16,777,216 on"),
        (pl.Series([float(FINE), 1.0]), "Float64 with times from 9,007,199,254,740,992 on"),
        (pl.Series([FINE, FINE + 1]), "holds times that float64 cannot tell apart"),
        (pl.Series([str(FINE), str(FINE + 1)]), "holds times that float64 cannot tell apart"),
        (
            pl.Series([FINE, FINE + 1]).cast(pl.Datetime("ns")),
            "holds times that float64 cannot tell apart",
        ),
        (
            pl.Series(["2024-03-01T12:00:00.000000001", "2024-03-01T12:00:00.000000002"]),
            "no usable timestamp in rows 1, 2.*parts of a second to microseconds",
        ),
    ],
)
def test_times_that_would_tie_are_refused(column: pl.Series, message: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["x1", "x2"], "timestamp": column})
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=message):
        load_interactions(catalogue(), path="log.parquet", root=tmp_path)


@pytest.mark.parametrize("step", [1_000, 1_000_000_000])
def test_nanoseconds_of_whole_microseconds_keep_their_order(step: int, tmp_path: Path) -> None:
    column = pl.Series([FINE // 1000 * 1000 + step * number for number in range(50)])
    for times in (column, column.cast(pl.Datetime("ns"))):
        frame = pl.DataFrame({"user_id": ["a"] * 50, "item_id": ["x1"] * 50, "timestamp": times})
        frame.write_parquet(tmp_path / "log.parquet")
        log = load_interactions(catalogue(), path="log.parquet", root=tmp_path)
        assert (np.diff(log.timestamp) > 0).all()
