"""Delimited text: the cells of Python's own strict reader, or the record and cell at fault."""

import csv
import io
import random
from pathlib import Path

import pytest

from mmkd.data.readers.delimited import Dialect, delimited_parts
from mmkd.errors import DataError

SIGNS = ['"', '"', ",", "\n", "\r\n", "\r", "\\", "a", "b", " ", "é", '""', '\\"']


def strict(text: str, dialect: Dialect) -> list[list[str | None]] | None:
    """The rows below the header as Python reads them; None where it refuses the text."""
    lines = io.StringIO(text, newline="")
    if dialect.quote is None:
        reader = csv.reader(lines, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, strict=True, escapechar=dialect.escape)
    try:
        header, *rows = [row for row in reader if row]
    except csv.Error:
        return None
    if max(map(len, rows), default=0) > len(header):
        return None
    return [[cell or None for cell in row] + [None] * (len(header) - len(row)) for row in rows]


def rows_of(content: Path | bytes, dialect: Dialect) -> list[list[str | None]]:
    header, *parts = delimited_parts(content, "t.csv", dialect)
    assert header.height == 0
    return [list(row) for part in parts for row in part.rows()]


@pytest.mark.parametrize("block", [1, 7, 1 << 26])
@pytest.mark.parametrize(
    "dialect",
    [Dialect(","), Dialect(",", escape="\\"), Dialect(",", quote=None)],
    ids=["quotes", "escapes", "no quotes"],
)
def test_random_files_are_read_as_python_reads_them(
    dialect: Dialect, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.data.readers.delimited._BYTES", block)
    draw = random.Random(0)
    refused = 0
    for trial in range(2000):
        lines = ["x,y", *("".join(draw.choices(SIGNS, k=draw.randrange(9))) for _ in range(4))]
        text = "\n".join(lines)
        mark = "\ufeff" if trial % 5 == 0 else ""
        wanted = strict(text, dialect)
        try:
            got = rows_of((mark + text).encode(), dialect)
        except DataError as error:
            got = None
            refused += 1
            assert "record " in str(error)
        assert got == wanted, text
    assert 100 < refused < 1900  # both kinds were met


def test_long_cells_and_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmkd.data.readers.delimited._ROWS", 3)
    long = "x" * 200_000  # more than Python's csv takes by itself
    rows = [[str(number), f'{long} "{number}"'] for number in range(8)]
    file = tmp_path / "t.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([["id", "text"], *rows])
    before = csv.field_size_limit()
    assert rows_of(file, Dialect(",")) == rows
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n\n3,"x" y\n', r"record 3 \(the header is 1\), cell 2, '\"x\" ': ' ' follows"),
        ('a,b\n"1","2"\n3,"x\n', r"record 3 .*, cell 2, '\"x\\n': its quote is never closed"),
        ('a,b\n1,"a 5\\" pot"\n', r"cell 2, .*: ' ' follows .*set escape to '\\' where"),
        ('a,b\n1,"x\n2"z,"\n', r"record 2 .*, cell 2, .*: 'z' follows the closing quote"),
        ('a,b\n"1",2,3\n', r"record 2 .* has 3 cells, the header 2"),
    ],
)
def test_the_record_and_the_cell_at_fault_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(text.encode(), Dialect(","))


def test_escaped_quotes_are_read_where_the_option_says_so() -> None:
    rows = rows_of(b'a,b\n1,"a 5\\" pot"\n', Dialect(",", escape="\\"))
    assert rows == [["1", 'a 5" pot']]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_blank_line_between_a_byte_order_mark_and_the_header_is_none(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.data.readers.delimited._BYTES", 1)
    text = end.join(["\ufeff", "x,y", "1,2", ""])
    assert rows_of(text.encode(), Dialect(",")) == [["1", "2"]]
