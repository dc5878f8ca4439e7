"""Malformed inputs are refused, or read as Python's own strict readers read them."""

import pytest

from benchmarks import malformed


def test_no_input_is_read_as_something_else() -> None:
    for row in malformed.rows(inputs=60, seed=3):
        assert not row.exceptions, row
        assert row.survived == row.tried == 60
        assert 0 < row.refused < 60


def test_other_content_and_tracebacks_are_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(malformed._TRIALS, "CSV", lambda draw, to: ("t", lambda: 1, 2))
    monkeypatch.setitem(malformed._TRIALS, "recipes", lambda draw, to: ("t", lambda: 1 / 0, 2))
    found = {row.fault: row for row in malformed.rows(inputs=1, seed=0)}
    assert "read as 1; the reference reads 2" in found["malformed CSV"].exceptions[0]
    assert "ZeroDivisionError" in found["malformed recipes"].exceptions[0]
