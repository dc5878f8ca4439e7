"""Text for a terminal: what a catalogue or a file holds is shown there, not obeyed.

From ids, titles, paths and messages to characters that move no cursor, set no title and turn no
line around; and the consoles and tables that print them as they are, without markup or emoji codes.
"""

import re
from typing import Any

from rich.console import Console
from rich.table import Table

# controls of ASCII and Latin-1, line and paragraph separators, what turns the direction of writing,
# and halves of surrogate pairs, which no encoding takes
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, *, keep: str = "") -> str:
    r"""A text whose control characters are written out.

        >>> from mmkd.terminal import printable
        >>> printable("\x1b[31mred\x9b\u202e")
        '\\x1b[31mred\\x9b\\u202e'

    Args:
        text: As it was read.
        keep: Characters that stay, such as the line breaks of a message of one's own.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _written(found[0]), text)


def printable_json(text: str) -> str:
    """JSON whose strings hold no control character as it is; it means what it meant."""
    kept = "\n"  # between the values: in a string JSON has no line break
    return _OBEYED.sub(lambda f: f[0] if f[0] in kept else f"\\u{ord(f[0]):04x}", text)


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A console on which a text is that text."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


class PlainTable(Table):
    """A table whose cells and names are printable."""

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """As rich's."""
        super().add_column(_cell(header), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """As rich's."""
        super().add_row(*map(_cell, cells), **options)


def _cell(cell: Any) -> Any:
    return printable(cell) if isinstance(cell, str) else cell


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
