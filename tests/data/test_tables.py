"""Table files: every format gives back every cell, every fault is named."""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmkd.data.readers import Format, read_table
from mmkd.data.readers.columns import read_ids, read_lists, read_text
from mmkd.errors import DataError

ROWS: list[dict[str, str | None]] = [
    {"id": "007", "name": "Café, crème", "note": None},
    {"id": "a b", "name": "映画 🎬", "note": 'say "hi"'},
    {"id": "naïve/ü", "name": "x", "note": "1.50"},
]


def delimited(separator: str) -> Callable[[], bytes]:
    def write() -> bytes:
        return pl.DataFrame(ROWS).write_csv(separator=separator).encode()

    return write


def parquet() -> bytes:
    out = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(out)
    return out.getvalue()


def jsonl() -> bytes:
    sparse = [{key: value for key, value in row.items() if value is not None} for row in ROWS]
    return "\n".join(json.dumps(row) for row in sparse).encode()


def recbole() -> bytes:
    lines = ["id:token\tname:token_seq\tnote:token"]
    lines += ["\t".join(value or "" for value in row.values()) for row in ROWS]
    return "\n".join(lines).encode()


WRITERS: dict[str, Callable[[], bytes]] = {
    "t.csv": delimited(","),
    "t.tsv": delimited("\t"),
    "t.parquet": parquet,
    "t.jsonl": jsonl,
    "t.inter": recbole,
    "t.item": recbole,
}


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_back_every_cell(name: str, packed: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}{packed}").write_bytes(PACKED[packed](WRITERS[name]()))
    table = read_table(f"{name}{packed}", root=tmp_path)
    assert table.frame.select("id", "name", "note").rows(named=True) == ROWS
    by_columns = read_table(f"{name}{packed}", root=tmp_path, wanted={"id", "note"}.__contains__)
    assert by_columns.frame.schema == table.frame.schema and len(by_columns) == len(ROWS)
    for column in ("note", "id"):
        cells = by_columns.column(column, setting=column)
        assert cells.to_list() == table.column(column, setting=column).to_list()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_any_wanted_column_has_rows_all_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WRITERS[name]())
    table = read_table(name, root=tmp_path, wanted=lambda column: False)
    assert len(table) == len(ROWS)
    with pytest.raises(DataError, match=r"no column 'user' \(user\); it has 'id', 'name', 'note'"):
        table.coded("user", setting="user")


def test_format_and_separator_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(delimited(";")())
    table = read_table("log.txt", root=tmp_path, format="csv", separator=";")
    assert table.frame.rows(named=True) == ROWS


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid,name\r\n1,a\r\n")
    assert read_table("t.csv", root=tmp_path).frame.rows(named=True) == [{"id": "1", "name": "a"}]


def test_jsonl_ids_of_mixed_kinds_are_read_as_written(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 7}\n\n{"id": "007"}\n')
    ids = read_ids(read_table("t.jsonl", root=tmp_path), "id", setting="id")
    assert ids.to_list() == ["7", "007"]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([1, 2**53 + 1], dtype=pl.Int64),
        pl.Series([1, 2**53 + 1], dtype=pl.UInt64),
        pl.Series(["1", "9007199254740993"], dtype=pl.Categorical),
    ],
)
def test_whole_numbers_and_categories_become_their_digits(
    column: pl.Series, tmp_path: Path
) -> None:
    pl.DataFrame({"id": column}).write_parquet(tmp_path / "t.parquet")
    ids = read_ids(read_table("t.parquet", root=tmp_path), "id", setting="id")
    assert ids.to_list() == ["1", "9007199254740993"]


def test_whole_floats_are_the_whole_numbers_a_gap_once_turned_them_from(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1.0, 20.0]}).write_parquet(tmp_path / "t.parquet")
    ids = read_ids(read_table("t.parquet", root=tmp_path), "id", setting="id")
    assert ids.to_list() == ["1", "20"]


