"""What is printed while something runs."""

from types import SimpleNamespace

import pytest

from mmkd.cli.progress import EmbeddingProgress


def test_a_log_gets_a_line_now_and_then_instead_of_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0, 140.0, 150.0])
    monkeypatch.setattr("mmkd.cli.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with EmbeddingProgress(line_every_s=30) as progress:
        for done in (10, 100, 400, 450):
            progress.advance("text", done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "encode text: 400 of 1000, 10.0 a second, 60 s left"
    ]
    assert progress.encoded == {"text": 450}
