"""Text templates: an item's columns to the one text an encoder reads.

`"{title}. {genres}. {plot}"` is a list of segments, each a placeholder with the literal text before
it (and the closing brackets right after it). A segment whose value is missing is dropped whole, so
a template never writes "None" and never leaves its punctuation behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from mmkd.errors import DataError

_CLOSERS = ')]}>"»”'
_SEPARATORS = " \t\n.,;:|/-–—"  # noqa: RUF001 (the en dash is meant)


@dataclass(frozen=True)
class TextTemplate:
    """A parsed template.

    Attributes:
        segments: (literal before, column name, closing brackets after), in order.
        ending: Literal text after the last segment.
    """

    segments: tuple[tuple[str, str, str], ...]
    ending: str

    @classmethod
    def parse(cls, template: str) -> "TextTemplate":
        """Reads a template such as ``{title}. {plot}``; ``{{`` and ``}}`` are literal braces.

        Raises:
            DataError: If the braces do not match, a placeholder is not a plain column name, or
                there is no placeholder at all.
        """
        try:
            parsed = list(Formatter().parse(template))
        except ValueError as error:
            raise DataError(f"text template {template!r}: {error}; write {{column}}") from None
        segments: list[tuple[str, str, str]] = []
        literal = ""
        for text, name, spec, conversion in parsed:
            literal += text
            if name is None:  # an escaped brace, or the end
                continue
            if not name or spec or conversion:
                raise DataError(
                    f"text template {template!r}: a placeholder is a plain column name such as "
                    "{title}, without a format"
                )
            segments.append((_close(segments, literal), name, ""))
            literal = ""
        if not segments:
            raise DataError(
                f"text template {template!r} has no placeholder, so all items would share one "
                f"text; to use a column write {{{template.strip() or 'title'}}}"
            )
        return cls(ending=_close(segments, literal), segments=tuple(segments))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it needs, each once."""
        return tuple(dict.fromkeys(name for _, name, _ in self.segments))

    def render(self, values: Mapping[str, str | None]) -> str | None:
        """Writes one item's text.

        Args:
            values: Column name to value; None, empty and blank values are missing.

        Returns:
            The text, or None where every value is missing.
        """
        text = ""
        for number, (before, name, after) in enumerate(self.segments):
            value = (values[name] or "").strip()
            if not value:
                continue
            # With the segments before it gone, its literal separates it from nothing.
            lead = before if text or number == 0 else before.lstrip(_SEPARATORS)
            text += lead + value + after
        return (text + self.ending).strip() if text else None


def _close(segments: list[tuple[str, str, str]], literal: str) -> str:
    """Moves the closing brackets that start a literal to the segment before it."""
    rest = literal.lstrip(_CLOSERS) if segments else literal
    if rest != literal:
        before, name, _ = segments[-1]
        segments[-1] = (before, name, literal[: len(literal) - len(rest)])
    return rest