@pytest.mark.parametrize("cells", [[0.5, 1.0], [True, False], [["a"], ["b"]]])
def test_columns_that_cannot_be_ids_are_refused(cells: list[object], tmp_path: Path) -> None:
    pl.DataFrame({"id": cells}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet.*'id'.*cannot be ids; use text or whole"):
        read_ids(read_table("t.parquet", root=tmp_path), "id", setting="id")


def test_list_cells_are_labels_and_join_into_text(tmp_path: Path) -> None:
    rows = [{"tags": ["red", " red", "", "big"]}, {"tags": None}, {"tags": [3, None]}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = read_table("t.jsonl", root=tmp_path)
    labels = read_lists(table, "tags", setting="attributes", separator="|")
    assert labels.to_list() == [["red", "big"], [], ["3"]]
    assert read_text(table, "tags", setting="text").to_list()[1:] == [None, "3"]


def test_recbole_sequences_are_split_at_spaces_as_the_header_says(tmp_path: Path) -> None:
    (tmp_path / "t.item").write_text("item_id:token\tclass:token_seq\n1\tComedy Drama\n2\t\n")
    table = read_table("t.item", root=tmp_path)
    labels = read_lists(table, "class", setting="attributes", separator="|")
    assert labels.to_list() == [["Comedy", "Drama"], []]
    assert read_text(table, "class", setting="text").to_list() == ["Comedy Drama", None]


def test_recbole_quotes_are_ordinary_characters(tmp_path: Path) -> None:
    (tmp_path / "t.item").write_text('item_id:token\ttitle:token_seq\n1\t"Heat" (1995)\n2\t"Up\n')
    table = read_table("t.item", root=tmp_path)
    assert read_text(table, "title", setting="title").to_list() == ['"Heat" (1995)', '"Up']


def test_a_missing_column_is_named_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id,titel\n1,a\n")
    table = read_table("t.csv", root=tmp_path)
    with pytest.raises(DataError, match=r"no column 'title' \(text\).*did you mean 'titel'\?"):
        table.column("title", setting="text")


def test_a_wrong_separator_is_guessed_from_the_header(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item_id;title\n1;a\n")
    with pytest.raises(DataError, match=r"looks separated by ';': set separator"):
        read_table("t.csv", root=tmp_path).column("title", setting="title")


def duplicate_parquet() -> bytes:
    out = io.BytesIO()
    columns = [pa.array([1]), pa.array([2])]
    pq.write_table(pa.Table.from_arrays(columns, names=["a", "a"]), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.jsonl", b" \n", "the file is empty"),
        ("t.parquet", b"", "the file is empty"),
        ("t.csv", b"a,b\n", "columns but no rows"),
        ("t.csv", b"a,b,a\n1,2,3\n", "column 'a' occurs more than once"),
        ("t.item", b"a:token\ta:float\n1\t2\n", "column 'a' occurs more than once"),
        ("t.parquet", duplicate_parquet(), "column appears more than once"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", r"record 3 .* has 3 cells, the header 2: '1', '2', '3'"),
        ("t.csv", b"a,b\n1,2\n1,\xff\n", "line 3 is not UTF-8.*save the file as UTF-8"),
        ("t.csv", b'a,b\n"1,2\n3,4\n', "record 2 .*, cell 1, .* its quote is never closed"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-20], "damaged gzip data"),
        ("t.csv.zst", zstd(b"a,b\n1,2\n" * 99)[:-4], "damaged zstd data.*fetch the file again"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-4], "damaged gzip data"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0) + b"more", "damaged gzip data"),
        ("t.parquet", b"a,b\n1,2\n", "not a readable parquet file"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("t.jsonl", b'{"a": 1}\n\n[1, 2]\n', "line 3 is a JSON list; write one object"),
        ("t.inter", b"user_id:token\titem_id\n1\t2\n", "header 'item_id' is not name:type"),
        ("t.inter", b"user_id:token\titem_id:int\n1\t2\n", "'item_id:int' is not name:type"),
        ("t.dat", b"1::2\n", "cannot tell the format.*set format to one of csv"),
    ],
)
def test_a_malformed_file_is_named_with_its_fault(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_table(name, root=tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"item\.csv: no such file; did you mean 'items\.csv'\?"):
        read_table("item.csv", root=tmp_path)
    with pytest.raises(DataError, match="nor is there a folder"):
        read_table("items.csv", root=tmp_path / "elsewhere")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(".", root=tmp_path, format="csv")


@pytest.mark.parametrize(
    ("name", "format", "separator", "message"),
    [
        ("t.csv", "xlsx", None, "format: got 'xlsx', wanted auto, csv, tsv"),
        ("t.csv", "csv", "::", "separator: got '::', wanted one ASCII character"),
        ("t.csv", "jsonl", ",", "a jsonl file has no separator"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    name: str, format: Format, separator: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=message):
        read_table(name, root=tmp_path, format=format, separator=separator)


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_may_have_a_name_that_is_no_text(tmp_path: Path, suffix: str) -> None:
    name = os.fsdecode(b"\xff \xc3\xa9.csv") + suffix
    (tmp_path / name).write_bytes(PACKED[suffix](b"a,b\n1,2\n"))
    assert read_table(name, root=tmp_path).frame.rows() == [("1", "2")]


def test_a_column_without_a_name_is_one_by_columns_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b",user\n0,u\n1,v\n")
    table = read_table("t.csv", root=tmp_path, wanted=lambda name: True)
    assert [table.column(name, setting="user").to_list() for name in ("", "user")] == [
        ["0", "1"],
        ["u", "v"],
    ]
