"""What the comparison with RecTools counts."""

from pathlib import Path

from benchmarks.front_door import PEERS, lines_of

SCRIPT = '''"""Not counted."""

from pathlib import Path

import mmkd


def read(folder: Path) -> object:
    """Not counted."""
    # nor is this
    data = mmkd.Dataset.load(
        folder,
    )

    return data
'''


def test_a_users_lines_are_imports_of_libraries_and_bodies(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert lines_of(tmp_path / "script.py") == 1 + 3 + 1


def test_both_sides_have_the_same_three_functions() -> None:
    for script in PEERS.glob("*_shop.py"):
        text = script.read_text("utf-8")
        assert [text.count(f"\ndef {name}(") for name in ("read", "fit", "recommend")] == [1] * 3
