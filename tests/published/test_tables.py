"""Lines of published files."""

import gzip
from pathlib import Path

import pytest

from mmkd.errors import DataError
from mmkd.published import tables


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_without_their_ends_and_none_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tables, "_LONGEST", 10)
    packed = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name).write_bytes(packed(b"one\r\ntwo\n\n" + b"x" * 9 + b"\n"))
    assert list(tables.lines(tmp_path, name)) == [b"one", b"two", b"", b"x" * 9]
    (tmp_path / name).write_bytes(packed(b"one\n" + b"x" * 11))
    lines = tables.lines(tmp_path, name)
    assert next(lines) == b"one"
    with pytest.raises(DataError, match="a line of over 10 bytes"):
        next(lines)
