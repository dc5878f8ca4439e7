"""What a catalogue holds is printed, not obeyed."""

import io
import json
import unicodedata

from rich.console import Console

from mmkd.terminal import PlainTable, printable, printable_json

HOSTILE = (
    "\x1b[31mred \x1b]0;title\x07 \x1b[2J\x9b31m \r\b\x7f [bold]x[/bold] :smile: \u202eabc\u2066 "
    "\u2028 \ud800 line\nbreak\ttab"
)


def test_no_character_that_moves_or_turns_anything_is_left() -> None:
    shown = printable(HOSTILE)
    categories = {unicodedata.category(character) for character in shown}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert "\\x1b[31mred" in shown and "\\x9b31m" in shown and ":smile:" in shown
    assert "\\u202eabc" in shown and "\\ud800" in shown and "\\x0abreak\\x09tab" in shown
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 naïve 日本"
    assert printable(family) == family


def test_a_message_keeps_its_own_line_breaks() -> None:
    assert printable("one\ntwo\x1b", keep="\n") == "one\ntwo\\x1b"


def test_json_says_the_same_without_control_characters() -> None:
    content = {"title": HOSTILE, HOSTILE: [HOSTILE]}
    text = printable_json(json.dumps(content, indent=1, ensure_ascii=False))
    assert json.loads(text) == content
    assert not {unicodedata.category(c) for c in text.replace("\n", "")} & {"Cc", "Cf", "Cs"}


def test_a_table_shows_cells_and_names_as_they_are() -> None:
    table = PlainTable(HOSTILE, "b", box=None)
    table.add_row(HOSTILE, ":smile: [red]x[/red]")
    out = io.StringIO()
    console = Console(file=out, markup=False, emoji=False, highlight=False, width=400)
    console.print(table)
    assert ":smile: [red]x[/red]" in out.getvalue() and "\x1b" not in out.getvalue()
    assert out.getvalue().count(printable(HOSTILE)) == 2
