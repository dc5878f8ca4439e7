"""Text templates: an item's columns to the one text an encoder reads.

`"{title}. {genres}. {plot}"` is a list of segments, each a placeholder with the literal text before
it (and the closing brackets right after it). A segment whose value is missing is dropped whole, so
a template never writes "None" and never leaves its punctuation behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

import polars as pl

from mmkd.errors import DataError

# Python's, which is more than polars': with other texts, vectors would have to be computed anew
_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
_SLICE = 50_000
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

    def render(self, columns: Mapping[str, pl.Series]) -> pl.Series:
        """Writes the items' texts.

        Args:
            columns: Column name to values, [n] text each; null, empty and blank ones are missing.

        Returns:
            [n] text, null where every value is missing.
        """
        place = {name: str(number) for number, name in enumerate(self.columns)}
        # names of one's own, as polars reads a column called "^a$" as a pattern
        frame = pl.DataFrame({number: columns[name] for name, number in place.items()})
        values = {name: _stripped(pl.col(number)) for name, number in place.items()}
        written = pl.lit(False)
        parts = []
        for number, (before, name, after) in enumerate(self.segments):
            # With the segments before it gone, its literal separates it from nothing.
            alone = before if number == 0 else before.lstrip(_SEPARATORS)
            lead = pl.when(written).then(pl.lit(before)).otherwise(pl.lit(alone))
            parts.append(pl.concat_str(lead, values[name], pl.lit(after)).fill_null(""))
            written = written | values[name].is_not_null()
        text = _stripped(pl.concat_str(*parts, pl.lit(self.ending)))
        texts = pl.when(written).then(text).alias("text")
        # slice by slice, as each part of a text is a column of its own for a while
        slices = [part.select(texts)["text"] for part in frame.iter_slices(_SLICE)]
        return pl.concat(slices) if slices else pl.Series("text", dtype=pl.String)


def _stripped(text: pl.Expr) -> pl.Expr:
    """Text without the white space around it; null where nothing is left."""
    bare = text.str.strip_chars(_SPACE)
    return pl.when(bare != "").then(bare)


def _close(segments: list[tuple[str, str, str]], literal: str) -> str:
    """Moves the closing brackets that start a literal to the segment before it."""
    rest = literal.lstrip(_CLOSERS) if segments else literal
    if rest != literal:
        before, name, _ = segments[-1]
        segments[-1] = (before, name, literal[: len(literal) - len(rest)])
    return rest
